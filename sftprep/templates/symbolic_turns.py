"""The turns of a conversation that is put together from passes: what was found of one is found of all like it.

The resolver reads of a turn the pass that writes it and the beginning of the next one, as far as its own message's
first field; or, where the text ends with the turn, the ending. So where those are known, under the same arguments and
with the same answers, it finds the same in the same places. What is wrong with a turn is remembered where it says
nothing of other messages.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final, NamedTuple

from sftprep.errors import MaskError
from sftprep.templates.contract import Messages, TurnResolver
from sftprep.templates.exact import ExactTurn
from sftprep.templates.symbolic_beginnings import Path
from sftprep.templates.symbolic_passes import Joined, Remembered, Spot, Wrong, agree, own_guards
from sftprep.templates.symbolic_template import SymbolicTemplate
from sftprep.templates.symbols import OpaqueError
from sftprep.templates.template import ChatTemplate, Request
from sftprep.templates.turns import End

_MAX_KINDS: Final = 4096
"""Kinds of turns that are remembered."""


class _Place(NamedTuple):
    """A turn in a conversation that is put together, and all that decides what is found of it."""

    joined: Joined
    message: int
    ahead: int
    key: Hashable


class PlannedResolver(TurnResolver):
    """Resolves the turns of a conversation that is rendered symbolically; each kind of turn once."""

    def __init__(self, template: ChatTemplate, messages: Messages, request: Request, allow: frozenset[str]) -> None:
        super().__init__(template, messages, request, allow)
        self._arguments = json.dumps(request.kwargs, sort_keys=True)

    def _shown_in(self, base: ExactTurn, message: int) -> ExactTurn | None:
        """As the general resolver, asked where it was not of the same beginning, and where no turn like it is known."""
        find = partial(self._shown_again, base, message)
        path = self._path
        return find() if path is None else path.recall(base.message, ("shown", id(base), message), find, of=base)

    def _shown_again(self, base: ExactTurn, message: int) -> ExactTurn | None:
        if self._path is not None and self._path.is_other(base.traced.text):
            raise OpaqueError("a turn that another conversation was asked for is asked something else")
        is_own = base.kind == "packed" and base.request is self.request and message + 1 < base.message
        place = self._place(message, ahead=1) if is_own and not self._is_ill_posed(message) else None
        find = partial(TurnResolver._shown_in, self, base, message)
        if place is None:
            return find()
        found = self._recall(place, find)
        if isinstance(found, MaskError):
            raise found
        if not isinstance(found, tuple):
            return found
        start, end = found
        shown = ExactTurn(message, self.request, base.kind, base.traced, start, end)
        return None if end.stop > base.start else shown

    @property
    def _path(self) -> Path | None:
        return self.template.path if isinstance(self.template, SymbolicTemplate) else None

    def resolve(self, message: int) -> ExactTurn:
        """As the general resolver, asked where it was not before, no turn is known, or more has to be tried."""
        find = partial(self._resolved_again, message)
        key = ("turn", self.allow, self._arguments)
        return find() if self._path is None else self._path.recall(message, key, find)

    def _resolved_again(self, message: int) -> ExactTurn:
        place = None if self._is_ill_posed(message) else self._place(message, ahead=0)
        if place is None:
            return super().resolve(message)
        found = self._recall(place, partial(self._plainly_tried, message))
        if isinstance(found, MaskError):
            raise found
        if isinstance(found, tuple):
            traced = self.template.trace(self.messages[: message + 1], self.request, prompt=False)
            return ExactTurn(message, self.request, "packed", traced, *found)
        return super().resolve(message) if found is None else found

    def _plainly_tried(self, message: int) -> ExactTurn | MaskError | None:
        """The turn where its prompt is a prefix of its own render and nothing else need be tried, or what is wrong."""
        tried = self._tried(message, self.request, "packed")
        if isinstance(tried, ExactTurn):
            return None if self._has_scaffold(tried) else tried
        return None if self.template.switches else tried

    def _place(self, message: int, *, ahead: int) -> _Place | None:
        """A turn that is decided by its own pass, and, `ahead`, by the next one."""
        template = self.template
        joined = template.joined(self.request) if isinstance(template, SymbolicTemplate) else None
        if joined is None or message <= joined.first or message + ahead >= len(joined.passes):
            return None
        own, after = joined.passes[message], joined.passes[message + 1] if ahead else None
        if own is None or (ahead and (after is None or not after.is_bounded)):
            return None
        return _Place(joined, message, ahead, (self.allow, self._arguments, joined.head, own, after))

    def _recall(
        self, place: _Place, find: Callable[[], ExactTurn | MaskError | None]
    ) -> ExactTurn | MaskError | tuple[int, End] | None:
        """What is remembered of such a turn; else what is found, which is remembered."""
        joined, message, ahead, key = place
        template = self.template
        if not isinstance(template, SymbolicTemplate):
            raise AssertionError("a conversation is put together from symbols")
        ways = template.turns.get(key, [])
        known = next((found for guards, found in ways if agree(joined.session, guards, message)), _NOTHING)
        if known is not _NOTHING:
            return _there(known, place)
        tracer = joined.session.tracer
        before, tracer.asked = tracer.asked, {}
        try:
            found = find()
        finally:
            asked, tracer.asked = tracer.asked, {**before, **tracer.asked}
        guards = own_guards(asked, message, known=joined.first, ahead=ahead)
        kept = _kept(found, place)
        if guards is not None and kept is not _NOTHING:
            if len(template.turns) >= _MAX_KINDS:
                template.turns.clear()
            template.turns.setdefault(key, []).append((guards, kept))
        return found


_NOTHING: Final[Remembered] = ()


def _there(known: Remembered, place: _Place) -> MaskError | tuple[int, End] | None:
    """What is remembered of a turn, as it is of this one."""
    if known is None:
        return None
    if isinstance(known, Wrong):
        return MaskError(known.message, code=known.code, place=f"{_pointer(place)}{known.path}", hint=known.hint)
    starts, begin = place.joined.starts, place.joined.counts[place.message]
    start, stop_start, stop = (starts[begin + spot.pieces] + spot.characters for spot in known)
    return start, End(stop_start, stop)


def _kept(found: ExactTurn | MaskError | None, place: _Place) -> Remembered:
    """What can be remembered of what was found; nothing where it says something of other messages."""
    if found is None:
        return None
    if isinstance(found, MaskError):
        pointer = _pointer(place)
        is_own = found.place.startswith(pointer)
        return Wrong(found.message, found.code, found.place[len(pointer) :], found.hint) if is_own else _NOTHING
    spots = [_spot(position, place) for position in (found.start, found.end.stop_start, found.end.stop)]
    return tuple(spot for spot in spots if spot is not None) if None not in spots else _NOTHING


def _spot(position: int, place: _Place) -> Spot | None:
    """A position from the beginning of the turn's pass on; None where it is beyond what decides it."""
    joined, message, ahead, _ = place
    begin, limit = joined.counts[message], joined.counts[message + 1 + ahead]
    piece = min(bisect_right(joined.starts, position) - 1, limit)
    characters = position - joined.starts[piece]
    if piece < begin or (characters and ahead and piece == limit):
        return None
    return Spot(piece - begin, characters)


def _pointer(place: _Place) -> str:
    return f"/messages/{place.message}"
