"""Move the documents of a token batch into the rows of a plan: token batches and a plan in, shard batches out.

Columnar and bounded: a document costs a few slices of flat buffers, a batch holds about `BATCH_TOKENS` tokens, and no
Python runs per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sftprep.arrow import flat, list_values, lists, numbers, texts
from sftprep.data import TRAINED_KINDS, PackPlan
from sftprep.shards.schema import SHARD_SCHEMA, WEIGHTS_FIELD

BATCH_TOKENS: Final = 1 << 18
"""Tokens of a batch, which the writer makes one row group (64 packs of 4,096): far below 2^31 list children."""

Array = npt.NDArray[Any]

_TRAINED: Final = np.isin(np.arange(128), [int(kind) for kind in TRAINED_KINDS])


def needs_weights(documents: pa.Table) -> bool:
    """Whether any trained span weighs other than 1, so that the data set needs the `weights` column."""
    batches = documents.select(["span_kinds", "span_weights"]).to_batches()
    pairs = ((list_values(batch["span_kinds"]), list_values(batch["span_weights"])) for batch in batches)
    return any(np.any(_TRAINED[kinds] & (weights != 1)) for kinds, weights in pairs)


def distinct_kwargs(documents: pa.Table) -> list[str]:
    """The distinct keyword arguments of the documents (JSON), in order of first appearance: what `doc_kwargs` index."""
    found: dict[str, None] = {}
    for chunk in documents["doc_kwargs"].chunks:
        found.update(dict.fromkeys(pc.unique(chunk).to_pylist()))
    return list(found)


def gather(
    documents: pa.Table, plan: PackPlan, *, weights: bool = False, kwargs: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows of the plan, in order, as batches of `SHARD_SCHEMA` (with `WEIGHTS_FIELD` last where `weights`).

    `kwargs` are the keyword arguments that `doc_kwargs` index; those of the documents alone unless they are given.

    `documents` has TOKEN_BATCH_SCHEMA; memory-mapped chunks are read where they lie. The mask is 1 on spans of
    TRAINED_KINDS except at a document's first token, which nothing predicts. ValueError where a trained span weighs
    other than 1 and `weights` is False: the loss would ignore it.
    """
    if not weights and needs_weights(documents):
        raise ValueError("trained spans weigh other than 1: the data set needs its weights column")
    source = _Source.of(documents, distinct_kwargs(documents) if kwargs is None else kwargs)
    row_tokens = np.concatenate([[0], np.cumsum(source.ids.lengths[plan.order], dtype=np.int64)])[plan.offsets]
    for first, stop in _cut(row_tokens):
        rows = plan.offsets[first : stop + 1]
        yield _batch(source, plan.order[rows[0] : rows[-1]], doc_offsets=rows - rows[0], weights=weights)


def _cut(row_tokens: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of rows of about BATCH_TOKENS tokens; `row_tokens` `[rows + 1]` are the rows' first tokens."""
    numbers = row_tokens[:-1] // BATCH_TOKENS
    borders = np.flatnonzero(np.diff(numbers, prepend=-1, append=-1)) if len(numbers) else np.empty(0, np.int64)
    yield from zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)


@dataclass(frozen=True, slots=True)
class _Lists:
    """A list column by document: which chunk's flat values, where in them, and how many; 12 bytes a document."""

    values: list[Array]
    chunks: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> _Lists:
        offsets = [flat(chunk.offsets) for chunk in column.chunks]
        counts = [len(chunk) for chunk in column.chunks]
        return cls(
            values=[flat(chunk.values) for chunk in column.chunks],
            chunks=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            starts=np.concatenate([np.empty(0, np.int32), *(part[:-1] for part in offsets)]),
            lengths=np.concatenate([np.empty(0, np.int32), *(np.diff(part) for part in offsets)]),
        )

    def take(self, docs: npt.NDArray[np.int64]) -> Array:
        """The values of these documents, end to end."""
        where = zip(
            self.chunks[docs].tolist(),
            self.starts[docs].tolist(),
            (self.starts[docs] + self.lengths[docs]).tolist(),
            strict=True,
        )
        return np.concatenate([self.values[chunk][start:stop] for chunk, start, stop in where])


@dataclass(frozen=True, slots=True)
class _Source:
    """All columns of the documents, ready to be gathered."""

    ids: _Lists
    span_starts: _Lists
    span_kinds: _Lists
    span_messages: _Lists
    span_weights: _Lists
    files: Array
    lines: Array
    samples: Array
    kwargs: Array

    @classmethod
    def of(cls, documents: pa.Table, kwargs: Sequence[str]) -> _Source:
        return cls(
            ids=_Lists.of(documents["input_ids"]),
            span_starts=_Lists.of(documents["span_starts"]),
            span_kinds=_Lists.of(documents["span_kinds"]),
            span_messages=_Lists.of(documents["span_messages"]),
            span_weights=_Lists.of(documents["span_weights"]),
            files=flat(documents["doc_file"]),
            lines=flat(documents["doc_line"]),
            samples=flat(documents["doc_sample"]),
            kwargs=flat(pc.index_in(documents["doc_kwargs"], value_set=texts(kwargs))),
        )


@dataclass(frozen=True, slots=True)
class _Spans:
    """The spans of a batch: first token and token count in the batch, kind, and the trained tokens they hold."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    trained: npt.NDArray[np.bool_]
    num_trained: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int32]
    """Spans a document has, `[docs]`."""


def _spans(source: _Source, docs: npt.NDArray[np.int64], *, doc_starts: npt.NDArray[np.int64]) -> _Spans:
    """`doc_starts` `[docs + 1]`: the documents' first tokens in the batch, and its end."""
    counts = source.span_starts.lengths[docs]
    inner = source.span_starts.take(docs)
    starts = inner + np.repeat(doc_starts[:-1], counts)
    lengths = np.diff(starts, append=doc_starts[-1])
    trained = _TRAINED[source.span_kinds.take(docs)]
    return _Spans(starts, lengths, trained, np.where(trained, lengths - (inner == 0), 0), counts)


def _batch(
    source: _Source, docs: npt.NDArray[np.int64], *, doc_offsets: npt.NDArray[np.int64], weights: bool
) -> pa.RecordBatch:
    """The rows that hold `docs`; row `i` has the documents from `doc_offsets[i]` to the next."""
    lengths = source.ids.lengths[docs].astype(np.int64)
    doc_starts = np.concatenate([[0], np.cumsum(lengths)])
    row_starts = doc_starts[doc_offsets]
    spans = _spans(source, docs, doc_starts=doc_starts)
    span_offsets = np.concatenate([[0], np.cumsum(spans.counts)])[doc_offsets]
    per_row = np.diff(span_offsets)
    row_of_span = np.repeat(np.arange(len(per_row)), per_row)
    span_weights = source.span_weights.take(docs)
    mask = np.repeat(spans.trained, spans.lengths).astype(np.int8)
    mask[doc_starts[:-1]] = 0
    columns = [
        lists(source.ids.take(docs), row_starts),
        lists(mask, row_starts),
        lists(lengths.astype(np.int32), doc_offsets),
        lists((spans.starts - row_starts[row_of_span]).astype(np.int32), span_offsets),
        lists(source.span_kinds.take(docs), span_offsets),
        lists(source.span_messages.take(docs), span_offsets),
        lists(source.files[docs], doc_offsets),
        lists(source.lines[docs], doc_offsets),
        lists(source.samples[docs], doc_offsets),
        lists(source.kwargs[docs], doc_offsets),
        *_scalars(spans, row_of_span=row_of_span, span_weights=span_weights, num_rows=len(per_row)),
        numbers(np.add.reduceat(lengths * lengths, doc_offsets[:-1])),
    ]
    if not weights:
        return pa.RecordBatch.from_arrays(columns, schema=SHARD_SCHEMA)
    token_weights = np.repeat(span_weights, spans.lengths) * mask
    return pa.RecordBatch.from_arrays(
        [*columns, lists(token_weights, row_starts)], schema=SHARD_SCHEMA.append(WEIGHTS_FIELD)
    )


def _scalars(
    spans: _Spans, *, row_of_span: npt.NDArray[np.int64], span_weights: Array, num_rows: int
) -> tuple[pa.Array, pa.Array]:
    """`num_trained` and `weight_sum` of each row."""
    num_trained = np.bincount(row_of_span, weights=spans.num_trained, minlength=num_rows)
    weight_sum = np.bincount(
        row_of_span, weights=spans.num_trained * span_weights.astype(np.float64), minlength=num_rows
    )
    return numbers(num_trained.astype(np.int32)), numbers(weight_sum)
