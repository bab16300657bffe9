"""Audit a shard set: every row that the trainer will read, counted and checked, then some of them shown.

from sftprep.config.audit import AuditConfig
from sftprep.prepare.audit import audit

found = audit(AuditConfig(directory="packed", html="audit.html"))
assert found.report.passed
found.rows([0])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.config.audit import AuditConfig
from sftprep.config.places import is_remote, shown
from sftprep.engines.load import load_model
from sftprep.engines.model import ModelFiles
from sftprep.errors import ShardError, UsageError
from sftprep.prepare.audit_report import gated, proven, waived
from sftprep.prepare.audit_report import report as build_report
from sftprep.prepare.audit_tally import audit_facts, tally
from sftprep.prepare.prompts import Prompts, prompt_views, server_prompts
from sftprep.prepare.prove import prove
from sftprep.prepare.set_tokenizer import set_tokenizer
from sftprep.reports.mask_html import notebook_html, page_html, write_page
from sftprep.reports.mask_json import FINDING_TEXTS, AuditReport, write_report
from sftprep.reports.mask_view import RowView, view_row
from sftprep.reports.parity_json import CERTIFICATE_NAME, ParityCertificate
from sftprep.reports.publication import check_places, json_bytes
from sftprep.shards.cache import open_set
from sftprep.shards.read import ShardSet
from sftprep.stages.mask_audit import readable_rows
from sftprep.stores.write import StoreFolder


@dataclass(frozen=True, slots=True)
class Audit:
    """An audited set: the report, and rows on request. A notebook shows it as the page."""

    report: AuditReport
    shards: ShardSet
    config: AuditConfig
    notable: Mapping[int, str]
    """Rows that are worth a look, and why: reasons with a comma between them."""
    prompts: Prompts | None = None
    """The server's, of the page's rows, where a proof was asked for."""

    def rows(self, indices: Sequence[int]) -> Iterator[RowView]:
        """Rows by number, decoded with the tokenizer that the set carries; one that cannot be read has no spans.

        Raises:
            ShardError: `no-such-row`, `no-tokenizer`.
        """
        if not indices:
            return
        tokenizer = set_tokenizer(self.shards.directory)
        names = [source.path for source in self.shards.manifest.sources]
        for index in indices:
            batch = _row(self.shards, index)
            readable, _, faults = readable_rows(batch, audit_facts(self.shards))
            if faults:
                yield RowView(index, 0, 0, (), chosen=faults[0][0])
                continue
            why = self.notable.get(index, "drawn")
            view = view_row(readable, index=index, sources=names, tokenizer=tokenizer, chosen=why)
            prompts = () if self.prompts is None else tuple(prompt_views(self.prompts, readable, tokenizer))
            yield replace(view, prompts=prompts)

    def chosen(self) -> list[int]:
        """The rows that the configuration asks to see: by number, by an expression, or drawn."""
        config = self.config
        if config.row is not None:
            return [config.row]
        if config.where is None:
            return _drawn(np.arange(self.shards.num_rows), count=config.sample, seed=config.seed)
        # polars takes 0.15 s to import, which nothing else here needs.
        from sftprep.prepare.choose import matching_rows

        return _drawn(matching_rows(self.shards, config.where), count=config.sample, seed=config.seed)

    def page(self) -> str:
        """The report and some rows as one HTML page."""
        return page_html(self.report, list(self.rows(_page_rows(self.shards, self.notable, self.config))))

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style and a notebook's do not meet."""
        return notebook_html(self.page())


def audit(config: AuditConfig) -> Audit:
    """Audit a set, and write the reports that the config names.

    Raises:
        ShardError: the set is incomplete or damaged (`no-manifest`, `missing-shard`, `shard-checksum` …).
        ModelFilesError: the server's model cannot be used.
        OutputError: `output-not-writable`, `disk-full`, `no-such-directory`, `store-failed`.
        UsageError: `no-such-code`.
    """
    check_places([config.json_file, config.html])
    for code in config.allow:
        if code not in FINDING_TEXTS:
            known = ", ".join(sorted(FINDING_TEXTS))
            raise UsageError(f"no finding has the code {code!r}", code="no-such-code", place="--allow", hint=known)
    shards = open_set(config.directory, cache_dir=config.cache_dir, cache_gb=config.cache_gb)
    if shards.copies is None:  # what is copied is verified on the way
        shards.verify(checksums=config.checksums)
    total = tally(shards)
    report, notable = waived(build_report(shards, total), config.allow), total.notable()
    prompts: Prompts | None = None
    if config.prove:
        model = _server_model(shards, config)
        certificate = prove(shards, model=model)
        _write_certificate(certificate, config.directory)
        report = proven(report, certificate)
        notable = total.notable(found.row for found in certificate.differences)
        paged = _page_rows(shards, notable, config) if config.html is not None else []
        batches = [readable_rows(shards.row(index), audit_facts(shards))[0] for index in paged]
        prompts = server_prompts(shards, batches, model=model, certificate=certificate)
    report = report.model_copy(update={"directory": shown(config.directory)})
    found = Audit(gated(report, config.gates), shards, config, notable, prompts)
    if config.json_file is not None:
        write_report(found.report, config.json_file)
    if config.html is not None:
        write_page(found.page(), config.html)
    return found


def _write_certificate(certificate: ParityCertificate, place: Path) -> None:
    """Into the set, wherever it lies."""
    if is_remote(place):
        StoreFolder(place).write(CERTIFICATE_NAME, json_bytes(certificate))
    else:
        write_report(certificate, place / CERTIFICATE_NAME)


def _server_model(shards: ShardSet, config: AuditConfig) -> ModelFiles:
    """The model of --model; without it the set's own copy, under the name that it had."""
    if config.model is not None:
        return load_model(config.model)
    return replace(load_model(str(shards.directory / "model")), name=shards.manifest.model.name)


def _page_rows(shards: ShardSet, notable: Mapping[int, str], config: AuditConfig) -> list[int]:
    """The most notable rows first, at most half of them, then drawn ones."""
    count = min(config.html_rows, shards.num_rows)
    first = list(notable)[: (count + 1) // 2]
    others = np.setdiff1d(np.arange(shards.num_rows), first)
    return [*first, *_drawn(others, count=count - len(first), seed=config.seed)]


def _drawn(rows: npt.NDArray[np.int64], *, count: int, seed: int) -> list[int]:
    """At most `count` of the rows, drawn by the seed, in order."""
    chosen = np.random.default_rng(seed).choice(rows, size=min(count, len(rows)), replace=False)
    return sorted(int(row) for row in chosen)


def _row(shards: ShardSet, index: int) -> pa.RecordBatch:
    if index < shards.num_rows:
        return shards.row(index)
    raise ShardError(
        f"row {index} of {shards.num_rows}", code="no-such-row", place=str(shards.place), hint="count from 0"
    )
