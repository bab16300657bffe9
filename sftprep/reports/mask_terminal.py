"""The mask audit on a terminal: totals by reason, and rows with trained tokens marked, with colour or without."""

from __future__ import annotations

from collections import Counter

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sftprep.reports.mask_json import AuditReport
from sftprep.reports.mask_view import RowView, SpanView, visible
from sftprep.reports.parity_json import PROVEN, ParityCertificate
from sftprep.reports.wording import counted

TRAINED_STYLE = "black on green"
_SPECIAL_STYLE = "bold black on bright_green"
_NARROW = 60


def print_summary(report: AuditReport, console: Console) -> None:
    """Totals, lengths, padding, what was left out, and the verdict."""
    counts = f"{counted(report.num_documents, 'document')} in {counted(report.num_rows, 'row')}"
    console.print(
        visible(f"{report.directory}: {counts} for {report.model}"), style="bold", soft_wrap=True, markup=False
    )
    console.print(_kind_table(report, console))
    console.print(_length_table(report, console))
    waste = report.waste
    console.print(
        f"rows are {report.row_fill:.1%} full of {report.max_length:,}; positions wasted on padding: "
        f"to the longest {waste.padding_to_longest:.1%}, to {report.max_length:,} {waste.padding_to_max_length:.1%}, "
        f"packed {waste.packing:.1%}",
        soft_wrap=True,
    )
    console.print(f"by role: {_roles(report)}", soft_wrap=True)
    stops = ", ".join(f"{visible(stop.token) or stop.id} {stop.num_turns:,}" for stop in report.stops)
    console.print(
        f"trained turns that end in a trained stop token: {report.num_stopped:,} of {report.num_turns:,}"
        + (f" ({stops})" if stops else ""),
        soft_wrap=True,
        markup=False,
    )
    told = {**report.classes, **report.remarks}
    if told.keys() - {"packed"}:
        names = ", ".join(f"{name} {count:,}" for name, count in told.items())
        console.print(f"turns and what packing remarked: {names}", soft_wrap=True, markup=False)
    if report.repeated_tokens:
        share = report.repeated_tokens / max(report.num_tokens, 1)
        console.print(
            f"{counted(report.num_conversations, 'conversation')} in {counted(report.num_documents, 'document')}: "
            f"{report.repeated_tokens:,} of the tokens ({share:.1%}) repeat history that the template rewrites",
            soft_wrap=True,
        )
    if report.left_out:
        codes = ", ".join(f"{code} {count:,}" for code, count in sorted(report.left_out.items()))
        share = report.num_left_out / max(report.num_taken, 1)
        told_rows = f"{report.num_left_out:,} of {report.num_taken:,} ({share:.1%})"
        console.print(f"rows left out when packing: {told_rows}: {codes} (all in left_out.jsonl)", soft_wrap=True)
    _print_verdict(report, console)


def _roles(report: AuditReport) -> str:
    """Tokens and share of each role, the most first, and how many of them are trained."""
    tokens, trained = Counter[str](), Counter[str]()
    for kind in report.kinds:
        tokens[kind.role] += kind.num_tokens
        trained[kind.role] += kind.num_trained
    return ", ".join(
        f"{role} {count:,} ({count / max(report.num_tokens, 1):.1%}"
        + (f", {trained[role]:,} trained)" if trained[role] else ")")
        for role, count in tokens.most_common()
    )


def _print_verdict(report: AuditReport, console: Console) -> None:
    for finding in report.findings:
        rows = ", ".join(str(row) for row in finding.rows)
        word, style = ("allowed", "yellow") if finding.allowed else ("FAILED", "bold red")
        told = f"{word} {finding.code}: {counted(finding.num_rows, 'row')}, first {rows}: {finding.message}"
        console.print(told, style=style, soft_wrap=True)
    if report.parity is not None:
        _print_parity(report.parity, console)
    for gate in report.gates:
        word, style = ("holds", "green") if gate.passed else ("FAILED", "bold red")
        console.print(f"{word} {gate.gate}: found {gate.found}", style=style, soft_wrap=True, markup=False)
    if not report.passed:
        verdict = "FAILED"
    elif report.findings:
        verdict = "passed, with what was allowed"
    else:
        verdict = "passed: every row keeps what the set promises"
    console.print(verdict, style="green" if report.passed else "bold red")


def _print_parity(parity: ParityCertificate, console: Console) -> None:
    lost = [source for source in parity.sources if source.state != "read"]
    told = [
        f"prompts that are the server's: {parity.num_equal:,} of {parity.num_turns:,} trained turns, "
        + (f"{parity.num_pieces:,} of them of cut conversations, " if parity.num_pieces else "")
        + f"{parity.num_differing:,} differ, "
        + (f"{parity.num_split:,} hold control tokens that the set splits, " if parity.num_split else "")
        + f"{parity.num_unprovable:,} cannot be compared; "
        f"{parity.num_stopped:,} end in a token of {parity.stop_ids_from}",
        *(f"  {source.path}: {source.state}, {counted(source.num_turns, 'turn')} unprovable" for source in lost),
        *(
            f"  {d.place}, message {d.message}: token {d.position} of row {d.row}, document {d.document}: trained on "
            f"{d.trained_on!r}, the server sends {d.server_sends!r}{d.reason and f' ({d.reason})'}"
            for d in parity.differences
        ),
        f"parity: {parity.verdict}",
    ]
    style = "green" if parity.verdict in PROVEN else "bold red"
    for line in told:
        console.print(visible(line), style=style, soft_wrap=True, markup=False)


def _table(console: Console) -> Table:
    """A table with ruled borders where the terminal can show them."""
    ascii_only = console.is_dumb_terminal or not console.encoding.startswith("utf")
    table = Table(box=box.ASCII) if ascii_only else Table()
    if console.width < _NARROW:
        table = Table(box=None, pad_edge=False)
    return table


def _kind_table(report: AuditReport, console: Console) -> Table:
    table = _table(console)
    is_narrow = console.width < _NARROW
    for name in ("reason", "role", "trained"):
        if name == "reason" or not is_narrow:
            table.add_column(name)
    for name in ("tokens", "share"):
        table.add_column(name, justify="right")
    rows = [(k.kind, k.role, k.trained, k.num_tokens, k.share) for k in report.kinds]
    trained = ("trained", "", True, report.num_trained, report.trained_share)
    for number, (kind, role, is_trained, count, share) in enumerate([*rows, trained, ("all", "", False, 0, 1.0)]):
        if number == len(rows):
            table.add_section()
        own = f"{count if kind != 'all' else report.num_tokens:,}", f"{share:.1%}"
        middle = () if is_narrow else (role, "yes" if is_trained else "")
        bold = "bold " if number >= len(rows) else ""
        table.add_row(kind, *middle, *own, style=f"{bold}green" if is_trained else bold.strip() or None)
    return table


def _length_table(report: AuditReport, console: Console) -> Table:
    table = _table(console)
    table.add_column("tokens a document" if console.width >= _NARROW else "tokens")
    names = ("mean", "p50", "p90", "p99", "max")
    for name in names:
        table.add_column(name, justify="right")
    for title, lengths in (("all", report.lengths), ("trained", report.trained_lengths)):
        table.add_row(title, *(f"{getattr(lengths, name):,.0f}" for name in names))
    return table


def print_row(row: RowView, console: Console, *, ids: bool) -> None:
    """A row's tokens: trained ones on green, or between ⟦ ⟧ where there is no colour; borders between documents."""
    if not row.spans:
        console.print(f"\nrow {row.index}: cannot be shown: {row.chosen}", style="bold red")
        return
    why = "" if row.chosen == "drawn" else f" ({row.chosen})"
    console.print(
        f"\nrow {row.index}: {counted(row.num_tokens, 'token')}, {row.num_trained:,} trained{why}", style="bold"
    )
    line = Text()
    for span in row.spans:
        if span.starts_document:
            _flush(line, console)
            line = Text()
            console.rule(Text(visible(span.origin)), align="left", characters="─")
        line.append_text(_span_text(span, console, ids=ids))
    _flush(line, console)


def _flush(line: Text, console: Console) -> None:
    if line.plain:
        console.print(line, soft_wrap=True)


def _span_text(span: SpanView, console: Console, *, ids: bool) -> Text:
    coloured = console.color_system is not None and not console.no_color
    marks = ("⟦", "⟧") if console.encoding.startswith("utf") else ("[[", "]]")
    text = Text()
    inside = False
    for token in span.tokens:
        if not coloured and token.trained != inside:
            text.append(marks[inside])
            inside = token.trained
        shown = visible(token.text) + (f"‹{' '.join(map(str, token.ids))}›" if ids else "")
        text.append(shown, style=_style(trained=token.trained, special=token.special) if coloured else "")
    if inside:
        text.append(marks[1])
    return text


def _style(*, trained: bool, special: bool) -> str:
    if trained:
        return _SPECIAL_STYLE if special else TRAINED_STYLE
    return "bold magenta" if special else "dim"
