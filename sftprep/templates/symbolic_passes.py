"""What a template writes in one pass of its loop over the messages, known again in any conversation.

A pass that read nothing but its own message, and what the beginning of the conversation had decided, writes the same
for every message of its shape whose texts give the same answers, wherever it stands. So a new shape of conversation,
of messages that were seen, is put together from passes without running the template on symbols.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice, pairwise
from typing import Any, Final, NamedTuple

from sftprep.templates.environment import Mark
from sftprep.templates.runs import Run, new_tuple, stamp_of
from sftprep.templates.symbolic_session import SymbolicSession
from sftprep.templates.symbolic_texts import Body, Constant, Piece
from sftprep.templates.symbols import Field, Guard
from sftprep.templates.trace import TracedStr

MAX_WAYS: Final = 32
"""Ways through one pass that are remembered."""
_MAX_SHAPES: Final = 4096
"""Shapes of messages whose passes are remembered, each for a beginning."""
_OWN: Final = -2
"""The source of what the template writes at message 0."""


class OwnPiece(NamedTuple):
    """A piece of a pass; where it is its `own` message's, it names message 0 in its place."""

    own: bool
    piece: Piece


class OwnGuard(NamedTuple):
    """A question, of the message that stands `after` the one it is told from; None: of the one that it names."""

    after: int | None
    guard: Guard
    said: Any


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What a pass asked and wrote."""

    guards: tuple[OwnGuard, ...]
    pieces: tuple[OwnPiece, ...]
    is_bounded: bool
    """Whether it begins with what is its message's, and a field is in it: who reads on into it stops there."""

    @classmethod
    def of(cls, guards: tuple[OwnGuard, ...], pieces: tuple[OwnPiece, ...]) -> Pass:
        """A pass that is known by these."""
        is_own = bool(pieces) and pieces[0].own
        return cls(guards, pieces, is_own and any(isinstance(piece, Field) for _, piece in pieces))


def agree(session: SymbolicSession, guards: Sequence[OwnGuard], message: int) -> bool:
    """Whether each question has the same answer of the messages here. What was asked is noted."""
    for after, guard, said in guards:
        found = guard.field
        if after is not None:
            found = Field(message + after, found.keys, found.ops)
        if session.tracer.ask(session.source_of(found), guard.question, guard.args) != said:
            return False
    return True


def own_guards(asked: Mapping[Guard, Any], message: int, *, known: int, ahead: int = 0) -> tuple[OwnGuard, ...] | None:
    """Questions as they are asked of any message; None where one is of yet another message.

    `known` is the last message of the conversation's beginning, the same for all; of the messages after the own one
    so many may be asked as `ahead` says.
    """
    found = []
    for guard, said in asked.items():
        number, keys, ops = guard.field
        if 0 <= number - message <= ahead:
            found.append(OwnGuard(number - message, guard._replace(field=Field(0, keys, ops)), said))
        elif number <= known:
            found.append(OwnGuard(None, guard, said))
        else:
            return None
    return tuple(found)


def _own_pieces(pieces: Sequence[Piece], message: int, *, known: int) -> tuple[OwnPiece, ...] | None:
    """Pieces as any message would have them; None where one is of yet another message."""
    found = []
    for piece in pieces:
        number, own = piece.message, piece._replace(message=0)
        if isinstance(piece, Constant) and piece.source < 0:
            number, own = stamp_of(piece.source), piece._replace(source=_OWN)
        if known < number != message:
            return None
        is_own = number == message
        found.append(OwnPiece(is_own, own if is_own else piece))
    return tuple(found)


class Spot(NamedTuple):
    """A position: so many pieces after the beginning of a pass, and so many characters of the template's words."""

    pieces: int
    characters: int


class Wrong(NamedTuple):
    """What is wrong with a turn; `path` follows its message in the place."""

    message: str
    code: str
    path: str
    hint: str


Remembered = tuple[Spot, ...] | Wrong | None
"""Where a turn starts, its stop token starts, and it ends; None where it is not shown so, or more has to be asked."""
TurnMemory = dict[Hashable, list[tuple[tuple[OwnGuard, ...], Remembered]]]


@dataclass(slots=True)
class PassBook:
    """The passes that are known, by the beginning of the conversation and the shape of the message.

    `by_number`: by the number of the message too, which passes ask for.
    """

    by_number: bool
    firsts: set[int] = field(default_factory=set)
    """The numbers of the messages that first passes were at."""
    known: dict[Hashable, list[Pass]] = field(default_factory=dict)

    def learn(
        self, head: Body, shapes: Sequence[Hashable], pieces: Sequence[Piece], ends: Sequence[tuple[int, Mark]]
    ) -> None:
        """Remember the passes of one render, given as the number of pieces at the end of each, and its mark.

        `head` is what was written until the end of the first one.
        """
        first = ends[0][1].message
        self.firsts.add(first)
        if len(self.known) >= _MAX_SHAPES:
            self.known.clear()
        for (begin, before), (end, mark) in pairwise(ends):
            message = mark.message
            if message != before.message + 1:
                break
            is_told = before.has_read == before.message and mark.has_read == message
            if not is_told or any(first < seen != message for seen in mark.seen):
                continue
            guards = own_guards(mark.asked, message, known=first)
            written = _own_pieces(pieces[begin:end], message, known=first)
            if guards is None or written is None:
                continue
            ways = self.known.setdefault(self._key(head, shapes, message), [])
            if len(ways) < MAX_WAYS and all((way.guards, way.pieces) != (guards, written) for way in ways):
                ways.append(Pass.of(guards, written))

    def find(
        self, session: SymbolicSession, head: Body, shapes: Sequence[Hashable], first: int
    ) -> Iterator[Pass | None]:
        """The pass of each message after the first one's; None where it is not known, and none after it."""
        for message in range(first + 1, len(shapes)):
            ways = self.known.get(self._key(head, shapes, message), ())
            found = next((way for way in ways if agree(session, way.guards, message)), None)
            yield found
            if found is None:
                return

    def _key(self, head: Body, shapes: Sequence[Hashable], message: int) -> Hashable:
        return head, shapes[message], message if self.by_number else -1


class Joined:
    """A whole conversation that is put together from passes, and the texts of its beginnings."""

    def __init__(self, session: SymbolicSession, head: Body, passes: Sequence[Pass], first: int) -> None:
        self.session = session
        self.head = head
        self.first = first
        self.passes: list[Pass | None] = [*([None] * (first + 1)), *passes]
        """Of each message; None of those until the first pass."""
        self.texts: list[str] = []
        self.runs: list[Run] = []
        for piece in islice(head.pieces or (), head.count):
            self._add(piece, piece.message, own=False)
        self.counts = [0] * (first + 1) + [len(self.texts)]
        """For each number of messages, how many pieces they make."""
        for message, made in enumerate(passes, first + 1):
            for own, piece in made.pieces:
                self._add(piece, message if own else piece.message, own=own)
            self.counts.append(len(self.texts))

    @functools.cached_property
    def starts(self) -> list[int]:
        """The position at which each piece begins, and at the end that of the text's end."""
        return list(accumulate(map(len, self.texts), initial=0))

    def text(self, size: int, ending: Sequence[Piece]) -> TracedStr:
        """The text of the first messages and an ending, which has words only."""
        count = self.counts[size]
        words = [piece.text for piece in ending if isinstance(piece, Constant)]
        runs = [self._run_of(piece, piece.message, own=False) for piece in ending if isinstance(piece, Constant)]
        return TracedStr.of(self.session.tracer, "".join([*self.texts[:count], *words]), (*self.runs[:count], *runs))

    def _add(self, piece: Piece, message: int, *, own: bool) -> None:
        if isinstance(piece, Constant):
            self.texts.append(piece.text)
            self.runs.append(self._run_of(piece, message, own=own))
            return
        source = self.session.source_of(new_tuple(Field, (message, piece.keys, piece.ops)) if own else piece)
        text = self.session.tracer.sources[source].text
        self.texts.append(text)
        self.runs.append(new_tuple(Run, (len(text), source, 0)))

    def _run_of(self, piece: Constant, message: int, *, own: bool) -> Run:
        if piece.source < 0:
            return new_tuple(Run, (len(piece.text), _OWN - message if own else piece.source, 0))
        source = self.session.constant(message, piece.keys, piece.whole)
        return new_tuple(Run, (len(piece.text), source, piece.offset))
