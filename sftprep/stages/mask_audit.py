"""Count what the shards hold, and check on every row what a shard set promises. Columnar; no loop over tokens.

Codes of what is found: `column-length-mismatch`, `span-order`, `border-trained`, `span-crosses-border`,
`mask-span-mismatch`, `scalar-mismatch`, `stop-untrained`, `stop-id-unknown`, `row-over-max-length`, `id-out-of-range`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.data import TRAINED_KINDS, SpanKind

IntArray = npt.NDArray[np.int64]
_NUM_KINDS = max(SpanKind) + 1


@dataclass(frozen=True, slots=True)
class AuditFacts:
    """What the manifest says and every row is held to."""

    stop_ids: frozenset[int]
    vocab_size: int
    max_length: int
    unstopped_allowed: bool
    """Whether the set was packed with turns that have no stop token."""


@dataclass(frozen=True, slots=True)
class BatchAudit:
    """Counts of one batch: `kind_tokens` int64 by span kind; lengths int64 by document; faults as (code, row)."""

    num_rows: int
    num_tokens: int
    num_trained: int
    weight_sum: float
    kind_tokens: IntArray
    document_lengths: IntArray
    document_trained: IntArray
    faults: Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class _Rows:
    """A batch as flat arrays. Positions count from the batch's first token."""

    ids: IntArray
    masks: IntArray
    row_starts: IntArray
    row_lengths: IntArray
    doc_starts: IntArray
    doc_lengths: IntArray
    doc_rows: IntArray
    span_starts: IntArray
    span_lengths: IntArray
    span_kinds: IntArray
    span_messages: IntArray
    span_rows: IntArray


def audit_batch(batch: pa.RecordBatch, *, facts: AuditFacts) -> BatchAudit:
    """Counts and faults of a batch of shard rows; a fault's row counts from the batch's first row."""
    faults = _length_faults(batch)
    if faults:
        # The other checks read columns side by side, which these rows do not allow.
        empty = np.zeros(0, np.int64)
        return BatchAudit(batch.num_rows, 0, 0, 0.0, np.zeros(_NUM_KINDS, np.int64), empty, empty, faults)
    rows = _flat(batch)
    trained_spans = np.isin(rows.span_kinds, [int(kind) for kind in TRAINED_KINDS])
    kind_tokens = np.bincount(rows.span_kinds, weights=rows.span_lengths, minlength=_NUM_KINDS).astype(np.int64)
    trained_before = np.concatenate([[0], np.cumsum(rows.masks, dtype=np.int64)])
    document_trained = trained_before[rows.doc_starts + rows.doc_lengths] - trained_before[rows.doc_starts]
    found = [
        *_mask_faults(rows, trained_spans),
        *_stop_faults(rows, facts),
        *_scalar_faults(batch, rows),
        *(("row-over-max-length", int(row)) for row in np.flatnonzero(rows.row_lengths > facts.max_length)),
    ]
    out_of_range = np.flatnonzero((rows.ids < 0) | (rows.ids >= facts.vocab_size))
    found += [("id-out-of-range", row) for row in _rows_of(rows, out_of_range)]
    return BatchAudit(
        num_rows=batch.num_rows,
        num_tokens=len(rows.ids),
        num_trained=int(rows.masks.sum()),
        weight_sum=float(np.sum(batch["weight_sum"].to_numpy())),
        kind_tokens=kind_tokens,
        document_lengths=rows.doc_lengths,
        document_trained=document_trained,
        faults=found,
    )


def _lengths(column: pa.ListArray) -> IntArray:
    lengths: IntArray = np.diff(column.offsets.to_numpy()).astype(np.int64)
    return lengths


def _values(column: pa.ListArray) -> IntArray:
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False))


def _length_faults(batch: pa.RecordBatch) -> list[tuple[str, int]]:
    """Rows whose columns do not belong together (F9)."""
    sizes = _lengths(batch["input_ids"])
    wrong = _lengths(batch["assistant_masks"]) != sizes
    if "weights" in batch.schema.names:
        wrong |= _lengths(batch["weights"]) != sizes
    spans = _lengths(batch["span_starts"])
    wrong |= (_lengths(batch["span_kinds"]) != spans) | (_lengths(batch["span_messages"]) != spans) | (spans == 0)
    docs = _lengths(batch["seq_lengths"])
    for name in ("doc_files", "doc_lines", "doc_samples"):
        wrong |= _lengths(batch[name]) != docs
    totals = np.concatenate([[0], np.cumsum(_values(batch["seq_lengths"]), dtype=np.int64)])
    ends = np.cumsum(docs)
    wrong |= totals[ends] - totals[ends - docs] != sizes
    return [("column-length-mismatch", int(row)) for row in np.flatnonzero(wrong)]


def _flat(batch: pa.RecordBatch) -> _Rows:
    row_lengths = _lengths(batch["input_ids"])
    row_starts = np.cumsum(row_lengths) - row_lengths
    doc_lengths = _values(batch["seq_lengths"]).astype(np.int64)
    spans = _lengths(batch["span_starts"])
    span_rows = np.repeat(np.arange(batch.num_rows), spans)
    span_starts = _values(batch["span_starts"]) + row_starts[span_rows]
    ends = np.append(span_starts[1:], row_lengths.sum())
    return _Rows(
        ids=_values(batch["input_ids"]),
        masks=_values(batch["assistant_masks"]),
        row_starts=row_starts,
        row_lengths=row_lengths,
        doc_starts=np.cumsum(doc_lengths) - doc_lengths,
        doc_lengths=doc_lengths,
        doc_rows=np.repeat(np.arange(batch.num_rows), _lengths(batch["seq_lengths"])),
        span_starts=span_starts,
        span_lengths=ends - span_starts,
        span_kinds=_values(batch["span_kinds"]),
        span_messages=_values(batch["span_messages"]),
        span_rows=span_rows,
    )


def _rows_of(rows: _Rows, positions: IntArray) -> list[int]:
    """The rows of token positions, each once."""
    found = np.unique(np.searchsorted(rows.row_starts, positions, side="right") - 1)
    return [int(row) for row in found]


def _mask_faults(rows: _Rows, trained_spans: npt.NDArray[np.bool_]) -> list[tuple[str, int]]:
    disordered = np.unique(rows.span_rows[rows.span_lengths <= 0]).tolist()
    disordered += np.flatnonzero(~np.isin(rows.row_starts, rows.span_starts)).tolist()
    if disordered:
        return [("span-order", int(row)) for row in sorted(set(disordered))]
    found = [("border-trained", int(row)) for row in np.unique(rows.doc_rows[rows.masks[rows.doc_starts] != 0])]
    crossed = ~np.isin(rows.doc_starts, rows.span_starts)
    found += [("span-crosses-border", int(row)) for row in np.unique(rows.doc_rows[crossed])]
    expected = np.repeat(trained_spans, rows.span_lengths)
    differing = np.flatnonzero(expected != (rows.masks != 0))
    return found + [("mask-span-mismatch", row) for row in _rows_of(rows, differing)]


def _stop_faults(rows: _Rows, facts: AuditFacts) -> list[tuple[str, int]]:
    """Completions that do not end in a trained stop token, and stop tokens that stop no server (B2)."""
    is_stop = rows.span_kinds == SpanKind.STOP
    stops = np.flatnonzero(is_stop)
    known = np.isin(rows.ids[rows.span_starts[stops]], list(facts.stop_ids)) & (rows.span_lengths[stops] == 1)
    found = [("stop-id-unknown", int(row)) for row in np.unique(rows.span_rows[stops[~known]])]
    if facts.unstopped_allowed:
        return found
    completions = np.flatnonzero(rows.span_kinds == SpanKind.COMPLETION)
    following = np.minimum(completions + 1, len(rows.span_kinds) - 1)
    stopped = is_stop[following] & (following > completions)
    stopped &= rows.span_messages[following] == rows.span_messages[completions]
    stopped &= rows.span_rows[following] == rows.span_rows[completions]
    return found + [("stop-untrained", int(row)) for row in np.unique(rows.span_rows[completions[~stopped]])]


def _scalar_faults(batch: pa.RecordBatch, rows: _Rows) -> list[tuple[str, int]]:
    """Rows whose scalar columns are not what their tokens say: the trainer schedules and normalises by them."""
    trained = np.add.reduceat(rows.masks.astype(np.int64), rows.row_starts)
    squares = np.add.reduceat(rows.doc_lengths**2, np.searchsorted(rows.doc_rows, np.arange(batch.num_rows)))
    wrong = (trained != batch["num_trained"].to_numpy()) | (squares != batch["sum_len2"].to_numpy())
    weights = trained.astype(np.float64)
    if "weights" in batch.schema.names:
        weights = np.add.reduceat(_values(batch["weights"]).astype(np.float64), rows.row_starts)
    wrong |= ~np.isclose(weights, batch["weight_sum"].to_numpy(), rtol=1e-6, atol=1e-6)
    return [("scalar-mismatch", int(row)) for row in np.flatnonzero(wrong)]
