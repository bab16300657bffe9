"""A string that knows who wrote each of its characters, and survives what templates do to strings.

Characters come from a *source*: a field of the conversation (`source >= 0`, an index into `Tracer.sources`) or a
literal of the template (`source < 0`). A literal also carries a stamp: the message whose turn the template's loop
was at when it was written. Whatever loses track of the characters still keeps the source, with offset `DERIVED`,
so text from a conversation never passes for text of the template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import SupportsIndex

from sftprep.templates.runs import DERIVED, NO_MESSAGE, Run, Source, cut, extend_runs, new_tuple


@dataclass(slots=True)
class Tracer:
    """The state of one traced render: the sources, and which message the template's loop is at."""

    sources: list[Source] = field(default_factory=list)
    containers: dict[int, int] = field(default_factory=dict)
    """`id` of a list or dict of the conversation → its structure source."""
    messages: dict[int, int] = field(default_factory=dict)
    """`id` of a message dict → its index."""
    keep: list[object] = field(default_factory=list)
    """Holds every registered container, so that no `id` is used twice."""
    stamp: int = NO_MESSAGE
    loops: list[int] = field(default_factory=list)
    text_class: type[TracedStr] = field(default_factory=lambda: TracedStr)
    """What its texts are."""

    @property
    def literal_source(self) -> int:
        """The source number of a literal written now; `stamp_of` undoes it."""
        return -2 - self.stamp

    def literal(self, text: str) -> TracedStr:
        """A literal of the template, stamped with the current turn."""
        return TracedStr.of(self, text, (new_tuple(Run, (len(text), -2 - self.stamp, 0)),) if text else ())

    def add_field(self, message: int, path: str, text: str) -> TracedStr:
        """Register a string of the conversation and return it traced."""
        self.sources.append(Source(message, path, text))
        return TracedStr.of(self, text, (Run(len(text), len(self.sources) - 1, 0),) if text else ())

    def add_container(self, message: int, path: str, value: object) -> None:
        """Register a list or dict of the conversation, so that JSON written for it is known as its own."""
        self.sources.append(Source(message, path, "", structure=True))
        self.containers[id(value)] = len(self.sources) - 1
        self.keep.append(value)

    def message_of(self, item: object) -> int | None:
        """The message that a loop's item is, or was made from; None for what is no message's."""
        if not isinstance(item, dict):
            return None
        known = self.messages.get(id(item))
        if known is not None:
            return known
        source = first_field(item)
        message = NO_MESSAGE if source is None else self.sources[source].message
        return None if message == NO_MESSAGE else message

    def derived(self, text: str, origin: object) -> TracedStr:
        """A text computed from `origin` by an operation that is not followed character by character."""
        source = first_field(origin)
        return self.of_source(text, self.literal_source if source is None else source)

    def of_source(self, text: str, source: int) -> TracedStr:
        """A text that a source is the reason for, though it does not hold these characters."""
        offset = 0 if source < 0 else DERIVED
        return TracedStr.of(self, text, (Run(len(text), source, offset),) if text else ())

    def joined(self, left: TracedStr, right: TracedStr) -> TracedStr:
        """Two traced texts, one after the other."""
        before, after = left.runs, right.runs
        if before and after and before[-1].source == after[0].source:
            runs = list(before)
            extend_runs(runs, after)
            return TracedStr.of(self, str.__add__(left, right), tuple(runs))
        return TracedStr.of(self, str.__add__(left, right), before + after)

    def concat(self, pieces: Iterable[object]) -> TracedStr:
        """Join pieces: traced ones keep their runs, others are literals of now."""
        texts: list[str] = []
        runs: list[Run] = []
        literal = self.literal_source
        for piece in pieces:
            if isinstance(piece, TracedStr):
                texts.append(piece)
                extend_runs(runs, piece.runs)
            else:
                text = self.printed(piece)
                texts.append(text)
                extend_runs(runs, _runs_of(text, piece, literal))
        return TracedStr.of(self, "".join(texts), tuple(runs))

    def printed(self, value: object) -> str:
        """The text of a value that is no traced text."""
        return str(value)

    def before_search(self, item: object, container: object) -> None:
        """Told before one value is looked for in another."""

    def before_call(self, function: object, given: list[object]) -> None:
        """Told before a function or a macro is called."""


def _runs_of(text: str, piece: object, literal: int) -> list[Run]:
    """Who wrote the text of an untraced piece: the template, or all fields of a list or dict that is printed whole."""
    if not text:
        return []
    sources = [] if isinstance(piece, str) else list(dict.fromkeys(fields_of(piece)))[: len(text)]
    if not sources:
        return [Run(len(text), literal, 0)]
    # Which characters are whose is not known: each source has one, the first has the rest.
    return [
        Run(len(text) - len(sources) + 1, sources[0], DERIVED),
        *(Run(1, source, DERIVED) for source in sources[1:]),
    ]


def first_field(value: object) -> int | None:
    """The source of the first traced field inside a value (searched through lists and dicts), if any."""
    return next(fields_of(value), None)


def fields_of(value: object) -> Iterator[int]:
    """The sources of all traced fields inside a value, in order."""
    if isinstance(value, TracedStr):
        yield from (run.source for run in value.runs if run.source >= 0)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from fields_of(key)
            yield from fields_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from fields_of(item)


class TracedStr(str):
    """A `str` with runs that cover it. Every method that returns text returns it traced."""

    __slots__ = ("runs", "tracer")
    runs: tuple[Run, ...]
    tracer: Tracer

    @classmethod
    def of(cls, tracer: Tracer, text: str, runs: tuple[Run, ...]) -> TracedStr:
        """The text with its runs; their lengths add up to the text's."""
        self = str.__new__(tracer.text_class, text)
        self.runs = runs
        self.tracer = tracer
        return self

    def piece(self, start: int, stop: int) -> TracedStr:
        """The characters `[start, stop)`, traced."""
        return TracedStr.of(self.tracer, str.__getitem__(self, slice(start, stop)), cut(self.runs, start, stop))

    def _cut_at(self, pieces: Iterable[str], gap: int) -> list[str]:
        """This text's own pieces, given as plain text in order, each `gap` characters after the one before."""
        found: list[str] = []
        position = 0
        for text in pieces:
            found.append(self.piece(position, position + len(text)))
            position += len(text) + gap
        return found

    # str() must give the traced value back: Jinja's filters and output call it on everything.
    def __str__(self) -> str:
        return self

    def __add__(self, other: object) -> TracedStr:
        if isinstance(other, TracedStr):
            return self.tracer.joined(self, other)
        return self.tracer.concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: object) -> TracedStr:
        return self.tracer.concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> TracedStr:
        return self.tracer.concat([self] * int(count))

    __rmul__ = __mul__

    def __iter__(self) -> Iterator[TracedStr]:
        return (self.piece(i, i + 1) for i in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> TracedStr:
        text = str.__getitem__(self, key)
        if not isinstance(key, slice):
            index = range(len(self))[key]
            return self.piece(index, index + 1)
        start, stop, step = key.indices(len(self))
        return self.piece(start, max(start, stop)) if step == 1 else self.tracer.derived(text, self)

    def strip(self, chars: str | None = None, /) -> TracedStr:
        """`str.strip`."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> TracedStr:
        """`str.lstrip`."""
        return self.piece(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> TracedStr:
        """`str.rstrip`."""
        return self.piece(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> TracedStr:
        """`str.removeprefix`."""
        return self.piece(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> TracedStr:
        """`str.removesuffix`."""
        return self.piece(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """`str.split`."""
        texts = str.split(self, sep, maxsplit)
        return self._words(texts) if sep is None else self._cut_at(texts, len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """`str.rsplit`."""
        texts = str.rsplit(self, sep, maxsplit)
        return self._words(texts) if sep is None else self._cut_at(texts, len(sep))

    def _words(self, texts: list[str]) -> list[str]:
        """Pieces between which there is only white space, of which they begin with none."""
        found: list[str] = []
        position = 0
        for text in texts:
            position = self.index(text, position)
            found.append(self.piece(position, position + len(text)))
            position += len(text)
        return found

    def splitlines(self, keepends: bool = False) -> list[str]:
        """`str.splitlines`."""
        lines = self._cut_at(str.splitlines(self, keepends=True), 0)
        if keepends:
            return lines
        return [line[: len(bare)] for line, bare in zip(lines, str.splitlines(self), strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """`str.partition`."""
        head, middle, tail = self._cut_at(str.partition(self, sep), 0)
        return head, middle, tail

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """`str.rpartition`."""
        head, middle, tail = self._cut_at(str.rpartition(self, sep), 0)
        return head, middle, tail

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> TracedStr:
        """`str.replace`; an empty `old` puts `new` between all characters."""
        if not old:
            return self.tracer.derived(str.replace(self, old, new, count), self)
        pieces = self.split(old, count)
        joined = [piece for part in pieces for piece in (new, part)][1:]
        return self.tracer.concat(joined)

    def join(self, items: Iterable[str], /) -> TracedStr:
        """`str.join`."""
        pieces = [piece for item in items for piece in (self, item)][1:]
        return self.tracer.concat(pieces)

    def __mod__(self, values: object) -> TracedStr:
        return self.tracer.derived(str.__mod__(self, values), (self, values))

    def __rmod__(self, template: object) -> TracedStr:
        return self.tracer.derived(str.__mod__(str(template), self), self)


def _follow(name: str) -> None:
    """Give `TracedStr` a method of `str` that changes characters: followed where the length stays, else derived."""
    plain = getattr(str, name)
    by_character = name in _CASE_METHODS

    def method(self: TracedStr, *args: object, **kwargs: object) -> TracedStr:
        text = plain(self, *args, **kwargs)
        if by_character and len(text) == len(self):
            return TracedStr.of(self.tracer, text, self.runs)
        return self.tracer.derived(text, (self, args, kwargs))

    method.__name__ = name
    method.__doc__ = f"`str.{name}`."
    setattr(TracedStr, name, method)


_CASE_METHODS = frozenset({"lower", "upper", "capitalize", "title", "swapcase", "casefold"})

for _name in (*_CASE_METHODS, "center", "expandtabs", "ljust", "rjust", "translate", "zfill", "format", "format_map"):
    _follow(_name)
