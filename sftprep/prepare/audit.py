"""Audit a shard set: every row that the trainer will read, counted and checked, then some of them shown.

from sftprep.config.audit import AuditConfig
from sftprep.prepare.audit import audit

report = audit(AuditConfig(directory="packed", html="audit.html"))
assert report.passed
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from sftprep.config.audit import AuditConfig
from sftprep.data import TRAINED_KINDS, SpanKind
from sftprep.errors import ShardError
from sftprep.reports.mask_html import write_page
from sftprep.reports.mask_json import AuditFinding, AuditReport, KindCount, write_report
from sftprep.reports.mask_view import RowView, view_row
from sftprep.shards.read import ShardSet, open_shard_set
from sftprep.stages.lengths import PaddingWaste, quantiles
from sftprep.stages.mask_audit import AuditFacts, BatchAudit, audit_batch

_SHOWN_ROWS = 10
_ROLES = {
    SpanKind.SYSTEM: "system",
    SpanKind.USER: "user",
    SpanKind.TOOL_RESULT: "tool",
    SpanKind.TOOL_SCHEMA: "tool",
    SpanKind.COMPLETION: "assistant",
    SpanKind.STOP: "assistant",
    SpanKind.HISTORY: "assistant",
    SpanKind.WEIGHT_ZERO: "assistant",
    SpanKind.MASKED: "assistant",
}


def audit(config: AuditConfig) -> AuditReport:
    """Audit a set, and write the reports that the config names.

    Raises:
        ShardError: the set is incomplete or damaged (`no-manifest`, `missing-shard`, `shard-checksum` …).
        OutputError: `write-failed`.
    """
    shards = open_shard_set(config.directory)
    shards.verify(checksums=config.checksums)
    report = summarise(shards)
    if config.json_file is not None:
        write_report(report, config.json_file)
    if config.html is not None:
        write_page(report, list(shown_rows(shards, count=config.html_rows, seed=config.seed)), config.html)
    return report


def summarise(shards: ShardSet) -> AuditReport:
    """Count and check every row of an open set."""
    manifest = shards.manifest
    allowed = manifest.config.get("allow")
    facts = AuditFacts(
        stop_ids=frozenset(manifest.model.stop_ids),
        vocab_size=manifest.model.vocab_size,
        max_length=manifest.max_length,
        unstopped_allowed=isinstance(allowed, (list, tuple)) and "no-terminator" in allowed,
    )
    batches: list[BatchAudit] = []
    faults: defaultdict[str, list[int]] = defaultdict(list)
    first = 0
    for shard in manifest.shards:
        own = [audit_batch(batch, facts=facts) for batch in shards.iter_shard(shard)]
        batches += own
        found = (sum(b.num_rows for b in own), sum(b.num_tokens for b in own), sum(b.num_trained for b in own))
        if found != (shard.num_rows, shard.num_tokens, shard.num_trained):
            faults["count-mismatch"].append(first)
        for batch in own:
            for code, row in batch.faults:
                faults[code].append(first + row)
            first += batch.num_rows
    return _report(shards, batches, faults)


def _report(shards: ShardSet, batches: Sequence[BatchAudit], faults: defaultdict[str, list[int]]) -> AuditReport:
    manifest = shards.manifest
    lengths = np.concatenate([np.zeros(0, np.int64), *(b.document_lengths for b in batches)])
    trained = np.concatenate([np.zeros(0, np.int64), *(b.document_trained for b in batches)])
    num_tokens, num_trained = (sum(b.num_tokens for b in batches), sum(b.num_trained for b in batches))
    if (len(lengths), num_tokens, num_trained) != (
        manifest.counts.num_documents,
        manifest.counts.num_tokens,
        manifest.counts.num_trained,
    ):
        faults["count-mismatch"].append(0)
    findings = [
        AuditFinding(code=code, num_rows=len(set(rows)), rows=sorted(set(rows))[:_SHOWN_ROWS])
        for code, rows in sorted(faults.items(), key=lambda item: -len(item[1]))
    ]
    return AuditReport(
        passed=not findings,
        directory=str(shards.directory),
        fingerprint=manifest.fingerprint,
        model=manifest.model.name,
        num_rows=sum(b.num_rows for b in batches),
        num_documents=len(lengths),
        num_tokens=num_tokens,
        num_trained=num_trained,
        trained_share=num_trained / max(num_tokens, 1),
        weight_sum=sum(b.weight_sum for b in batches),
        kinds=_kind_counts(batches, num_tokens),
        lengths=quantiles(lengths),
        trained_lengths=quantiles(trained),
        row_fill=num_tokens / max(sum(b.num_rows for b in batches) * manifest.max_length, 1),
        max_length=manifest.max_length,
        packing=manifest.packing,
        waste=PaddingWaste(**manifest.waste.model_dump()),
        left_out=manifest.left_out.by_code,
        findings=findings,
    )


def _kind_counts(batches: Sequence[BatchAudit], num_tokens: int) -> list[KindCount]:
    totals = sum((b.kind_tokens for b in batches), np.zeros(max(SpanKind) + 1, np.int64))
    return [
        KindCount(
            kind=kind.name.lower(),
            role=_ROLES.get(kind, "template"),
            trained=kind in TRAINED_KINDS,
            num_tokens=int(totals[kind]),
            share=int(totals[kind]) / max(num_tokens, 1),
        )
        for kind in SpanKind
        if totals[kind]
    ]


def shown_rows(shards: ShardSet, *, count: int, seed: int) -> Iterator[RowView]:
    """Rows drawn by the seed, in order, decoded with the tokenizer that the set carries."""
    number = min(count, shards.num_rows)
    drawn = np.random.default_rng(seed).choice(shards.num_rows, size=number, replace=False)
    yield from rows_at(shards, sorted(int(index) for index in drawn))


def rows_at(shards: ShardSet, indices: Sequence[int]) -> Iterator[RowView]:
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
        yield view_row(shards.row(index), index=index, sources=names, tokenizer=tokenizer)


def _tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ShardError("the set carries no tokenizer", code="no-tokenizer", place=str(path), hint="pack it again")
    return Tokenizer.from_file(str(path))
