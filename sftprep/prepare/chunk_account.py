"""What is counted of a compiled chunk, by whoever compiled it: all that the parent needs to know of its documents."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sftprep.arrow import flat
from sftprep.data import TRAINED_KINDS, SpanKind, span_stops
from sftprep.prepare.chunk import Chunk, LeftOutRow, RowsRead

Ints32 = npt.NDArray[np.int32]
Ints64 = npt.NDArray[np.int64]

_TRAINED: Final = np.isin(np.arange(len(SpanKind)), [int(kind) for kind in TRAINED_KINDS])


@dataclass(frozen=True, slots=True)
class ChunkAccount:
    """Columns and sums of a chunk; it holds neither tokens nor spans, so that it is small to send and to keep.

    Of documents `[documents]`: how often each is taken, tokens, trained tokens. Of exact rows `[rows]`: tokens of the
    longest document, tokens of all, how often each is taken.
    """

    times: Ints32
    lengths: Ints32
    trained: Ints32
    row_longest: Ints32
    row_tokens: Ints64
    row_times: Ints32
    by_kind: Ints64
    """Tokens by span kind `[kinds]`, with repetition."""
    sums: ExactSums
    kwargs: tuple[str, ...]
    """The distinct keyword arguments of the documents (JSON), in order of first appearance."""
    has_weights: bool
    """Whether a trained span weighs other than 1."""
    left_out: tuple[LeftOutRow, ...]
    classes: Counter[str]
    remarks: Counter[str]
    rendering: Counter[str]
    read: RowsRead

    @classmethod
    def of(cls, chunk: Chunk) -> ChunkAccount:
        """Of what this process has compiled."""
        rows = {name: flat(chunk.exact_rows[name]) for name in chunk.exact_rows.schema.names}
        lengths, trained, by_kind, has_weights = _documents(chunk.documents, chunk.times)
        return cls(
            times=chunk.times.astype(np.int32),
            lengths=lengths,
            trained=trained,
            row_longest=rows["longest"].astype(np.int32),
            row_tokens=rows["tokens"].copy(),
            row_times=rows["times"].astype(np.int32),
            by_kind=by_kind,
            sums=ExactSums.of(rows),
            kwargs=tuple(pc.unique(chunk.documents["doc_kwargs"]).to_pylist()),
            has_weights=has_weights,
            left_out=chunk.left_out,
            classes=chunk.classes,
            remarks=chunk.remarks,
            rendering=chunk.rendering,
            read=chunk.read,
        )


@dataclass(frozen=True, slots=True)
class ExactSums:
    """What the rows of EXACT_ROWS, all of one source, add up to; with repetition but for `num_too_long`."""

    num_documents: int
    num_conversations: int
    num_repeated_tokens: int
    num_too_long: int
    """Rows that are packed in part or in pieces."""
    num_trained_too_long: int
    """Trained tokens of these when they were whole."""

    @classmethod
    def of(cls, rows: dict[str, npt.NDArray[Any]]) -> ExactSums:
        """Of the columns by their names."""
        times, whole = rows["times"], rows["trained_whole"]
        return cls(
            num_documents=int((rows["documents"] * times).sum()),
            num_conversations=int(times.sum()),
            num_repeated_tokens=int((rows["repeated"] * times).sum()),
            num_too_long=int((whole > 0).sum()),
            num_trained_too_long=int((whole * times).sum()),
        )


def _documents(documents: pa.RecordBatch, times: Ints64) -> tuple[Ints32, Ints32, Ints64, bool]:
    """Lengths and trained tokens of documents, tokens by kind, and whether a trained span weighs other than 1."""
    by_kind = np.zeros(len(SpanKind), dtype=np.int64)
    if not documents.num_rows:
        nothing = np.zeros(0, dtype=np.int32)
        return nothing, nothing, by_kind, False
    offsets = flat(documents["span_starts"].offsets)
    starts = flat(documents["span_starts"].values)
    kinds = flat(documents["span_kinds"].values)
    lengths = np.diff(flat(documents["input_ids"].offsets))
    sizes = span_stops(starts, offsets, lengths) - starts
    is_trained = _TRAINED[kinds]
    trained = np.add.reduceat(np.where(is_trained, sizes, 0), offsets[:-1])
    repeated = sizes * np.repeat(times, np.diff(offsets))
    by_kind += np.bincount(kinds, weights=repeated, minlength=len(SpanKind)).astype(np.int64)
    has_weights = bool(np.any(is_trained & (flat(documents["span_weights"].values) != 1)))
    return lengths.astype(np.int32), trained.astype(np.int32), by_kind, has_weights
