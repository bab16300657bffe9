"""The mask audit on a terminal: totals by reason, and rows with trained tokens marked, with colour or without."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sftprep.reports.mask_json import AuditReport
from sftprep.reports.mask_view import RowView, SpanView

TRAINED_STYLE = "black on green"
_PLAIN_MARKS = ("⟦", "⟧")


def print_summary(report: AuditReport, console: Console) -> None:
    """Totals, lengths, padding, what was left out, and the verdict."""
    console.print(
        f"{report.directory}: {report.num_documents:,} documents in {report.num_rows:,} rows for {report.model}",
        style="bold",
        soft_wrap=True,
        markup=False,
    )
    console.print(_kind_table(report))
    console.print(_length_table(report))
    waste = report.waste
    console.print(
        f"rows are {report.row_fill:.1%} full of {report.max_length:,}; positions wasted on padding: "
        f"to the longest {waste.padding_to_longest:.1%}, to {report.max_length:,} {waste.padding_to_max_length:.1%}, "
        f"packed {waste.packing:.1%}",
        soft_wrap=True,
    )
    if report.left_out:
        codes = ", ".join(f"{code} {count:,}" for code, count in sorted(report.left_out.items()))
        console.print(f"rows left out when packing: {codes} (all in left_out.jsonl)", soft_wrap=True)
    for finding in report.findings:
        rows = ", ".join(str(row) for row in finding.rows)
        console.print(f"FAILED {finding.code}: {finding.num_rows:,} rows, first {rows}", style="bold red")
    verdict = "passed: every row keeps what the set promises" if report.passed else "FAILED"
    console.print(verdict, style="green" if report.passed else "bold red")


def _kind_table(report: AuditReport) -> Table:
    table = Table("reason", "role", "trained")
    for name in ("tokens", "share"):
        table.add_column(name, justify="right")
    for count in report.kinds:
        mark = "yes" if count.trained else ""
        style = "green" if count.trained else None
        table.add_row(count.kind, count.role, mark, f"{count.num_tokens:,}", f"{count.share:.1%}", style=style)
    table.add_section()
    table.add_row("trained", "", "yes", f"{report.num_trained:,}", f"{report.trained_share:.1%}", style="bold green")
    table.add_row("all", "", "", f"{report.num_tokens:,}", "100.0%", style="bold")
    return table


def _length_table(report: AuditReport) -> Table:
    table = Table("tokens a document")
    names = ("mean", "p50", "p90", "p99", "max")
    for name in names:
        table.add_column(name, justify="right")
    for title, lengths in (("all", report.lengths), ("trained", report.trained_lengths)):
        table.add_row(title, *(f"{getattr(lengths, name):,.0f}" for name in names))
    return table


def print_row(row: RowView, console: Console, *, ids: bool) -> None:
    """A row's tokens: trained ones on green, or between ⟦ ⟧ where there is no colour; borders between documents."""
    console.print(f"\nrow {row.index}: {row.num_tokens:,} tokens, {row.num_trained:,} trained", style="bold")
    coloured = console.color_system is not None and not console.no_color
    line = Text()
    for span in row.spans:
        if span.starts_document:
            _flush(line, console)
            line = Text()
            console.rule(Text(span.origin), align="left", characters="─")
        line.append_text(_span_text(span, coloured=coloured, ids=ids))
    _flush(line, console)


def _flush(line: Text, console: Console) -> None:
    if line.plain:
        console.print(line, soft_wrap=True)


def _span_text(span: SpanView, *, coloured: bool, ids: bool) -> Text:
    style = TRAINED_STYLE if span.trained else "dim"
    marks = _PLAIN_MARKS if span.trained and not coloured else ("", "")
    text = "".join(token.text + (f"‹{' '.join(map(str, token.ids))}›" if ids else "") for token in span.tokens)
    return Text(f"{marks[0]}{_visible(text)}{marks[1]}", style=style if coloured else "")


def _visible(text: str) -> str:
    """Control characters that would move the cursor are shown as their pictures; line breaks stay."""
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text)
