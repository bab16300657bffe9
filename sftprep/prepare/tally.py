"""What a validation has counted so far, file by file, and the findings that it will list."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from sftprep.config.validate import ValidateConfig
from sftprep.data import Finding, Json, Severity
from sftprep.prepare.check import CheckedRow
from sftprep.prepare.row_fit import RowFit
from sftprep.records.json_text import parse_json
from sftprep.reports.findings import FileCounts, FitReport, ValidationReport

_EXCERPT: Final = 400
"""Characters of a row that a report shows."""


@dataclass(slots=True)
class FileTally:
    """What is known of a file while it is read."""

    file: str
    rows_in: int = 0
    good: int = 0
    complete: bool = True
    formats: Counter[str] = field(default_factory=Counter)
    by_code: Counter[str] = field(default_factory=Counter)

    def counts(self) -> FileCounts:
        """As the report has it."""
        return FileCounts(
            file=self.file,
            formats=dict(sorted(self.formats.items())),
            complete=self.complete,
            rows_in=self.rows_in,
            good=self.good,
            bad=self.rows_in - self.good,
            by_code=dict(sorted(self.by_code.items())),
        )


@dataclass(slots=True)
class Tally:
    """Counts of everything, and the first findings of each severity."""

    config: ValidateConfig
    files: list[FileTally] = field(default_factory=list)
    by_severity: Counter[Severity] = field(default_factory=Counter)
    by_code: Counter[str] = field(default_factory=Counter)
    listed: list[Finding] = field(default_factory=list)
    excerpts: dict[str, str] = field(default_factory=dict)
    lengths: array[int] = field(default_factory=lambda: array("q"))
    num_trained: int = 0
    num_over_length: int = 0
    num_trained_lost: int = 0

    def add(self, row: CheckedRow, raw: bytes) -> None:
        """A row of the last file."""
        file = self.files[-1]
        file.rows_in += 1
        file.good += row.good
        if row.format is not None:
            file.formats[row.format] += 1
        if row.fit is not None:
            self._add_fit(row.fit)
        for finding in row.findings:
            self.add_finding(finding, raw)

    def add_finding(self, finding: Finding, raw: bytes) -> None:
        """A finding of the last file, and the row that it is in."""
        self.files[-1].by_code[finding.code] += 1
        self.by_code[finding.code] += 1
        self.by_severity[finding.severity] += 1
        limit = self.config.max_errors
        if limit and self.by_severity[finding.severity] > limit:
            return
        self.listed.append(finding)
        if self.config.html is not None:
            self.excerpts[f"{finding.address}:{finding.pointer}"] = excerpt(raw, finding.pointer)

    def _add_fit(self, fit: RowFit) -> None:
        self.lengths.append(fit.longest)
        self.num_trained += fit.num_trained
        if self.config.max_length is not None and fit.longest > self.config.max_length:
            self.num_over_length += 1
            self.num_trained_lost += fit.num_trained

    def report(self, *, published: bool, withheld: bool) -> ValidationReport:
        """Everything, once all is read; outputs that were asked for were `published`, or `withheld`."""
        errors, warnings = self.by_severity[Severity.ERROR], self.by_severity[Severity.WARNING]
        named = set(self.config.fail_on)
        failed = ("error" in named and errors) or ("warning" in named and errors + warnings)
        files = [file.counts() for file in self.files]
        return ValidationReport(
            passed=not (failed or withheld or named & self.by_code.keys()),
            fail_on=list(self.config.fail_on),
            rows_in=sum(file.rows_in for file in files),
            good=sum(file.good for file in files),
            bad=sum(file.bad for file in files),
            num_errors=errors,
            num_warnings=warnings,
            by_code=dict(sorted(self.by_code.items())),
            files=files,
            fit=self._fit_report(),
            findings=self.listed,
            num_unlisted=errors + warnings - len(self.listed),
            quarantine_published=published,
            excerpts=self.excerpts,
        )

    def _fit_report(self) -> FitReport | None:
        if self.config.model is None:
            return None
        lengths = np.array(self.lengths if self.lengths else [0], dtype=np.int64)
        p50, p90, p99 = (int(value) for value in np.percentile(lengths, [50, 90, 99], method="inverted_cdf"))
        return FitReport(
            model=self.config.model,
            max_length=self.config.max_length,
            num_exact=len(self.lengths),
            num_trained=self.num_trained,
            p50=p50,
            p90=p90,
            p99=p99,
            longest=int(lengths.max()),
            num_over_length=self.num_over_length,
            num_trained_lost=self.num_trained_lost,
        )


def excerpt(raw: bytes, pointer: str) -> str:
    """The value that a pointer names, or the row's start where it names none, cut short."""
    parsed = parse_json(raw)
    value: Json = parsed.value
    for step in pointer.split("/")[1:] if parsed.readable else ():
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            break
    text = json.dumps(value, ensure_ascii=False) if parsed.readable else raw.decode("utf-8", "backslashreplace")
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…"
