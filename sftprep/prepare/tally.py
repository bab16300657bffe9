"""What a validation has counted so far, file by file, and the findings that it will list."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from sftprep.config.validate import ValidateConfig
from sftprep.data import Finding, RowAddress, Severity
from sftprep.errors import SourceError
from sftprep.prepare.check_block import CheckedBlock, FitCounts, Kind, Listed
from sftprep.reports.findings import FileCounts, FitReport, ValidationReport


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
    _num_listed: Counter[Severity] = field(default_factory=Counter)
    fit: FitCounts = field(default_factory=FitCounts)

    def add(self, block: CheckedBlock) -> None:
        """Rows of the last file; the block is settled."""
        file = self.files[-1]
        file.rows_in += block.rows_in
        file.good += block.num_good
        file.formats.update(block.formats)
        self.fit.update(block.fit)
        for kind, count in block.counts.items():
            self._count(kind, count)
        for listed in block.listed:
            self._list(listed)

    def end_file(self, error: SourceError) -> None:
        """The last file cannot be read on: a finding at the row that was reached."""
        file = self.files[-1]
        file.complete = False
        line = error.place.removeprefix(file.file).removeprefix(":")
        address = RowAddress(file.file, int(line) if line.isdigit() else 1)
        finding = Finding(error.code, Severity.ERROR, address, "", error.message, error.hint)
        self._count(Kind(finding.code, finding.severity), 1)
        self._list(Listed(finding, ""))

    def _count(self, kind: Kind, count: int) -> None:
        self.files[-1].by_code[kind.code] += count
        self.by_code[kind.code] += count
        self.by_severity[kind.severity] += count

    def _list(self, listed: Listed) -> None:
        finding, excerpt = listed
        if self.config.max_errors and self._num_listed[finding.severity] >= self.config.max_errors:
            return
        self._num_listed[finding.severity] += 1
        self.listed.append(finding)
        if self.config.html is not None:
            self.excerpts[f"{finding.address}:{finding.pointer}"] = excerpt

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
        lengths = np.array(self.fit.lengths or [0], dtype=np.int64)
        p50, p90, p99 = (int(value) for value in np.percentile(lengths, [50, 90, 99], method="inverted_cdf"))
        return FitReport(
            model=self.config.model,
            max_length=self.config.max_length,
            num_exact=len(self.fit.lengths),
            num_trained=self.fit.num_trained,
            p50=p50,
            p90=p90,
            p99=p99,
            longest=int(lengths.max()),
            num_over_length=self.fit.num_over_length,
            num_trained_lost=self.fit.num_trained_lost,
        )
