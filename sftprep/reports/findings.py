"""What a validation found: the report as a value, as JSON, and as text for a terminal."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from sftprep.data import Finding, Severity
from sftprep.records.draft import Format
from sftprep.reports.publication import json_bytes, publishing
from sftprep.reports.wording import counted


class FileCounts(BaseModel):
    """One input file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(description="The path as given.")
    formats: dict[str, int] = Field(description="Rows by the format that they were read in, where it could be told.")
    complete: bool = Field(description="Whether the file could be read to its end.")
    rows_in: int = Field(description="Rows that are not blank; always good + bad.")
    good: int = Field(description="Rows without an error.")
    bad: int = Field(description="Rows with at least one error.")
    by_code: dict[str, int] = Field(description="Findings by code, ascending by name.")


class FitReport(BaseModel):
    """How the rows fit a model; tokens are those of a row's longest document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    max_length: int | None
    num_exact: int = Field(description="Rows that can be exact; the other good ones have a finding that says why not.")
    num_trained: int = Field(description="Trained tokens of the exact rows.")
    p50: int
    p90: int
    p99: int
    longest: int
    num_over_length: int = Field(description="Exact rows that are longer than --max-length.")
    num_trained_lost: int = Field(description="Trained tokens of those rows, all of which would be lost.")


class ValidationReport(BaseModel):
    """The outcome of `sftprep validate`. `findings` may be cut short; the counts never are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool = Field(
        description="Nothing found is of a severity or code that --fail-on names, and what was to be written is there."
    )
    fail_on: list[str]
    rows_in: int
    good: int
    bad: int
    num_errors: int
    num_warnings: int
    by_code: dict[str, int] = Field(description="Findings by code over all files.")
    files: list[FileCounts]
    fit: FitReport | None = Field(description="With --model.")
    findings: list[Finding] = Field(description="In order of file and line; a file's own faults name a line too.")
    num_unlisted: int = Field(description="Findings beyond --max-errors, counted above but not listed.")
    quarantine_published: bool = Field(
        description="Whether --good, --bad and --fix-to were written: not where a file could not be read to its end."
    )
    excerpts: dict[str, str] = Field(
        exclude=True, default_factory=dict, description="What each listed finding points to, by `file:line:pointer`."
    )

    @property
    def exit_code(self) -> int:
        """0 if passed, else 1."""
        return 0 if self.passed else 1

    def judged_with(self, quality: Mapping[str, int]) -> ValidationReport:
        """The same, and failed where `fail_on` names a code that the measures of quality counted."""
        failed = any(quality.get(code) for code in self.fail_on)
        return self.model_copy(update={"passed": self.passed and not failed})


def report_lines(report: ValidationReport, *, quiet: bool) -> Iterator[str]:
    """The report as plain lines; `quiet` leaves only the last, the totals."""
    if not quiet:
        yield from _finding_lines(report)
        yield from _table_lines(report)
        yield from _format_lines(report)
    if report.fit is not None:
        yield from _fit_lines(report.fit)
    rows = f"{counted(report.rows_in, 'row')}: {report.good:,} good, {report.bad:,} bad"
    yield f"{rows}; {counted(report.num_errors, 'error')}, {counted(report.num_warnings, 'warning')}"


def _finding_lines(report: ValidationReport) -> Iterator[str]:
    hinted = set()
    for finding in report.findings:
        note = " (warning)" if finding.severity is Severity.WARNING else ""
        yield f"{finding}{note}"
        if finding.hint and (finding.code, finding.hint) not in hinted:
            hinted.add((finding.code, finding.hint))
            yield f"  hint: {finding.hint}"
    if report.num_unlisted:
        yield f"... and {report.num_unlisted:,} more (--max-errors 0 lists all)"


def _table_lines(report: ValidationReport) -> Iterator[str]:
    width = max((len(code) for code in report.by_code), default=0)
    for code, count in sorted(report.by_code.items(), key=lambda item: (-item[1], item[0])):
        yield f"  {code:<{width}}  {count:>9,}"


def _format_lines(report: ValidationReport) -> Iterator[str]:
    """What the rows were taken for, unless that is the plain format, which nothing was made of."""
    formats: Counter[str] = Counter()
    for file in report.files:
        formats.update(file.formats)
    if formats.keys() - {Format.OPENAI}:
        yield "read as " + ", ".join(f"{name}: {count:,}" for name, count in formats.most_common())


def _fit_lines(fit: FitReport) -> Iterator[str]:
    yield f"{fit.model}: {counted(fit.num_exact, 'row')} can be exact, {counted(fit.num_trained, 'trained token')}"
    if not fit.num_exact:
        return
    yield f"tokens a row: half have {fit.p50:,} or fewer, 90% {fit.p90:,}, 99% {fit.p99:,}, the longest {fit.longest:,}"
    if fit.max_length is not None:
        over = f"{counted(fit.num_over_length, 'row is', 'rows are')} over {counted(fit.max_length, 'token')}"
        yield f"{over}; {counted(fit.num_trained_lost, 'trained token')} would be lost with them"


def print_report(report: ValidationReport, *, quiet: bool) -> None:
    """The report to stdout; what the terminal's encoding lacks is written as an escape, never a crash."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for line in report_lines(report, quiet=quiet):
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def write_report(report: ValidationReport, *, path: Path) -> None:
    """The report as JSON, whole or not at all. OutputError where it cannot be written."""
    with publishing([path]) as publication:
        publication.files[0].write(json_bytes(report))
