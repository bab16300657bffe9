"""What a pass over all rows of a shard set adds up to. Its size does not depend on how many rows there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa

from sftprep.shards.manifest import Counts, Manifest, ShardRecord
from sftprep.shards.read import ShardSet
from sftprep.stages.lengths import LengthCounts
from sftprep.stages.mask_audit import NUM_KINDS, AuditFacts, BatchAudit, Fault, IntArray, audit_batch

NUM_BINS: Final = 20
_SHOWN_ROWS: Final = 10
_EXTREMES: Final = 3

_SUMS: Final = (
    *("num_rows", "num_tokens", "num_trained", "weight_sum", "turns", "stopped", "share_bins"),
    *("kind_tokens", "kind_trained", "source_documents", "source_trained"),
)
_LENGTHS: Final = ("lengths", "trained_lengths", "row_lengths")
_EXTREME: Final = ("longest", "most_trained", "least_trained")
"""Fields of a Tally, by how two are added."""


@dataclass(slots=True)
class FoundRows:
    """How many rows have one fault, and the first of them."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, rows: Iterable[int]) -> None:
        """Rows in ascending order, each once."""
        for row in rows:
            self.count += 1
            if len(self.first) < _SHOWN_ROWS:
                self.first.append(row)

    def merge(self, other: FoundRows, *, first: int) -> None:
        """Rows behind these, numbered from `first`."""
        self.count += other.count
        self.first = [*self.first, *(first + row for row in other.first)][:_SHOWN_ROWS]


@dataclass(slots=True)
class Extremes:
    """The rows of the few documents with the greatest value."""

    rows: dict[int, float] = field(default_factory=dict)

    def add(self, values: IntArray, rows: IntArray) -> None:
        """Values `[docs]` and the rows that hold them."""
        for at in np.argsort(-values, kind="stable")[:_EXTREMES].tolist():
            row, value = int(rows[at]), float(values[at])
            self.rows[row] = max(value, self.rows.get(row, value))
        self._keep_few()

    def merge(self, other: Extremes, *, first: int) -> None:
        """Of rows behind these, numbered from `first`."""
        self.rows |= {first + row: value for row, value in other.rows.items()}
        self._keep_few()

    def _keep_few(self) -> None:
        kept = sorted(self.rows.items(), key=lambda item: (-item[1], item[0]))[:_EXTREMES]
        self.rows = dict(kept)


@dataclass(slots=True)
class Tally:
    """Sums over the batches so far; `kind_tokens` int64 `[sources, kinds]`."""

    kind_tokens: IntArray
    kind_trained: IntArray
    source_documents: IntArray
    source_trained: IntArray
    num_read: int = 0
    """Rows of the batches."""
    num_rows: int = 0
    """Those of them that could be counted."""
    num_tokens: int = 0
    num_trained: int = 0
    weight_sum: float = 0.0
    turns: int = 0
    stopped: int = 0
    stops: Counter[int] = field(default_factory=Counter)
    lengths: LengthCounts = field(default_factory=LengthCounts)
    trained_lengths: LengthCounts = field(default_factory=LengthCounts)
    row_lengths: LengthCounts = field(default_factory=LengthCounts)
    share_bins: IntArray = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))
    found: dict[str, FoundRows] = field(default_factory=dict)
    longest: Extremes = field(default_factory=Extremes)
    most_trained: Extremes = field(default_factory=Extremes)
    least_trained: Extremes = field(default_factory=Extremes)

    @classmethod
    def of(cls, num_sources: int) -> Tally:
        """Nothing counted yet."""
        return cls(
            kind_tokens=np.zeros((num_sources, NUM_KINDS), np.int64),
            kind_trained=np.zeros(NUM_KINDS, np.int64),
            source_documents=np.zeros(num_sources, np.int64),
            source_trained=np.zeros(num_sources, np.int64),
        )

    def add(self, batch: BatchAudit, *, first: int) -> None:
        """Add a batch whose first row has the number `first`."""
        self.num_rows += batch.num_rows
        self.num_tokens += batch.num_tokens
        self.num_trained += batch.num_trained
        self.weight_sum += batch.weight_sum
        self.turns += batch.turns
        self.stopped += batch.stopped
        self.kind_tokens += batch.kind_tokens
        self.kind_trained += batch.kind_trained
        size = len(self.source_documents)
        self.source_documents += np.bincount(batch.document_sources, minlength=size)
        trained = np.bincount(batch.document_sources, weights=batch.document_trained, minlength=size)
        self.source_trained += trained.astype(np.int64)
        self.stops.update(dict(sorted(Counter(batch.stops.tolist()).items())))
        self._add_lengths(batch, first)
        self._add_faults(batch.faults, first)

    def merge(self, other: Tally) -> None:
        """Add what was counted of the rows behind these, numbered from 0."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.stops.update(other.stops)
        for name in _LENGTHS:
            getattr(self, name).merge(getattr(other, name))
        for name in _EXTREME:
            getattr(self, name).merge(getattr(other, name), first=self.num_read)
        for code, rows in other.found.items():
            self.found.setdefault(code, FoundRows()).merge(rows, first=self.num_read)
        self.num_read += other.num_read

    def compare(self, counts: Counts) -> None:
        """Find a fault where all rows come to other counts than the manifest says, and no shard was found to."""
        found = (self.lengths.total, self.num_tokens, self.num_trained)
        declared = (counts.num_documents, counts.num_tokens, counts.num_trained)
        if found != declared and "count-mismatch" not in self.found:
            self.find("count-mismatch", [0])

    def _add_lengths(self, batch: BatchAudit, first: int) -> None:
        self.lengths.add(batch.document_lengths)
        self.trained_lengths.add(batch.document_trained)
        self.row_lengths.add(batch.row_lengths)
        share = batch.document_trained * 1000 // np.maximum(batch.document_lengths, 1)
        self.share_bins += np.bincount(np.minimum(share * NUM_BINS // 1000, NUM_BINS - 1), minlength=NUM_BINS)
        rows = first + batch.document_rows
        self.longest.add(batch.document_lengths, rows)
        self.most_trained.add(share, rows)
        self.least_trained.add(-share, rows)

    def _add_faults(self, faults: Iterable[Fault], first: int) -> None:
        rows: dict[str, set[int]] = {}
        for code, row in faults:
            rows.setdefault(code, set()).add(first + row)
        for code, numbers in rows.items():
            self.find(code, sorted(numbers))

    def find(self, code: str, rows: Iterable[int]) -> None:
        """Rows that have a fault."""
        self.found.setdefault(code, FoundRows()).add(rows)

    def notable(self, differing: Iterable[int] = ()) -> Mapping[int, str]:
        """Rows that are worth a look, and why: faults, prompts that differ, the greatest and the least."""
        ranked = sorted(self.found.items(), key=lambda item: -item[1].count)
        named: list[tuple[str, Iterable[int]]] = [(code, rows.first) for code, rows in ranked]
        named += [("prompt differs", dict.fromkeys(differing)), ("longest document", self.longest.rows)]
        named += [("least trained", self.least_trained.rows), ("most trained", self.most_trained.rows)]
        reasons: dict[int, list[str]] = {}
        for name, rows in named:
            for row in rows:
                reasons.setdefault(row, []).append(name)
        return {row: ", ".join(names) for row, names in reasons.items()}


def tally(shards: ShardSet) -> Tally:
    """Count and check every row of an open set."""
    total = Tally.of(len(shards.manifest.sources))
    facts = audit_facts(shards)
    for shard in shards.manifest.shards:
        total.merge(tally_shard(shards.iter_shard(shard), facts=facts, shard=shard))
    total.compare(shards.manifest.counts)
    return total


def tally_shard(batches: Iterable[pa.RecordBatch], *, facts: AuditFacts, shard: ShardRecord) -> Tally:
    """Count and check every row of one shard, numbered from its first, against what the manifest says of it."""
    total = Tally.of(facts.num_sources)
    for batch in batches:
        total.add(audit_batch(batch, facts=facts), first=total.num_read)
        total.num_read += batch.num_rows
    if (total.num_rows, total.num_tokens, total.num_trained) != (shard.num_rows, shard.num_tokens, shard.num_trained):
        total.find("count-mismatch", [0])
    return total


def audit_facts(shards: ShardSet) -> AuditFacts:
    """What the rows of a set are held to."""
    return facts_of(shards.manifest)


def facts_of(manifest: Manifest) -> AuditFacts:
    """What the rows of a set with this manifest are held to; its shards and their sums may still be missing."""
    allowed = manifest.config.get("allow")
    return AuditFacts(
        stop_ids=frozenset(manifest.model.stop_ids),
        vocab_size=manifest.model.vocab_size,
        max_length=manifest.max_length,
        num_sources=len(manifest.sources),
        unstopped_allowed=isinstance(allowed, (list, tuple)) and "no-terminator" in allowed,
    )
