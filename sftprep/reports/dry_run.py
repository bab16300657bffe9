"""What a dry run of pack foretells, and how it is printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sftprep.reports.wording import counted
from sftprep.stages.estimate import Estimate


@dataclass(frozen=True, slots=True)
class DryRunReport:
    """Totals of the set that the run would publish, each with the 95 % interval of the sample's error."""

    num_input_rows: int
    """Rows that are taken at least once."""
    num_sampled: int
    num_tokens: Estimate
    num_trained: Estimate
    num_documents: Estimate
    num_rows: Estimate
    num_shards: Estimate
    num_bytes: Estimate
    """Of the shards, at the sample's bytes a token; its bounds are those of the tokens."""
    cpu_seconds: Estimate
    """On this machine as it is now."""
    wall_seconds: Estimate
    """Where every worker has a core."""
    num_left_out: Estimate
    """Rows of the input."""
    left_out_by_code: Mapping[str, int]
    """Rows of the sample."""
    may_be_refused: bool
    """Within the error, more rows are left out than may be."""


def print_dry_run(report: DryRunReport, console: Console) -> None:
    """Print to a terminal, a file or a pipe."""
    console.print(
        f"dry run: nothing was written. {report.num_sampled:,} of {counted(report.num_input_rows, 'row')} compiled; "
        "bounds hold in 19 of 20 runs",
        soft_wrap=True,
    )
    table = Table()
    for index, name in enumerate(("", "expected", "at least", "at most")):
        table.add_column(name, justify="right" if index else "left")
    lines = {
        "rows": report.num_rows,
        "documents": report.num_documents,
        "tokens": report.num_tokens,
        "trained tokens": report.num_trained,
        "shards": report.num_shards,
        "bytes of shards": report.num_bytes,
        "rows left out": report.num_left_out,
    }
    for name, found in lines.items():
        table.add_row(name, *(f"{round(value):,}" for value in (found.value, found.low, found.high)))
    for name, found in {"CPU seconds": report.cpu_seconds, "seconds": report.wall_seconds}.items():
        table.add_row(name, *(f"{value:,.1f}" for value in (found.value, found.low, found.high)))
    console.print(table)
    if report.left_out_by_code:
        listed = ", ".join(f"{code} {count:,}" for code, count in report.left_out_by_code.items())
        console.print(f"left out of the sample: {escape(listed)}", soft_wrap=True)
    if report.may_be_refused:
        console.print("the run may be refused: so many rows may not be left out (--max-drop)", soft_wrap=True)
