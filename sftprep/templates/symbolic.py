"""Texts that stand for those of every conversation of one shape: a traced render that notes what it asked.

In a symbolic render each text of the conversation is one piece. It may be joined to others, stripped of white space
and written as JSON. Every question whose answer decides something (`'</think>' in content`) is noted with its answer:
a *guard*. What cannot be known for other conversations of the shape is an OpaqueError: nothing is concluded then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, SupportsIndex

from sftprep.templates.symbolic_tracer import SymbolicTracer, begins, first_part, keep_beginning, mentions_symbol
from sftprep.templates.symbols import OpaqueError
from sftprep.templates.trace import TracedStr


class SymbolicStr(TracedStr):
    """A traced text that answers only what is the same, or noted, for every conversation of the shape."""

    __slots__ = ()
    tracer: SymbolicTracer

    @property
    def is_symbolic(self) -> bool:
        """Whether any of its characters are a field's."""
        return any(run.source in self.tracer.fields for run in self.runs)

    def _method(self, name: str, args: tuple[Any, ...]) -> Any:
        """A question: plain of constants, noted of a whole field, refused of a mixture."""
        if mentions_symbol(args):
            raise OpaqueError(f"it asks {name} about a field")
        plain = tuple(str.__str__(arg) if isinstance(arg, TracedStr) else arg for arg in args)
        if not self.is_symbolic:
            return getattr(str, name)(self, *plain)
        source = self.tracer.whole(self)
        if source is None or not self.tracer.rendering:
            raise OpaqueError(f"it asks {name} of a text that is a field in part")
        return self.tracer.ask(source, name, plain)

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        if self.is_symbolic:
            raise OpaqueError("a text is printed as Python writes it")
        return str.__repr__(self)

    def __len__(self) -> int:
        if self.tracer.rendering and self.is_symbolic:
            raise OpaqueError("it asks for the length of a field")
        return str.__len__(self)

    def __bool__(self) -> bool:
        # Whether a field is empty is part of the shape, and of one made from it a guard.
        return str.__len__(self) > 0

    def __hash__(self) -> int:
        if self.is_symbolic:
            raise OpaqueError("it uses a field as a key")
        return str.__hash__(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        if not self.is_symbolic and not mentions_symbol(other):
            return str.__eq__(self, other)
        if self.tracer.whole(self) is not None and not mentions_symbol(other) and self.tracer.rendering:
            return bool(self._method("__eq__", (other,)))
        return begins(self, other) and begins(other, self)

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __contains__(self, other: object) -> bool:
        return bool(self._method("__contains__", (other,)))

    def __iter__(self) -> Iterator[TracedStr]:
        if self.is_symbolic:
            raise OpaqueError("it walks through the characters of a field")
        return TracedStr.__iter__(self)

    def __getitem__(self, key: SupportsIndex | slice) -> TracedStr:
        if self.is_symbolic and (self.tracer.rendering or not isinstance(key, slice)):
            raise OpaqueError("it cuts a field")
        made = TracedStr.__getitem__(self, key)
        if isinstance(key, slice) and key.start is None and key.step is None:
            keep_beginning(made, self)
        return made

    def startswith(self, prefix: Any, *span: Any) -> bool:
        """`str.startswith`: of other texts of the conversation as well, piece by piece."""
        if isinstance(prefix, tuple):
            return any(self.startswith(one, *span) for one in prefix)
        is_plain = not mentions_symbol(prefix)
        if span or (is_plain and (not self.is_symbolic or (self.tracer.rendering and self._is_whole))):
            return bool(self._method("startswith", (prefix, *span)))
        return begins(self, prefix)

    @property
    def _is_whole(self) -> bool:
        return self.tracer.whole(self) is not None

    def endswith(self, suffix: Any, *span: Any) -> bool:
        """`str.endswith`."""
        return bool(self._method("endswith", (suffix, *span)))

    def find(self, *args: Any) -> int:
        """`str.find`."""
        return int(self._method("find", args)) if self.tracer.rendering else str.find(self, *args)

    def strip(self, chars: str | None = None, /) -> TracedStr:
        """`str.strip`."""
        return self._stripped("strip", chars)

    def lstrip(self, chars: str | None = None, /) -> TracedStr:
        """`str.lstrip`."""
        return self._stripped("lstrip", chars)

    def rstrip(self, chars: str | None = None, /) -> TracedStr:
        """`str.rstrip`."""
        return self._stripped("rstrip", chars)

    def _stripped(self, name: str, chars: str | None) -> TracedStr:
        if not self.is_symbolic:
            bare: TracedStr = getattr(TracedStr, name)(self, chars)
            return bare
        source = self.tracer.whole(self)
        plain = None if chars is None else str.__str__(chars)
        if source is None:
            return self._stripped_mixture(name, plain)
        if plain is not None and (mentions_symbol(chars) or plain.strip()):
            raise OpaqueError("it strips more than white space of a field")
        text = getattr(str, name)(self, plain)
        shift = 0 if name == "rstrip" else str.__len__(self) - len(str.lstrip(self, plain))
        return self.tracer.operated(source, (name, plain), text, shift)

    def _stripped_mixture(self, name: str, chars: str | None) -> TracedStr:
        """Of a text that begins with the template's words, white space on its left."""
        source, words = first_part(self)
        first = words if source < 0 else ""
        if name != "lstrip" or not first.lstrip(chars):
            raise OpaqueError("it strips a text that is a field in part")
        if first[:1].strip(chars):
            return self
        return self.piece(len(first) - len(first.lstrip(chars)), str.__len__(self))


_KNOWN: Final = frozenset(vars(SymbolicStr)) | frozenset(
    {"__new__", "__init__", "__class__", "__getattribute__", "__setattr__", "__delattr__", "__dir__", "__doc__"}
    | {"__add__", "__radd__", "__mul__", "__rmul__", "__sizeof__", "__reduce__", "__reduce_ex__", "__getstate__"}
    | {"__init_subclass__", "__subclasshook__", "join"}
)
_QUESTIONS: Final = frozenset(name for name in dir(str) if name.startswith("is") or name in {"count", "rfind"})


def _guard(name: str) -> None:
    """Give `SymbolicStr` a method of `str` that is refused of fields, or is a question."""
    plain: Callable[..., Any] = getattr(TracedStr, name)

    def method(self: SymbolicStr, *args: Any, **kwargs: Any) -> Any:
        if name in _QUESTIONS:
            return self._method(name, args)
        if self.is_symbolic or mentions_symbol([*args, *kwargs.values()]):
            raise OpaqueError(f"it computes {name} of a field")
        return plain(self, *args, **kwargs)

    method.__name__ = name
    method.__doc__ = f"`str.{name}`."
    setattr(SymbolicStr, name, method)


for _name in sorted(set(dir(str)) - _KNOWN):
    _guard(_name)
