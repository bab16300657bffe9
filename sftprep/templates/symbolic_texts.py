"""What a template wrote, without the texts of the conversation that it was asked with; and the same with another's."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, NamedTuple

from sftprep.errors import TemplateError
from sftprep.templates.environment import Mark
from sftprep.templates.runs import Run, new_tuple
from sftprep.templates.symbolic_session import Keys, SymbolicSession
from sftprep.templates.symbolic_tracer import Part
from sftprep.templates.symbols import Field, Guard, OpaqueError
from sftprep.templates.trace import TracedStr


class Constant(NamedTuple):
    """A run that is the same for all: of the template (`source` < 0), or of a text that is part of the shape."""

    text: str
    source: int
    message: int = -1
    keys: Keys = ()
    offset: int = 0
    whole: str = ""


Piece = Field | Constant


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """What the template writes before its ending where the guards have these answers, or raises.

    That is the first `count` of `pieces`, which are those of a longer conversation. Opaque where there is neither.
    """

    guards: Mapping[Guard, Any]
    pieces: Sequence[Piece] | None = None
    count: int = 0
    error: TemplateError | None = None
    ends: Sequence[tuple[int, Mark]] = ()
    """Of the passes, where it was just rendered."""


def pieces_of(session: SymbolicSession, text: TracedStr) -> list[Piece]:
    """The pieces of a text. OpaqueError where it holds a part of a field."""
    tracer = session.tracer
    pieces: list[Piece] = []
    position = 0
    for run in text.runs:
        shown = str.__getitem__(text, slice(position, position + run.length))
        position += run.length
        if tracer.is_symbol(run):
            if run.offset != 0 or run.length != len(tracer.sources[run.source].text):
                raise OpaqueError("a part of a field is written")
            pieces.append(tracer.fields[run.source])
        elif run.source < 0:
            pieces.append(new_tuple(Constant, (shown, run.source, -1, (), 0, "")))
        else:
            message, keys = session.keys_of(run.source)
            pieces.append(Constant(shown, 0, message, keys, run.offset, tracer.sources[run.source].text))
    return pieces


def ends_of(text: TracedStr, marks: Sequence[tuple[int, Mark]]) -> list[tuple[int, Mark]]:
    """The number of pieces at the end of each pass of the loop over messages where no piece goes on, and its mark."""
    ends = list(accumulate((run.length for run in text.runs), initial=0))
    counts = [(bisect_left(ends, position), position, mark) for position, mark in marks if mark.message >= 0]
    return [(count, mark) for count, position, mark in counts if ends[count] == position]


def bodies(
    pieces: Sequence[Piece], guards: Mapping[Guard, Any], ends: Sequence[tuple[int, Mark]]
) -> Iterator[tuple[int, Body]]:
    """The number of messages and the body of each beginning of a conversation that one render of it tells.

    A pass of the loop tells it where nothing was read of a later message before it ended.
    """
    for count, mark in ends:
        if mark.has_read == mark.message:
            yield mark.message + 1, Body(dict(islice(guards.items(), mark.num_guards)), pieces, count)


@dataclass(slots=True)
class Builder:
    """Writes beginnings of a list of pieces with the texts of a conversation; each piece is looked up once."""

    session: SymbolicSession
    pieces: Sequence[Piece]
    texts: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    """Fields, and the words before each, joined."""
    closed: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    """For each number of pieces, how many parts they end in, and the first piece of the words that no field ends."""

    def text(self, count: int, ending: Sequence[Piece]) -> TracedStr:
        """The first pieces, and then those of an ending, which has words only."""
        for piece in self.pieces[len(self.texts) : count]:
            self._add(piece)
        last = [self._made(piece) for piece in ending]
        num_parts, words_from = self.closed[count]
        tracer = self.session.tracer
        whole = "".join([*self.texts[:count], *(text for text, _ in last)])
        made = TracedStr.of(tracer, whole, (*self.runs[:count], *(run for _, run in last)))
        words = "".join([*self.texts[words_from:count], *(text for text, _ in last)])
        tracer.parts[id(made)] = (made, [*self.parts[:num_parts], *([(-1, words)] if words else [])])
        return made

    def _add(self, piece: Piece) -> None:
        text, run = self._made(piece)
        num_parts, words_from = self.closed[-1]
        if isinstance(piece, Field):
            words = "".join(self.texts[words_from:])
            self.parts += [(-1, words)] if words else []
            self.parts.append((run.source, text))
            num_parts, words_from = len(self.parts), len(self.texts) + 1
        self.texts.append(text)
        self.runs.append(run)
        self.closed.append((num_parts, words_from))

    def _made(self, piece: Piece) -> tuple[str, Run]:
        session = self.session
        if isinstance(piece, Field):
            source = session.source_of(piece)
            text = session.tracer.sources[source].text
            return text, new_tuple(Run, (len(text), source, 0))
        source = piece.source if piece.source < 0 else session.constant(piece.message, piece.keys, piece.whole)
        return piece.text, new_tuple(Run, (len(piece.text), source, piece.offset))


def count_at(text: TracedStr, position: int) -> int:
    """How many runs end at a position. OpaqueError where one goes on behind it."""
    ends = list(accumulate((run.length for run in text.runs), initial=0))
    if position not in ends:
        raise OpaqueError("the template writes its ending in one piece with what stands before it")
    return ends.index(position)
