"""What a pack run prints before the audit of its masks: what was packed, and what other row lengths would drop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sftprep.reports.wording import counted
from sftprep.stages.lengths import DropAt, Quantiles


@dataclass(frozen=True, slots=True)
class SourceLine:
    """One source; all but `num_rows` count with repetition."""

    name: str
    num_rows: int
    epochs: float
    num_taken: int
    num_documents: int
    num_left_out: int


@dataclass(frozen=True, slots=True)
class OverLengthLine:
    """What the row length cost, in trained tokens."""

    policy: str
    num_rows: int
    num_left_out: int
    num_trained: int
    num_trained_lost: int


@dataclass(frozen=True, slots=True)
class PackSummary:
    """Everything that is printed."""

    out: str
    fingerprint: str
    unchanged: bool
    packing: bool
    max_length: int
    num_conversations: int
    num_documents: int
    num_packs: int
    num_tokens: int
    num_turns: int
    repeated_tokens: int
    classes: Mapping[str, int]
    remarks: Mapping[str, int]
    sources: Sequence[SourceLine]
    warnings: Mapping[str, int]
    lengths: Quantiles
    drops: Sequence[DropAt]
    over_length: OverLengthLine | None = None
    rendering: Mapping[str, int] = field(default_factory=dict)
    """Rows of this run that were `replayed` from plans and `traced`, those `checked` again; rows by `engine NAME`."""
    engine_differed: str = ""


def print_pack(summary: PackSummary, console: Console) -> None:
    """Print to a terminal, a file or a pipe; nothing that matters is said by colour alone."""
    rows = counted(summary.num_packs, "row") + ("" if summary.packing else " of one document")
    state = "unchanged, nothing was done" if summary.unchanged else "published"
    console.print(
        f"[bold]{escape(summary.out)}[/bold]: {state} (fingerprint {summary.fingerprint[:12]})", soft_wrap=True
    )
    console.print(
        f"{counted(summary.num_conversations, 'conversation')}, {counted(summary.num_documents, 'document')}, "
        f"{counted(summary.num_turns, 'trained turn')} in {rows} of at most {counted(summary.max_length, 'token')}",
        soft_wrap=True,
    )
    if set(summary.classes) - {"packed"}:
        console.print(f"turns by class: {_listed(summary.classes)}", soft_wrap=True)
    if summary.remarks:
        console.print(f"packed, and worth knowing: {_listed(summary.remarks)}", soft_wrap=True)
    if summary.repeated_tokens:
        share = _percent(summary.repeated_tokens / summary.num_tokens)
        console.print(f"{summary.repeated_tokens:,} of the tokens ({share}) repeat history that the template rewrites")
    if summary.over_length is not None:
        line = summary.over_length
        console.print(
            f"{counted(line.num_rows, 'conversation is', 'conversations are')} longer than a row ({line.policy}), "
            f"{line.num_left_out:,} of them left out: "
            f"{line.num_trained_lost:,} of their {counted(line.num_trained, 'trained token')} are lost "
            f"({_percent(line.num_trained_lost / max(1, line.num_trained))})",
            soft_wrap=True,
        )
    _print_sources(summary.sources, console)
    if summary.warnings:
        console.print(f"warnings, their rows are kept: {_listed(summary.warnings)}", soft_wrap=True)
    _print_drops(summary, console)
    _print_rendering(summary, console)


def _print_rendering(summary: PackSummary, console: Console) -> None:
    """How the rows were compiled: for who wonders why a run is slow, or whether a fast engine can be trusted."""
    counts = summary.rendering
    num_rows = counts.get("replayed", 0) + counts.get("traced", 0)
    if num_rows:
        engines = {name.removeprefix("engine "): n for name, n in counts.items() if name.startswith("engine ")}
        by = f" (encoded with {_listed(engines)}; {counts.get('checked', 0):,} checked again)" if engines else ""
        share = _percent(counts.get("replayed", 0) / num_rows)
        rest = f"{counted(counts.get('traced', 0), 'row')} went through the template alone"
        console.print(f"{share} of {counted(num_rows, 'row')} rendered by plans{by}; {rest}", soft_wrap=True)
    if summary.engine_differed:
        place = escape(summary.engine_differed)
        console.print(f"{place}: a fast engine gave other ids; every row was encoded by the reference", soft_wrap=True)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _table(*columns: str) -> Table:
    """The first column is text, the others are numbers."""
    table = Table()
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    return table


def _print(title: str, table: Table, console: Console) -> None:
    # A table's own title is broken at the table's width, which is often less than the terminal's.
    console.print(f"\n[bold]{escape(title)}[/bold]", soft_wrap=True)
    console.print(table)


def _print_sources(sources: Sequence[SourceLine], console: Console) -> None:
    table = _table("name", "rows", "epochs", "taken", "documents", "left out")
    for source in sources:
        counts = (source.num_taken, source.num_documents, source.num_left_out)
        table.add_row(
            escape(source.name), f"{source.num_rows:,}", f"{source.epochs:g}", *(f"{count:,}" for count in counts)
        )
    _print("Sources", table, console)


def _print_drops(summary: PackSummary, console: Console) -> None:
    lengths = summary.lengths
    table = _table("--max-length", "longer ones", "share", "their tokens")
    for drop in summary.drops:
        shares = (_percent(drop.conversation_share), _percent(drop.token_share))
        table.add_row(f"{drop.max_length:,}", f"{drop.num_conversations:,}", *shares)
    title = (
        f"Conversation lengths: mean {lengths.mean:,.0f}, p50 {lengths.p50:,}, p90 {lengths.p90:,}, "
        f"p99 {lengths.p99:,}, max {lengths.max:,}"
    )
    _print(title, table, console)
    told = "--over-length drop leaves the longer ones out, split-at-turn and truncate-at-turn keep the turns that fit"
    console.print(f"{told}, refuse fails on them", soft_wrap=True)
