"""Rows of a chunk that have a plan, compiled together: rendered by joining, encoded at once, proven by arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.arrow import lists, numbers, texts
from sftprep.data import TOKEN_BATCH_SCHEMA, TRAINED_KINDS, span_stops
from sftprep.engines.fast import EngineChoice
from sftprep.errors import MaskError
from sftprep.prepare.input_rows import InputRows
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

_TRAINED = np.array([int(kind) for kind in TRAINED_KINDS], dtype=np.int8)


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
    refused: Mapping[int, MaskError] = field(default_factory=dict)
    """What is wrong with each row that cannot be exact, by its place."""


class BatchCompiler:
    """Compiles what has a plan. `choice` encodes, its reference knows what a token is; `table` has a token's bytes."""

    def __init__(self, book: PlanBook, *, choice: EngineChoice, table: TokenTable) -> None:
        self._book = book
        self.choice = choice
        self.table = table
        self._openings: dict[tuple[str, str], tuple[int, npt.NDArray[np.int32]] | None] = {}

    def compile(self, rows: InputRows) -> Replayed:
        """Replay the rows that have a plan; those of which any sample cannot be proven are not among them."""
        candidates: list[Candidate] = []
        refused: dict[int, MaskError] = {}
        for number, found in enumerate(self._book.replay_all(rows)):
            if isinstance(found, MaskError):
                refused[number] = found
            elif found is not None and self._can_prove(found[0]):
                candidates.append(Candidate(number, rows.sources[number], rows.lines[number], *found))
        return replace(self._compiled(candidates), refused=refused)

    def _can_prove(self, plan: RowPlan) -> bool:
        """Whether something cuts every encode before each of its completions."""
        return all(self._opening(turn) is not None for sample in plan.samples for turn in sample.turns)

    def _compiled(self, candidates: Sequence[Candidate]) -> Replayed:
        """Encode and prove; where a sample fails, the rest is proven again without its row."""
        owners = [candidate for candidate in candidates for _ in candidate.plan.samples]
        samples = [sample for candidate in candidates for sample in candidate.plan.samples]
        pieces = [sample.take(owner.values) for owner, sample in zip(owners, samples, strict=True)]
        texts = [b"".join(own) for own in pieces]
        encoded = self.choice.encode_batch(texts)
        ok, spans = prove_batch(self._batch(samples, pieces, texts), encoded, self.table)
        bad: set[int] = set()
        while not ok.all():
            bad |= {owner.number for owner, is_exact in zip(owners, ok, strict=True) if not is_exact}
            kept = [number for number, owner in enumerate(owners) if owner.number not in bad]
            owners, samples = [owners[n] for n in kept], [samples[n] for n in kept]
            pieces, texts = [pieces[n] for n in kept], [texts[n] for n in kept]
            encoded = encoded.only(kept)
            ok, spans = prove_batch(self._batch(samples, pieces, texts), encoded, self.table)
        exact = [candidate for candidate in candidates if candidate.number not in bad]
        return _replayed(exact, (owners, samples), encoded, spans)

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
        if not self.choice.reference.cuts(turn.stop_text):
            return None
        ends = [
            (turn.opening.rfind(token) + len(token), token)
            for token in self.choice.reference.cutting
            if token in turn.opening
        ]
        if not ends:
            return None
        end, token = max(ends)
        (encoded,) = self.choice.reference.encode([token + turn.opening[end:]])
        return len((token + turn.opening[end:]).encode()), encoded.ids


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


def _columns(owners: Sequence[Candidate], samples: Sequence[SamplePlan], of_row: Sequence[int]) -> Iterator[pa.Array]:
    yield numbers(np.array([owner.source for owner in owners], np.int32))
    yield numbers(np.array([owner.line for owner in owners], np.int64))
    yield numbers(np.array(of_row, np.int32))
    yield texts([sample.kwargs for sample in samples])


def token_batch(columns: Sequence[pa.Array], encoded: EncodedTexts, spans: Spans) -> pa.RecordBatch:
    """Of TOKEN_BATCH_SCHEMA; `columns` are those of the documents, from `doc_file` on."""
    of_spans = [lists(own, spans.offsets) for own in (spans.starts, spans.kinds, spans.messages, spans.weights)]
    ids = lists(encoded.ids, encoded.offsets)
    return pa.RecordBatch.from_arrays([ids, *of_spans, *columns], schema=TOKEN_BATCH_SCHEMA)


def _joined(arrays: Sequence[npt.NDArray[Scalar]], dtype: type[Scalar]) -> npt.NDArray[Scalar]:
    return np.concatenate([np.zeros(0, dtype=dtype), *arrays])
