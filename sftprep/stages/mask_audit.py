"""Count what the shards hold, and check on every row what a shard set promises. Columnar; no loop over tokens.

A row whose columns do not fit together is found by `column-length-mismatch`, `document-empty`, `span-order`,
`span-kind-unknown` or `source-unknown`, and is the only one that is not counted. Every other row is counted and
checked by the other codes below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.arrow import flat, list_lengths, list_values
from sftprep.data import TRAINED_KINDS, SpanKind

IntArray = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Fault = tuple[str, int]
"""A code and a row, counted from the batch's first."""

NUM_KINDS: Final = max(SpanKind) + 1
_IS_TRAINED: Final = np.isin(np.arange(NUM_KINDS), [int(kind) for kind in TRAINED_KINDS])
_OF_A_TURN: Final = _IS_TRAINED | (np.arange(NUM_KINDS) == SpanKind.MASKED)
_WRONGLY_TRAINED: Final = (
    ("scaffold-trained", (SpanKind.HEADER, SpanKind.SEPARATOR)),
    ("other-role-trained", (SpanKind.SYSTEM, SpanKind.USER, SpanKind.TOOL_RESULT, SpanKind.TOOL_SCHEMA)),
    ("context-trained", (SpanKind.HISTORY, SpanKind.WEIGHT_ZERO, SpanKind.MASKED)),
)
_WRONGLY_UNTRAINED: Final = (("completion-untrained", (SpanKind.COMPLETION,)), ("stop-untrained", (SpanKind.STOP,)))


@dataclass(frozen=True, slots=True)
class AuditFacts:
    """What the manifest says and every row is held to."""

    stop_ids: frozenset[int]
    vocab_size: int
    max_length: int
    num_sources: int
    unstopped_allowed: bool = False
    """Whether the set was packed with turns that have no stop token."""


@dataclass(frozen=True, slots=True)
class BatchAudit:
    """Counts of the readable rows of a batch, and the faults of all.

    `kind_tokens` int64 `[sources, kinds]` and `kind_trained` `[kinds]`; of documents `[docs]`: length, trained tokens,
    source and row; of rows `[rows]`: tokens. `turns` and `stopped` count trained turns and those that end in a trained
    stop token; `stops` int64 `[n]` are the ids of the stop tokens.
    """

    num_rows: int
    num_tokens: int
    num_trained: int
    weight_sum: float
    kind_tokens: IntArray
    kind_trained: IntArray
    document_lengths: IntArray
    document_trained: IntArray
    document_sources: IntArray
    document_rows: IntArray
    row_lengths: IntArray
    turns: int
    stopped: int
    stops: npt.NDArray[np.integer[Any]]
    faults: Sequence[Fault]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Readable rows as flat arrays. Positions count from the first token of them all."""

    numbers: IntArray
    ids: npt.NDArray[np.int32]
    masks: npt.NDArray[np.uint8]
    trained_before: npt.NDArray[np.int32]
    """`[tokens + 1]`: trained tokens before each position."""
    row_starts: IntArray
    row_lengths: IntArray
    doc_starts: IntArray
    doc_lengths: IntArray
    doc_rows: IntArray
    doc_sources: IntArray
    span_starts: IntArray
    span_lengths: IntArray
    span_kinds: npt.NDArray[np.int8]
    span_messages: npt.NDArray[np.int32]
    span_docs: IntArray

    def trained_in(self, starts: IntArray, lengths: IntArray) -> IntArray:
        """Trained tokens in each stretch."""
        found: IntArray = self.trained_before[starts + lengths].astype(np.int64) - self.trained_before[starts]
        return found

    def at(self, positions: npt.NDArray[np.integer[Any]]) -> IntArray:
        """The rows of token positions, ascending, each once."""
        return self.numbers[_each_once(np.searchsorted(self.row_starts, positions, side="right") - 1)]

    def of_spans(self, spans: Bools) -> IntArray:
        """The rows of chosen spans, ascending, each once."""
        return self.numbers[_each_once(self.doc_rows[self.span_docs[spans]])]


def _each_once(ascending: npt.NDArray[np.integer[Any]]) -> IntArray:
    """Numbers from 0 on, each once. `np.unique` would import masked arrays, and sort what is sorted."""
    found: IntArray = ascending.astype(np.int64)[np.flatnonzero(np.diff(ascending, prepend=-1))]
    return found


def audit_batch(batch: pa.RecordBatch, *, facts: AuditFacts) -> BatchAudit:
    """Counts and faults of a batch of shard rows."""
    readable, numbers, faults = readable_rows(batch, facts)
    rows = _flat(readable, numbers)
    trained = rows.trained_in(rows.span_starts, rows.span_lengths)
    found = [*_mask_faults(rows, trained, facts), *_id_faults(rows, facts), *_scalar_faults(readable, rows)]
    if "weights" in batch.schema.names:
        found += _weight_faults(readable, rows)
    ends = _turn_ends(rows)
    stopped = rows.span_kinds[ends] == SpanKind.STOP
    found += _stop_faults(rows, ends[~stopped], facts)
    is_stop = rows.span_kinds == SpanKind.STOP
    source_kinds = rows.doc_sources[rows.span_docs] * NUM_KINDS + rows.span_kinds
    return BatchAudit(
        num_rows=len(rows.row_starts),
        num_tokens=len(rows.ids),
        num_trained=int(rows.trained_before[-1]),
        weight_sum=float(np.sum(flat(readable["weight_sum"]))),
        kind_tokens=_sums(source_kinds, rows.span_lengths, facts.num_sources * NUM_KINDS).reshape(-1, NUM_KINDS),
        kind_trained=_sums(rows.span_kinds, trained, NUM_KINDS),
        document_lengths=rows.doc_lengths,
        document_trained=rows.trained_in(rows.doc_starts, rows.doc_lengths),
        document_sources=rows.doc_sources,
        document_rows=rows.numbers[rows.doc_rows],
        row_lengths=rows.row_lengths,
        turns=len(ends),
        stopped=int((stopped & (trained[ends] == rows.span_lengths[ends])).sum()),
        stops=rows.ids[rows.span_starts[is_stop]],
        faults=[*faults, *((code, int(row)) for code, numbers in found for row in numbers)],
    )


def _sums(groups: npt.NDArray[np.integer[Any]], values: IntArray, size: int) -> IntArray:
    sums: IntArray = np.bincount(groups, weights=values, minlength=size).astype(np.int64)
    return sums


def readable_rows(batch: pa.RecordBatch, facts: AuditFacts) -> tuple[pa.RecordBatch, IntArray, list[Fault]]:
    """The rows whose columns can be read side by side (F9), their numbers, and why the others cannot."""
    bad = np.zeros(batch.num_rows, np.bool_)
    faults: list[Fault] = []
    for code, check in (
        ("column-length-mismatch", _mismatched(batch)),
        ("document-empty", _any_in_row(batch["seq_lengths"], list_values(batch["seq_lengths"]) <= 0)),
        ("span-order", _disordered(batch)),
        ("span-kind-unknown", _outside(batch["span_kinds"], NUM_KINDS)),
        ("source-unknown", _outside(batch["doc_files"], facts.num_sources)),
    ):
        faults += [(code, int(row)) for row in np.flatnonzero(check & ~bad)]
        bad |= check
    return batch.filter(pa.array(~bad)) if faults else batch, np.flatnonzero(~bad), faults


def _mismatched(batch: pa.RecordBatch) -> Bools:
    sizes, docs = list_lengths(batch["input_ids"]), list_lengths(batch["seq_lengths"])
    wrong: Bools = list_lengths(batch["assistant_masks"]) != sizes
    if "weights" in batch.schema.names:
        wrong |= list_lengths(batch["weights"]) != sizes
    spans = list_lengths(batch["span_starts"])
    wrong |= spans == 0
    for name in ("span_kinds", "span_messages"):
        wrong |= list_lengths(batch[name]) != spans
    for name in ("doc_files", "doc_lines", "doc_samples", "doc_kwargs"):
        wrong |= list_lengths(batch[name]) != docs
    totals = np.concatenate([[0], np.cumsum(list_values(batch["seq_lengths"]), dtype=np.int64)])
    ends = np.cumsum(docs)
    wrong |= totals[ends] - totals[ends - docs] != sizes
    return wrong


def _any_in_row(column: pa.ListArray, wrong: Bools) -> Bools:
    """Rows that hold a wrong value."""
    found = np.zeros(len(column), np.bool_)
    if wrong.any():
        found[np.repeat(np.arange(len(column)), list_lengths(column))[wrong]] = True
    return found


def _outside(column: pa.ListArray, stop: int) -> Bools:
    values = list_values(column)
    return _any_in_row(column, (values < 0) | (values >= stop))


def _disordered(batch: pa.RecordBatch) -> Bools:
    """Rows whose spans do not begin at 0, do not ascend, or begin after the end."""
    column = batch["span_starts"]
    starts, counts = list_values(column).astype(np.int64), list_lengths(column)
    sizes = np.repeat(list_lengths(batch["input_ids"]), counts)
    is_first = np.zeros(len(starts), np.bool_)
    is_first[(np.cumsum(counts) - counts)[counts > 0]] = True
    before = np.where(is_first, -1, np.roll(starts, 1))
    return _any_in_row(column, (starts <= before) | (starts >= sizes) | (is_first & (starts != 0)))


def _flat(batch: pa.RecordBatch, numbers: IntArray) -> _Rows:
    row_lengths = list_lengths(batch["input_ids"])
    row_starts = np.cumsum(row_lengths) - row_lengths
    masks = list_values(batch["assistant_masks"]).view(np.uint8)
    doc_lengths = list_values(batch["seq_lengths"]).astype(np.int64)
    doc_starts = np.cumsum(doc_lengths) - doc_lengths
    span_starts = list_values(batch["span_starts"]) + np.repeat(row_starts, list_lengths(batch["span_starts"]))
    return _Rows(
        numbers=numbers,
        ids=list_values(batch["input_ids"]),
        masks=masks,
        trained_before=np.concatenate([np.zeros(1, np.int32), np.cumsum(masks, dtype=np.int32)]),
        row_starts=row_starts,
        row_lengths=row_lengths,
        doc_starts=doc_starts,
        doc_lengths=doc_lengths,
        doc_rows=np.repeat(np.arange(batch.num_rows), list_lengths(batch["seq_lengths"])),
        doc_sources=list_values(batch["doc_files"]).astype(np.int64),
        span_starts=span_starts,
        span_lengths=np.diff(span_starts, append=row_lengths.sum()),
        span_kinds=list_values(batch["span_kinds"]),
        span_messages=list_values(batch["span_messages"]),
        span_docs=np.searchsorted(doc_starts, span_starts, side="right") - 1,
    )


def _mask_faults(rows: _Rows, trained: IntArray, facts: AuditFacts) -> Iterator[tuple[str, IntArray]]:
    """Trained where the reason forbids it (A2, A8), untrained where it demands it, trained across a border (F4)."""
    if rows.masks.max(initial=0) > 1:
        yield ("mask-not-binary", rows.at(np.flatnonzero(rows.masks > 1)))
    at_border = rows.masks[rows.doc_starts] != 0
    yield ("border-trained", rows.numbers[_each_once(rows.doc_rows[at_border])])
    crossed = rows.span_starts + rows.span_lengths > (rows.doc_starts + rows.doc_lengths)[rows.span_docs]
    yield ("span-crosses-border", rows.of_spans(crossed))
    yield ("row-over-max-length", rows.numbers[rows.row_lengths > facts.max_length])
    too_many = (trained > 0) & ~_IS_TRAINED[rows.span_kinds]
    # The first token of a document is predicted by nothing, whatever its span.
    owed = rows.span_lengths - (rows.span_starts == rows.doc_starts[rows.span_docs])
    too_few = (trained < owed) & _IS_TRAINED[rows.span_kinds]
    for wrong, rules in ((too_many, _WRONGLY_TRAINED), (too_few, _WRONGLY_UNTRAINED)):
        if wrong.any():
            yield from ((code, rows.of_spans(wrong & np.isin(rows.span_kinds, kinds))) for code, kinds in rules)


def _id_faults(rows: _Rows, facts: AuditFacts) -> Iterator[tuple[str, IntArray]]:
    if rows.ids.min(initial=0) < 0 or rows.ids.max(initial=0) >= facts.vocab_size:
        yield ("id-out-of-range", rows.at(np.flatnonzero((rows.ids < 0) | (rows.ids >= facts.vocab_size))))


def _turn_ends(rows: _Rows) -> IntArray:
    """The last span of each trained turn."""
    own = np.flatnonzero(_OF_A_TURN[rows.span_kinds])
    docs, messages = rows.span_docs[own], rows.span_messages[own]
    is_last = np.ones(len(own), np.bool_)
    is_last[:-1] = (docs[1:] != docs[:-1]) | (messages[1:] != messages[:-1])
    ends: IntArray = own[is_last]
    return ends


def _stop_faults(rows: _Rows, unstopped: IntArray, facts: AuditFacts) -> Iterator[tuple[str, IntArray]]:
    """Turns that do not end in a stop token, and stop tokens that stop no server (B2)."""
    is_stop = rows.span_kinds == SpanKind.STOP
    known = np.isin(rows.ids[rows.span_starts], list(facts.stop_ids)) & (rows.span_lengths == 1)
    yield ("stop-id-unknown", rows.of_spans(is_stop & ~known))
    if not facts.unstopped_allowed:
        yield ("stop-untrained", rows.numbers[_each_once(rows.doc_rows[rows.span_docs[unstopped]])])


def _scalar_faults(batch: pa.RecordBatch, rows: _Rows) -> Iterator[tuple[str, IntArray]]:
    """Rows whose scalar columns are not what their tokens say: the trainer schedules and normalises by them (A5)."""
    trained = rows.trained_in(rows.row_starts, rows.row_lengths)
    squares = _sums(rows.doc_rows, rows.doc_lengths**2, batch.num_rows)
    wrong = (trained != flat(batch["num_trained"])) | (squares != flat(batch["sum_len2"]))
    if "weights" not in batch.schema.names:
        wrong |= ~np.isclose(trained, flat(batch["weight_sum"]), rtol=1e-6, atol=1e-6)
    yield ("scalar-mismatch", rows.numbers[wrong])


def _weight_faults(batch: pa.RecordBatch, rows: _Rows) -> Iterator[tuple[str, IntArray]]:
    weights = list_values(batch["weights"])
    token_rows = np.repeat(np.arange(batch.num_rows), rows.row_lengths)
    sums = np.bincount(token_rows, weights=weights, minlength=batch.num_rows)
    wrong = ~np.isclose(sums, flat(batch["weight_sum"]), rtol=1e-6, atol=1e-6)
    yield ("scalar-mismatch", rows.numbers[wrong])
    yield ("weight-mismatch", rows.at(np.flatnonzero((weights > 0) != (rows.masks != 0))))
