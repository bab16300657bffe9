"""Audit a shard set: every row that the trainer will read, counted and checked, then some of them shown.

from sftprep.config.audit import AuditConfig
from sftprep.prepare.audit import audit

found = audit(AuditConfig(directory="packed", html="audit.html"))
assert found.report.passed
found.rows([0])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from sftprep.config.audit import AuditConfig
from sftprep.errors import ShardError
from sftprep.prepare.audit_report import gated, waived
from sftprep.prepare.audit_report import report as build_report
from sftprep.prepare.audit_tally import tally
from sftprep.reports.mask_html import notebook_html, page_html, write_page
from sftprep.reports.mask_json import AuditReport, write_report
from sftprep.reports.mask_view import RowView, view_row
from sftprep.shards.read import ShardSet, open_shard_set


@dataclass(frozen=True, slots=True)
class Audit:
    """An audited set: the report, and rows on request. A notebook shows it as the page."""

    report: AuditReport
    shards: ShardSet
    notable: Mapping[int, str]
    """Rows that are worth a look, and why."""
    config: AuditConfig

    def rows(self, indices: Sequence[int]) -> Iterator[RowView]:
        """Rows by number, decoded with the tokenizer that the set carries.

        Raises:
            ShardError: `no-such-row`, `no-tokenizer`.
        """
        yield from rows_at(self.shards, indices, reasons=self.notable)

    def chosen(self) -> list[int]:
        """The rows that the configuration asks to see: by number, by an expression, or drawn."""
        if self.config.row is not None:
            return [self.config.row]
        if self.config.where is None:
            return drawn(np.arange(self.shards.num_rows), count=self.config.sample, seed=self.config.seed)
        # polars takes 0.15 s to import, which nothing else here needs.
        from sftprep.prepare.choose import matching_rows

        found = matching_rows(self.shards, self.config.where)
        return drawn(found, count=self.config.sample, seed=self.config.seed)

    def page_rows(self) -> list[RowView]:
        """The most notable rows first, at most half of them, then drawn ones."""
        count = min(self.config.html_rows, self.shards.num_rows)
        first = list(self.notable)[: (count + 1) // 2]
        others = np.setdiff1d(np.arange(self.shards.num_rows), first)
        return list(self.rows([*first, *drawn(others, count=count - len(first), seed=self.config.seed)]))

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style and a notebook's do not meet."""
        return notebook_html(page_html(self.report, self.page_rows()))


def audit(config: AuditConfig) -> Audit:
    """Audit a set, and write the reports that the config names.

    Raises:
        ShardError: the set is incomplete or damaged (`no-manifest`, `missing-shard`, `shard-checksum` …).
        OutputError: `write-failed`.
    """
    shards = open_shard_set(config.directory)
    shards.verify(checksums=config.checksums)
    total = tally(shards)
    report = gated(waived(build_report(shards, total), config.allow), config.gates)
    found = Audit(report, shards, total.notable(), config)
    if config.json_file is not None:
        write_report(report, config.json_file)
    if config.html is not None:
        write_page(page_html(report, found.page_rows()), config.html)
    return found


def summarise(shards: ShardSet) -> AuditReport:
    """Count and check every row of an open set."""
    return build_report(shards, tally(shards))


def drawn(rows: np.ndarray[tuple[int], np.dtype[np.int64]], *, count: int, seed: int) -> list[int]:
    """At most `count` of the rows, drawn by the seed, in order."""
    chosen = np.random.default_rng(seed).choice(rows, size=min(count, len(rows)), replace=False)
    return sorted(int(row) for row in chosen)


def shown_rows(shards: ShardSet, *, count: int, seed: int) -> Iterator[RowView]:
    """Rows drawn by the seed, in order, decoded with the tokenizer that the set carries."""
    yield from rows_at(shards, drawn(np.arange(shards.num_rows), count=count, seed=seed))


def rows_at(shards: ShardSet, indices: Sequence[int], *, reasons: Mapping[int, str] | None = None) -> Iterator[RowView]:
    """Rows by number, decoded.

    Raises:
        ShardError: `no-such-row`, `no-tokenizer`.
    """
    tokenizer = _tokenizer(shards.directory / "model" / "tokenizer.json")
    names = [source.path for source in shards.manifest.sources]
    for index in indices:
        if index >= shards.num_rows:
            raise ShardError(
                f"row {index} of {shards.num_rows}",
                code="no-such-row",
                place=str(shards.directory),
                hint="count from 0",
            )
        why = (reasons or {}).get(index, "drawn")
        yield view_row(shards.row(index), index=index, sources=names, tokenizer=tokenizer, chosen=why)


def _tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ShardError("the set carries no tokenizer", code="no-tokenizer", place=str(path), hint="pack it again")
    return Tokenizer.from_file(str(path))
