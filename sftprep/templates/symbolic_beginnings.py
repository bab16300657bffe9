"""What was found of conversations that began alike: plans of shapes that share a beginning share what is made of it.

What was found of a beginning depends on nothing behind it, and holds for every conversation of which the beginning has
the same shape and gives the same answers to what was asked of it. So it is taken as it is by one that does, and with it
go all questions that were ever asked of these messages, whether it took them or not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sftprep.data import Json, Sample
from sftprep.templates.exact import ExactTurn
from sftprep.templates.guarded import text_in
from sftprep.templates.symbolic_tracer import SymbolicTracer
from sftprep.templates.symbols import Guard, answer
from sftprep.templates.trace import TracedStr

Made = TypeVar("Made")

_MAX_SIZE: Final = 1 << 24
"""What is kept of all beginnings, in characters of texts and about that in bytes for each; then all is forgotten."""
_MAX_WAYS: Final = 8
"""Messages of one shape behind one beginning that are kept, each of which answered otherwise."""


@dataclass(slots=True, eq=False)
class Beginning:
    """A message behind those before it, or, as the first of all, the tools of a conversation."""

    guards: dict[Guard, Any] = field(default_factory=dict)
    """All that was asked of it."""
    found: dict[Hashable, tuple[object, Any]] = field(default_factory=dict)
    """By what was looked for: what the key is made of, and what was found."""
    next: dict[Hashable, list[Beginning]] = field(default_factory=dict)

    def is_like(self, value: Any) -> bool:
        """Whether a message of the shape, or tools, answers alike."""
        return all(answer(text_in(g.field, value), g.question, g.args) == said for g, said in self.guards.items())


class Beginnings:
    """The beginnings that are known of one template, its tools first."""

    def __init__(self) -> None:
        self._first: dict[Hashable, list[Beginning]] = {}
        self._size = 0

    def path(
        self, messages: Sequence[Mapping[str, Json]], tools: Sequence[Json] | None, shapes: Sequence[Hashable]
    ) -> Path:
        """The way through what is known that these messages take, as far as it goes."""
        if self._size > _MAX_SIZE:
            self._first, self._size = {}, 0
        return Path(self._first, (None if tools is None else len(tools), *shapes), (tools, *messages))

    def keep(self, path: Path) -> None:
        """Remember what was found of a conversation, and all that was asked of it."""
        self._size += path.extend()


class Path:
    """A conversation of which some beginning may be known."""

    def __init__(
        self, first: dict[Hashable, list[Beginning]], shapes: Sequence[Hashable], values: Sequence[Any]
    ) -> None:
        self._first = first
        self._shapes = shapes
        self._tracer: SymbolicTracer | None = None
        self._known: list[Beginning] = []
        self._new: dict[tuple[int, Hashable], tuple[object, Any]] = {}
        there = first
        for shape, value in zip(shapes, values, strict=True):
            like = next((one for one in there.get(shape, ()) if one.is_like(value)), None)
            if like is None:
                break
            self._known.append(like)
            there = like.next

    @property
    def is_shared(self) -> bool:
        """Whether any is."""
        return bool(self._known)

    def is_other(self, text: str) -> bool:
        """Whether a text was rendered of another conversation, whose tracer notes what is asked of it."""
        return isinstance(text, TracedStr) and text.tracer is not self._tracer

    def begin(self, tracer: SymbolicTracer) -> None:
        """Render the conversation with this tracer, which knows then what is known of the messages."""
        self._tracer = tracer
        for one in self._known:
            tracer.guards.update(one.guards)

    def extend(self) -> int:
        """Know what was not known, for others; how much more is kept, in characters."""
        added = 0
        for shape in self._shapes[len(self._known) :]:
            ways = (self._known[-1].next if self._known else self._first).setdefault(shape, [])
            if len(ways) >= _MAX_WAYS:
                ways.clear()
            ways.append(Beginning())
            self._known.append(ways[-1])
        for (message, key), found in self._new.items():
            self._known[message + 1].found[key] = found
            if isinstance(found[1], ExactTurn):
                added += len(found[1].traced.text)
                found[1].traced.forget_places()
        for guard, said in self._tracer.guards.items() if self._tracer is not None else ():
            self._known[guard.field.message + 1].guards[guard] = said
        return added

    def recall(self, message: int, key: Hashable, make: Callable[[], Made], *, of: object = None) -> Made:
        """What is known under a key of the beginning that ends with a message; else what is made, which is kept then.

        `of` is kept too: what a key names by its `id`.
        """
        known = self._known[message + 1].found.get(key) if message + 1 < len(self._known) else None
        known = known or self._new.get((message, key))
        if known is None:
            known = self._new[message, key] = (of, make())
        made: Made = known[1]
        return made

    def recall_of(self, turns: Sequence[ExactTurn], about: Hashable, make: Callable[[], Made]) -> Made:
        """The same of these very turns, the last of which ends the beginning, and of all else that decides it."""
        return self.recall(turns[-1].message, ("sample", about, *map(id, turns)), make, of=turns)

    def recall_cut(self, sample: Sample, make: Callable[[], Made]) -> Made:
        """The same of this very sample."""
        return self.recall(sample.turns[-1].message, ("cut", id(sample)), make, of=sample)
