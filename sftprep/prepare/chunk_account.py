"""What is counted of a compiled chunk, by whoever compiled it: all that the parent needs to know of its documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sftprep.arrow import flat
from sftprep.data import TRAINED_KINDS, SpanKind, span_stops
from sftprep.prepare.chunk import Chunk, LeftOutRow, RowsRead
from sftprep.prepare.left_out import left_out_json

Ints32 = npt.NDArray[np.int32]
Ints64 = npt.NDArray[np.int64]

_TRAINED: Final = np.isin(np.arange(len(SpanKind)), [int(kind) for kind in TRAINED_KINDS])


@dataclass(frozen=True, slots=True)
class ChunkAccount:
    """Columns and sums of a chunk; it holds neither tokens nor spans, so that it is small to send and to keep.

    Of documents `[documents]`: how often each is taken, tokens, trained tokens. Of exact rows `[rows]`, too long ones
    last: tokens of the longest document, tokens of all, how often each is taken.
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
    left_out: LeftOutSums
    left_out_lines: npt.NDArray[np.uint8]
    """What `left_out.jsonl` says of them."""
    classes: Counter[str]
    remarks: Counter[str]
    rendering: Counter[str]
    read: RowsRead

    @classmethod
    def of(cls, chunk: Chunk) -> ChunkAccount:
        """Of what this process has compiled."""
        rows = {name: flat(chunk.exact_rows[name]) for name in chunk.exact_rows.schema.names}
        lengths, trained, by_kind, has_weights = _documents(chunk.documents, chunk.times)
        too_long = [row for row in chunk.left_out if row.longest and not row.is_partial]
        return cls(
            times=chunk.times.astype(np.int32),
            lengths=lengths,
            trained=trained,
            row_longest=_joined(rows["longest"], [row.longest for row in too_long], np.int32),
            row_tokens=_joined(rows["tokens"], [row.num_tokens for row in too_long], np.int64),
            row_times=_joined(rows["times"], [row.times for row in too_long], np.int32),
            by_kind=by_kind,
            sums=ExactSums.of(rows),
            kwargs=tuple(pc.unique(chunk.documents["doc_kwargs"]).to_pylist()),
            has_weights=has_weights,
            left_out=LeftOutSums.of(chunk.left_out),
            left_out_lines=np.frombuffer(b"".join(map(left_out_json, chunk.left_out)), np.uint8),
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


@dataclass(slots=True)
class LeftOutSums:
    """What rows that are left out add up to; those of which only turns are count in `num_trained_lost` alone."""

    num_rows: int = 0
    num_taken: int = 0
    """With repetition."""
    by_code: Counter[str] = field(default_factory=Counter)
    hints: dict[str, str] = field(default_factory=dict)
    """By code, of the first row that has it."""
    num_tokens: int = 0
    """Tokens of rows that are exact and too long, with repetition."""
    longest: int = 0
    num_too_long: int = 0
    num_trained: int = 0
    """Trained tokens of whole rows that are too long, with repetition."""
    num_trained_lost: int = 0
    """Those, and those of turns."""

    @classmethod
    def of(cls, rows: Iterable[LeftOutRow]) -> LeftOutSums:
        """Of a chunk's, in their order."""
        sums = cls()
        for row in rows:
            sums.add(row)
        return sums

    def add(self, row: LeftOutRow) -> None:
        """Count one row more."""
        self.num_trained_lost += row.num_trained * row.times
        if row.is_partial:
            return
        self.num_rows += 1
        self.num_taken += row.times
        self.by_code[row.code] += 1
        self.hints.setdefault(row.code, row.findings[0].hint)
        self.num_tokens += row.num_tokens * row.times
        self.longest = max(self.longest, row.longest)
        self.num_too_long += row.longest > 0
        self.num_trained += row.num_trained * row.times


def _joined(values: Ints64, more: Sequence[int], kind: type[np.integer[Any]]) -> npt.NDArray[Any]:
    return np.concatenate([values, np.array(more, dtype=np.int64)]).astype(kind)


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
