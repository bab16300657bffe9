"""Rendered samples of one conversation as plans for all conversations of its shape, and what a plan makes of them.

A plan is a list of pieces, of which each is the template's or a field, cut so that every border of a segment and of a
turn lies between two. A conversation whose texts answer the guards as the first one's did is rendered by joining them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sftprep.data import TRAINED_KINDS, Sample, SpanKind
from sftprep.errors import MaskError
from sftprep.templates.guarded import Guarded
from sftprep.templates.symbolic import SymbolicStr
from sftprep.templates.symbolic_tracer import SymbolicTracer
from sftprep.templates.symbols import Field, OpaqueError


class TurnPlan(NamedTuple):
    """A trained turn, in pieces: its completion is `[start, stop)`, its stop token the pieces from `stop_start` on.

    `opening` is what the template writes right before the completion, as far back as nothing else is written.
    """

    start: int
    stop_start: int
    stop: int
    opening: str
    stop_text: str


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """One sample: `take` picks its pieces from a row's values.

    `starts`, the number of the piece at which each begins, `kinds`, `messages` and `weights` are of its segments:
    int64, int8, int32, float32 `[segments]`. `written` is what the template writes, with a null character for a field.
    """

    take: Callable[[Sequence[bytes]], tuple[bytes, ...]]
    num_pieces: int
    starts: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int8]
    messages: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    turns: tuple[TurnPlan, ...]
    kwargs: str
    written: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is wrong with every conversation of one shape that answers as the first one did."""

    guarded: Guarded
    error: MaskError

    def of_fields(self, _: Sequence[bytes]) -> MaskError:
        """What is wrong with a conversation."""
        return self.error


@dataclass(frozen=True, slots=True)
class RowPlan:
    """The samples of a conversation of one shape, its fields' texts and then `words` being what they take from."""

    guarded: Guarded
    words: tuple[bytes, ...]
    num_written: int
    """Fields that are written; the others are only asked."""
    samples: tuple[SamplePlan, ...]
    classes: Mapping[str, int]
    remarks: Mapping[str, int]

    def of_fields(self, fields: Sequence[bytes]) -> tuple[RowPlan, list[bytes]]:
        """The plan and what its samples are made of, `fields` being the fields' texts in UTF-8."""
        return self, [*fields[: self.num_written], *self.words]


def plan_row(
    samples: Sequence[Sample],
    tracer: SymbolicTracer,
    *,
    counts: tuple[Mapping[str, int], Mapping[str, int]],
    recall: Recall | None = None,
) -> RowPlan:
    """The plan of a conversation that was rendered symbolically; `counts` are its classes and remarks.

    `recall` is given each sample and what cuts it.

    Raises:
        OpaqueError: a border lies within a field, or a turn has no stop token.
    """
    fields: dict[Field, int] = {}
    words: dict[bytes, int] = {}
    planned = []
    for sample in samples:
        cut = cut_sample(sample) if recall is None else recall(sample, partial(cut_sample, sample))
        # Words are counted from the end, as it is not known yet how many fields stand before them.
        places = [
            words.setdefault(piece, -1 - len(words))
            if isinstance(piece, bytes)
            else fields.setdefault(piece, len(fields))
            for piece in cut.pieces
        ]
        planned.append(replace(cut.plan, take=_taking(places)))
    return RowPlan(
        guarded=Guarded.of(tuple(fields), tracer.guards),
        words=tuple(reversed(words)),
        num_written=len(fields),
        samples=tuple(planned),
        classes=counts[0],
        remarks=counts[1],
    )


def _taking(places: Sequence[int]) -> Callable[[Sequence[bytes]], tuple[bytes, ...]]:
    if len(places) == 1:
        return lambda values: (values[places[0]],)
    return itemgetter(*places)


def plan_refusal(error: MaskError, tracer: SymbolicTracer) -> Refusal:
    """The plan of a conversation that cannot be exact, as its symbolic render says."""
    return Refusal(Guarded.of((), tracer.guards), error)


class Cut(NamedTuple):
    """A sample cut at its borders: each piece a field or a word of the template, and its plan but for `take`."""

    pieces: list[Field | bytes]
    plan: SamplePlan


Recall = Callable[[Sample, Callable[[], Cut]], Cut]
"""What is known of the very sample; else what is made."""


@dataclass(slots=True)
class _Pieces:
    """The pieces of a text so far, which is cut at its borders, and where it goes on."""

    text: str
    borders: Sequence[int]
    pieces: list[Field | bytes]
    texts: list[str | None]
    """Of the template's; None for fields."""
    at: dict[int, int]
    """Position in the text → number of the piece that begins there."""
    position: int = 0
    num_borders: int = 1
    """Those up to the position."""

    def add_words(self, stop: int) -> None:
        """Add the template's words up to a position, cut at the borders among them."""
        begin, number, borders = self.position, self.num_borders, self.borders
        while begin < stop:
            end = min(borders[number], stop)
            word = self.text[begin:end]
            self.at[begin] = len(self.pieces)
            self.pieces.append(word.encode())
            self.texts.append(word)
            number += borders[number] == end
            begin = end
        self.position, self.num_borders = begin, number

    def add_field(self, field: Field, span: tuple[int, int]) -> None:
        """Add the words before a field, and the field. OpaqueError where a border lies within it."""
        start, stop = span
        self.add_words(start)
        if self.borders[self.num_borders] < stop:
            raise OpaqueError("a turn or a segment begins within a field")
        self.at[start] = len(self.pieces)
        self.pieces.append(field)
        self.texts.append(None)
        self.position, self.num_borders = stop, self.num_borders + (self.borders[self.num_borders] == stop)


def cut_sample(sample: Sample) -> Cut:
    """The pieces of a symbolic sample. OpaqueError as `plan_row`."""
    text = sample.text
    if not isinstance(text, SymbolicStr):
        raise OpaqueError("a sample is not symbolic")
    borders = {0, str.__len__(text)}
    for segment in sample.segments:
        borders |= {segment.start, segment.stop}
    for turn in sample.turns:
        borders |= {turn.start, turn.stop}
    # The last border is beyond the text, where a field without a character may end it.
    found = _Pieces(str.__str__(text), [*sorted(borders), str.__len__(text) + 1], [], [], {})
    fields = text.tracer.fields
    position = 0
    for length, source, _ in text.runs:
        if source in fields:
            found.add_field(fields[source], (position, position + length))
        position += length
    found.add_words(position)
    found.at[position] = len(found.pieces)
    return Cut(found.pieces, _finished(sample, found))


def _finished(sample: Sample, found: _Pieces) -> SamplePlan:
    segments = [segment for segment in sample.segments if segment.start < segment.stop]
    weights = {turn.message: turn.weight for turn in sample.turns}
    trained = [weights[s.message] if s.kind in TRAINED_KINDS else 0.0 for s in segments]
    return SamplePlan(
        take=tuple,
        num_pieces=len(found.pieces),
        starts=np.array([found.at[s.start] for s in segments], dtype=np.int64),
        kinds=np.array([int(s.kind) for s in segments], dtype=np.int8),
        messages=np.array([s.message for s in segments], dtype=np.int32),
        weights=np.array(trained, dtype=np.float32),
        turns=tuple(_plan_turns(sample, found)),
        kwargs=json.dumps(sample.template_kwargs, sort_keys=True),
        written="".join("\0" if text is None else text for text in found.texts),
    )


def _plan_turns(sample: Sample, found: _Pieces) -> list[TurnPlan]:
    stops = {s.stop: s.start for s in sample.segments if s.kind is SpanKind.STOP}
    turns: list[TurnPlan] = []
    for turn in sample.turns:
        if turn.stop not in stops:
            raise OpaqueError("a turn has no stop token")
        start, stop_start, stop = (found.at[p] for p in (turn.start, stops[turn.stop], turn.stop))
        before = start
        while before and found.texts[before - 1] is not None:
            before -= 1
        opening, stop_text = ("".join(filter(None, found.texts[a:b])) for a, b in ((before, start), (stop_start, stop)))
        turns.append(TurnPlan(start, stop_start, stop, opening, stop_text))
    return turns
