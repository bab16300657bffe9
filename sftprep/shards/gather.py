"""Move the documents of a token batch into the rows of a plan: token batches and a plan in, shard batches out.

Columnar and bounded: a document costs a few slices of flat buffers, a batch holds about `BATCH_TOKENS` tokens, and no
Python runs per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sftprep.arrow import flat, list_values, lists, numbers, texts
from sftprep.data import TRAINED_KINDS, PackPlan
from sftprep.shards.list_columns import ListColumns, MappedFile
from sftprep.shards.schema import shard_schema

BATCH_TOKENS: Final = 1 << 18
"""Tokens of a batch, which the writer makes one row group (64 packs of 4,096): far below 2^31 list children."""

_LEAST_SHARD: Final = 1 << 20
_LARGEST_SHARD: Final = 1 << 26
"""Tokens of a shard that nobody chose: 2 to 140 MB, small enough to copy and to check one by one."""

Array = npt.NDArray[Any]

_SPAN_COLUMNS: Final = ("span_starts", "span_kinds", "span_messages", "span_weights")
_TRAINED: Final = np.isin(np.arange(128), [int(kind) for kind in TRAINED_KINDS])


@dataclass(frozen=True, slots=True)
class ShardRows:
    """The rows of one shard: which documents they hold, as in a plan, and which of them are a row group together."""

    plan: PackPlan
    groups: npt.NDArray[np.int64]
    """`[groups + 1]`: the first row of each row group, and the end."""
    num_tokens: int


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


def shard_size(num_tokens: int) -> int:
    """Tokens of a shard where nobody chose: a set of up to a billion tokens has 16 shards at the most.

    Several workers make them side by side, and whoever trains shuffles so many as one. The size follows from the set
    alone, never from who makes it.
    """
    return min(max(-(-num_tokens // 16), _LEAST_SHARD), _LARGEST_SHARD)


def shard_rows(plan: PackPlan, lengths: npt.NDArray[np.integer[Any]], *, shard_tokens: int) -> Iterator[ShardRows]:
    """The shards of a plan, by tokens alone: each ends with the row group with which it has `shard_tokens`.

    `lengths` `[num_documents]` are the token counts of the documents that the plan numbers. A row group has about
    BATCH_TOKENS, and is what is gathered at a time.
    """
    row_tokens = np.concatenate([[0], np.cumsum(lengths[plan.order], dtype=np.int64)])[plan.offsets]
    groups = np.append(_first_with_each(row_tokens), plan.num_packs)
    first = 0
    while first < len(groups) - 1:
        enough = row_tokens[groups[first]] + min(shard_tokens, int(row_tokens[-1]))
        stop = min(int(np.searchsorted(row_tokens[groups], enough)), len(groups) - 1)
        yield _rows_between(plan, groups[first : stop + 1], row_tokens)
        first = stop


def _first_with_each(row_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The rows with which another BATCH_TOKENS begins; `row_tokens` `[rows + 1]` are the rows' first tokens."""
    return np.flatnonzero(np.diff(row_tokens[:-1] // BATCH_TOKENS, prepend=-1))


def _rows_between(plan: PackPlan, groups: npt.NDArray[np.int64], row_tokens: npt.NDArray[np.int64]) -> ShardRows:
    offsets = plan.offsets[groups[0] : groups[-1] + 1]
    part = PackPlan(order=plan.order[offsets[0] : offsets[-1]], offsets=offsets - offsets[0])
    num_tokens = int(row_tokens[groups[-1]] - row_tokens[groups[0]])
    return ShardRows(part, groups - groups[0], num_tokens)


def gather(
    documents: pa.Table, plan: PackPlan, *, weights: bool = False, kwargs: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows of the plan, in order, as batches of `SHARD_SCHEMA` (with `WEIGHTS_FIELD` last where `weights`).

    `kwargs` are the keyword arguments that `doc_kwargs` index; those of the documents alone unless they are given.
    `documents` has TOKEN_BATCH_SCHEMA. ValueError as `Documents.rows`.
    """
    source = Documents.of(documents, distinct_kwargs(documents) if kwargs is None else kwargs)
    for rows in shard_rows(plan, source.lengths, shard_tokens=1 << 62):
        yield from source.rows(rows, weights=weights)


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents that are ready to be gathered into rows: 44 bytes of each. Tokens stay where they lie, be it a file."""

    ids: ListColumns
    spans: ListColumns
    files: Array
    lines: Array
    samples: Array
    kwargs: Array

    @classmethod
    def of(
        cls, documents: pa.Table, kwargs: Sequence[str], *, first_source: int = 0, file: MappedFile | None = None
    ) -> Documents:
        """Of TOKEN_BATCH_SCHEMA; `kwargs` are what `doc_kwargs` index, and sources are numbered from `first_source`.

        `file` is what the documents are mapped from, if they are.
        """

        def let_go(values: Array) -> Array:
            """Pages of one column at a time, of all chunks, are in memory."""
            if file is not None:
                file.release()
            return values

        return cls(
            ids=ListColumns.of(documents, ["input_ids"], file),
            spans=ListColumns.of(documents, _SPAN_COLUMNS, file),
            files=let_go(flat(documents["doc_file"]) + np.int32(first_source)),
            lines=let_go(flat(documents["doc_line"])),
            samples=let_go(flat(documents["doc_sample"])),
            kwargs=let_go(flat(pc.index_in(documents["doc_kwargs"], value_set=texts(kwargs)))),
        )

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each document, int32 `[documents]`."""
        return self.ids.lengths

    def rows(self, rows: ShardRows, *, weights: bool) -> Iterator[pa.RecordBatch]:
        """The rows in order as batches of `SHARD_SCHEMA` (with `WEIGHTS_FIELD` last where `weights`), one a row group.

        The mask is 1 on spans of TRAINED_KINDS except at a document's first token, which nothing predicts. ValueError
        where a trained span weighs other than 1 and `weights` is False: the loss would ignore it.
        """
        columns = self.spans.take_short(rows.plan.order)
        span_offsets = np.concatenate([[0], np.cumsum(self.spans.lengths[rows.plan.order])])
        for first, stop in pairwise(rows.groups.tolist()):
            offsets = rows.plan.offsets[first : stop + 1]
            docs = rows.plan.order[offsets[0] : offsets[-1]]
            spans = [column[span_offsets[offsets[0]] : span_offsets[offsets[-1]]] for column in columns]
            yield _batch(self, docs, doc_offsets=offsets - offsets[0], columns=spans, weights=weights)


@dataclass(frozen=True, slots=True)
class _Spans:
    """The spans of a batch: first token and token count in the batch, and the trained tokens they hold."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int8]
    messages: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    trained: npt.NDArray[np.bool_]
    num_trained: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int32]
    """Spans a document has, `[docs]`."""


def _spans(columns: list[Array], counts: npt.NDArray[np.int32], *, doc_starts: npt.NDArray[np.int64]) -> _Spans:
    """`counts` `[docs]` of spans; `doc_starts` `[docs + 1]`: the documents' first tokens in the batch, and its end."""
    inner, kinds, messages, weights = columns
    starts = inner + np.repeat(doc_starts[:-1], counts)
    lengths = np.diff(starts, append=doc_starts[-1])
    trained = _TRAINED[kinds]
    num_trained = np.where(trained, lengths - (inner == 0), 0)
    return _Spans(starts, lengths, kinds, messages, weights, trained, num_trained, counts)


def _batch(
    source: Documents,
    docs: npt.NDArray[np.int64],
    *,
    doc_offsets: npt.NDArray[np.int64],
    columns: list[Array],
    weights: bool,
) -> pa.RecordBatch:
    """The rows that hold `docs`, whose spans are `columns`; row `i` has those from `doc_offsets[i]` to the next."""
    lengths = source.lengths[docs].astype(np.int64)
    doc_starts = np.concatenate([[0], np.cumsum(lengths)])
    row_starts = doc_starts[doc_offsets]
    spans = _spans(columns, source.spans.lengths[docs], doc_starts=doc_starts)
    if not weights and np.any(spans.trained & (spans.weights != 1)):
        raise ValueError("trained spans weigh other than 1: the data set needs its weights column")
    span_offsets = np.concatenate([[0], np.cumsum(spans.counts)])[doc_offsets]
    per_row = np.diff(span_offsets)
    row_of_span = np.repeat(np.arange(len(per_row)), per_row)
    mask = np.repeat(spans.trained, spans.lengths).astype(np.int8)
    mask[doc_starts[:-1]] = 0
    made = [
        lists(source.ids.take_long(docs), row_starts),
        lists(mask, row_starts),
        lists(lengths.astype(np.int32), doc_offsets),
        lists((spans.starts - row_starts[row_of_span]).astype(np.int32), span_offsets),
        lists(spans.kinds, span_offsets),
        lists(spans.messages, span_offsets),
        lists(source.files[docs], doc_offsets),
        lists(source.lines[docs], doc_offsets),
        lists(source.samples[docs], doc_offsets),
        lists(source.kwargs[docs], doc_offsets),
        *_scalars(spans, row_of_span=row_of_span, num_rows=len(per_row)),
        numbers(np.add.reduceat(lengths * lengths, doc_offsets[:-1])),
    ]
    if weights:
        made.append(lists(np.repeat(spans.weights, spans.lengths) * mask, row_starts))
    return pa.RecordBatch.from_arrays(made, schema=shard_schema(weights=weights))


def _scalars(spans: _Spans, *, row_of_span: npt.NDArray[np.int64], num_rows: int) -> tuple[pa.Array, pa.Array]:
    """`num_trained` and `weight_sum` of each row."""
    num_trained = np.bincount(row_of_span, weights=spans.num_trained, minlength=num_rows)
    weight_sum = np.bincount(
        row_of_span, weights=spans.num_trained * spans.weights.astype(np.float64), minlength=num_rows
    )
    return numbers(num_trained.astype(np.int32)), numbers(weight_sum)
