"""Rows of a chunk that have a plan, compiled together: rendered by joining, encoded at once, proven by arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.data import TOKEN_BATCH_SCHEMA, TRAINED_KINDS, Conversation, Document, span_stops
from sftprep.engines.fast import BatchEngine, EngineChoice
from sftprep.errors import DataError, EngineDiffersError
from sftprep.prepare.chunk import InputRow
from sftprep.prepare.plans import PlanBook
from sftprep.stages.encode_batch import (
    Batch,
    EncodedTexts,
    Spans,
    TokenTable,
    TurnBorders,
    flat_offsets,
    prove_batch,
)
from sftprep.stages.replay import RowPlan, SamplePlan, TurnPlan

Scalar = TypeVar("Scalar", bound=np.generic)

_ENCODED_AGAIN: Final = 256
_COMPILED_AGAIN: Final = 1024
"""One replayed row in so many is encoded again by the reference, and one compiled again without its plan."""

_TRAINED = np.array([int(kind) for kind in TRAINED_KINDS], dtype=np.int8)


class RowDocuments(Protocol):
    """What compiling a row gives."""

    @property
    def documents(self) -> Sequence[Document]:
        """Its documents."""


class Candidate(NamedTuple):
    """A row that has a plan: its place among the rows, its source's number and its line."""

    number: int
    source: int
    line: int
    plan: RowPlan
    values: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class ReplayedRow:
    """A row that is exact: the places of its documents in `Replayed.documents`, and tokens of each."""

    plan: RowPlan
    documents: range
    lengths: Sequence[int]
    trained: Sequence[int]


@dataclass(frozen=True, slots=True)
class Replayed:
    """Rows of a chunk by their place, and their documents (TOKEN_BATCH_SCHEMA)."""

    rows: dict[int, ReplayedRow]
    documents: pa.RecordBatch


class BatchCompiler:
    """Compiles what has a plan. `choice` encodes, its reference knows what a token is; `table` has a token's bytes."""

    def __init__(self, book: PlanBook, *, choice: EngineChoice, table: TokenTable) -> None:
        self._book = book
        self._choice = choice
        self._table = table
        self._openings: dict[tuple[str, str], tuple[int, npt.NDArray[np.int32]] | None] = {}

    @property
    def engine(self) -> BatchEngine:
        """The engine that encodes now."""
        return self._choice.engine

    def compile(self, rows: Sequence[InputRow]) -> Replayed:
        """Replay the rows that have a plan; those of which any sample cannot be proven are not among them."""
        found = (self._candidate(number, row) for number, row in enumerate(rows))
        return self._compiled([candidate for candidate in found if candidate is not None])

    def check(
        self, rows: Sequence[InputRow], replayed: Replayed, compile_row: Callable[[Conversation], RowDocuments]
    ) -> int:
        """Encode a sample of replayed rows again, compile a smaller one without plans; how many were checked.

        Raises:
            EngineDiffersError: the engine gave other ids than the reference.
            DataError: `replay-differs` where a plan made another document than the template.
        """
        encoded = [number for number in replayed.rows if _is_drawn(rows[number], one_in=_ENCODED_AGAIN)]
        for number in encoded:
            for document in replayed.rows[number].documents:
                self._check_ids(rows[number], replayed.documents["input_ids"][document].values)
        for number in encoded:
            conversation = rows[number].conversation
            if conversation is not None and _is_drawn(rows[number], one_in=_COMPILED_AGAIN):
                refuse_other(rows[number], replayed, replayed.rows[number], compile_row(conversation))
        return len(encoded)

    def _check_ids(self, row: InputRow, ids: pa.Array) -> None:
        # The bytes of the ids are those of the text: that was proven.
        text = b"".join(self._table.pieces.take(ids).to_pylist())
        if not np.array_equal(self._choice.reference.encode_batch([text]).ids, ids.to_numpy()):
            raise EngineDiffersError(
                f"{self.engine.name} gives other ids than the reference",
                code="engine-differs",
                place=str(row.address),
                hint="--tokenizer-engine reference",
            )

    def _candidate(self, number: int, row: InputRow) -> Candidate | None:
        """The row as a candidate, if it has a plan that this tokenizer can prove."""
        found = None if row.conversation is None else self._book.replay(row.conversation)
        if found is None or any(self._opening(turn) is None for sample in found[0].samples for turn in sample.turns):
            return None
        return Candidate(number, row.source, row.address.line, *found)

    def _compiled(self, candidates: Sequence[Candidate]) -> Replayed:
        """Encode and prove; where a sample fails, the rest is done again without its row."""
        owners = [candidate for candidate in candidates for _ in candidate.plan.samples]
        samples = [sample for candidate in candidates for sample in candidate.plan.samples]
        pieces = [sample.take(owner.values) for owner, sample in zip(owners, samples, strict=True)]
        texts = [b"".join(own) for own in pieces]
        encoded = self._choice.encode_batch(texts)
        ok, spans = prove_batch(self._batch(samples, pieces, texts), encoded, self._table)
        if not ok.all():
            bad = {owner.number for owner, is_exact in zip(owners, ok, strict=True) if not is_exact}
            return self._compiled([candidate for candidate in candidates if candidate.number not in bad])
        return _replayed(candidates, (owners, samples), encoded, spans)

    def _batch(self, samples: Sequence[SamplePlan], pieces: Sequence[Sequence[bytes]], texts: Sequence[bytes]) -> Batch:
        first = flat_offsets([sample.num_pieces for sample in samples])
        counts = [len(sample.starts) for sample in samples]
        starts = _joined([sample.starts for sample in samples], np.int64)
        return Batch(
            text=b"".join(texts),
            sample_bytes=np.array([len(text) for text in texts], dtype=np.int64),
            piece_bytes=np.array([len(piece) for own in pieces for piece in own], dtype=np.int64),
            segments=starts + np.repeat(first[:-1], counts),
            kinds=_joined([sample.kinds for sample in samples], np.int8),
            messages=_joined([sample.messages for sample in samples], np.int32),
            weights=_joined([sample.weights for sample in samples], np.float32),
            segment_offsets=flat_offsets(counts),
            turns=self._turns(samples, first),
        )

    def _turns(self, samples: Sequence[SamplePlan], first: npt.NDArray[np.int64]) -> TurnBorders:
        base = [int(first[number]) for number, sample in enumerate(samples) for _ in sample.turns]
        owner = [number for number, sample in enumerate(samples) for _ in sample.turns]
        turns = [turn for sample in samples for turn in sample.turns]
        openings = [self._opening(turn) or (0, np.zeros(0, np.int32)) for turn in turns]
        shift = np.array(base, dtype=np.int64)
        return TurnBorders(
            sample=np.array(owner, dtype=np.int64),
            start=shift + np.array([turn.start for turn in turns], dtype=np.int64),
            stop_start=shift + np.array([turn.stop_start for turn in turns], dtype=np.int64),
            stop=shift + np.array([turn.stop for turn in turns], dtype=np.int64),
            opened=np.array([size for size, _ in openings], dtype=np.int64),
            opening=_joined([ids for _, ids in openings], np.int32),
            opening_offsets=flat_offsets([len(ids) for _, ids in openings]),
        )

    def _opening(self, turn: TurnPlan) -> tuple[int, npt.NDArray[np.int32]] | None:
        """Bytes and ids from the last token that cuts on to the completion; None where nothing cuts there."""
        key = (turn.opening, turn.stop_text)
        if key not in self._openings:
            self._openings[key] = self._found_opening(turn)
        return self._openings[key]

    def _found_opening(self, turn: TurnPlan) -> tuple[int, npt.NDArray[np.int32]] | None:
        if not self._choice.reference.cuts(turn.stop_text):
            return None
        ends = [
            (turn.opening.rfind(token) + len(token), token)
            for token in self._choice.reference.cutting
            if token in turn.opening
        ]
        if not ends:
            return None
        end, token = max(ends)
        (encoded,) = self._choice.reference.encode([token + turn.opening[end:]])
        return len((token + turn.opening[end:]).encode()), encoded.ids


def _is_drawn(row: InputRow, *, one_in: int) -> bool:
    """Whether a row is in the sample: by its line alone, so that it is the same rows in every run."""
    return (row.address.line * 2654435761 >> 7) % one_in == 0


def refuse_other(row: InputRow, replayed: Replayed, known: ReplayedRow, compiled: RowDocuments) -> None:
    """DataError `replay-differs` where a row was not replayed as the documents that it was compiled to."""
    own = replayed.documents.slice(known.documents.start, len(known.documents))
    spans = {"span_starts": "start", "span_kinds": "kind", "span_messages": "message", "span_weights": "weight"}
    documents = compiled.documents
    expected = {
        column: [[float(getattr(s, name)) for s in d.spans] for d in documents] for column, name in spans.items()
    }
    expected["input_ids"] = [document.ids.tolist() for document in documents]
    if any(own[column].to_pylist() != values for column, values in expected.items()):
        raise DataError(
            "the row's plan makes another document of it than the template: a fault of sftprep's own",
            code="replay-differs",
            place=str(row.address),
            hint="report it with this row; --no-plans packs without plans",
        )


def _replayed(
    candidates: Sequence[Candidate],
    planned: tuple[Sequence[Candidate], Sequence[SamplePlan]],
    encoded: EncodedTexts,
    spans: Spans,
) -> Replayed:
    owners, samples = planned
    lengths = np.diff(encoded.offsets)
    stops = span_stops(spans.starts, spans.offsets, lengths)
    sizes = np.where(np.isin(spans.kinds, _TRAINED), stops - spans.starts, 0)
    trained = np.add.reduceat(sizes, spans.offsets[:-1]).tolist() if len(sizes) else []
    counts = lengths.tolist()
    rows: dict[int, ReplayedRow] = {}
    done = 0
    for candidate in candidates:
        own = range(done, done + len(candidate.plan.samples))
        rows[candidate.number] = ReplayedRow(
            candidate.plan, own, counts[own.start : own.stop], trained[own.start : own.stop]
        )
        done = own.stop
    numbers = [number for candidate in candidates for number in range(len(candidate.plan.samples))]
    return Replayed(rows, token_batch(list(_columns(owners, samples, numbers)), encoded, spans))


def _columns(owners: Sequence[Candidate], samples: Sequence[SamplePlan], numbers: Sequence[int]) -> Iterator[pa.Array]:
    yield pa.array([owner.source for owner in owners], pa.int32())
    yield pa.array([owner.line for owner in owners], pa.int64())
    yield pa.array(numbers, pa.int32())
    yield pa.array([sample.kwargs for sample in samples], pa.string())


def token_batch(columns: Sequence[pa.Array], encoded: EncodedTexts, spans: Spans) -> pa.RecordBatch:
    """Of TOKEN_BATCH_SCHEMA; `columns` are those of the documents, from `doc_file` on."""
    offsets, span_offsets = (pa.array(o.astype(np.int32)) for o in (encoded.offsets, spans.offsets))
    values = (spans.starts, spans.kinds, spans.messages, spans.weights)
    lists = [pa.ListArray.from_arrays(span_offsets, pa.array(value)) for value in values]
    ids = pa.ListArray.from_arrays(offsets, pa.array(encoded.ids))
    return pa.RecordBatch.from_arrays([ids, *lists, *columns], schema=TOKEN_BATCH_SCHEMA)


def _joined(arrays: Sequence[npt.NDArray[Scalar]], dtype: type[Scalar]) -> npt.NDArray[Scalar]:
    return np.concatenate([np.zeros(0, dtype=dtype), *arrays])
