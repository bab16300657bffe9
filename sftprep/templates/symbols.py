"""What a symbolic render knows of a conversation: fields, the questions asked of them, and JSON printed whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sftprep.data import Json
from sftprep.templates.shape import text_shape
from sftprep.templates.values import dumps

Op = tuple[str, Any]
"""What was done to a text: `strip`, `lstrip`, `rstrip` with their characters, `json` with its options."""


class OpaqueError(Exception):
    """The template does something with a text that says nothing of other texts."""


class Field(NamedTuple):
    """A text or JSON value of a conversation: `message` is -1 for tools, `keys` lead to it, `ops` were done to it."""

    message: int
    keys: tuple[str | int, ...]
    ops: tuple[Op, ...] = ()


class Guard(NamedTuple):
    """A question about a field: a method of `str`, its `shape`, or whether it or the argument `begins` the other."""

    field: Field
    question: str
    args: tuple[Any, ...] = ()


class Watched:
    """Marks a JSON value of which only the whole may be printed."""


def _refuse(*_: object, **__: object) -> Any:
    raise OpaqueError("it looks into a JSON value")


class WatchedDict(dict[str, Any], Watched):
    """An object that is printed whole or not at all; whether it is empty is part of the shape."""

    __getitem__ = get = items = keys = values = __iter__ = __contains__ = __len__ = __eq__ = copy = _refuse
    __repr__ = __str__ = __format__ = __or__ = __ror__ = __reversed__ = setdefault = _refuse

    def __bool__(self) -> bool:
        return dict.__len__(self) > 0


class WatchedList(list[Any], Watched):
    """The same for a list."""

    __getitem__ = __iter__ = __contains__ = __len__ = __eq__ = index = count = copy = __reversed__ = _refuse
    __repr__ = __str__ = __format__ = __add__ = __radd__ = __mul__ = __rmul__ = __lt__ = __gt__ = _refuse

    def __bool__(self) -> bool:
        return list.__len__(self) > 0


def answer(text: str, question: str, args: Sequence[Any]) -> Any:
    """What a text says to a question; the one place that asks, for the first conversation and for all others."""
    if question == "shape":
        return text_shape(text)
    if question == "begins":
        return text.startswith(args[0]) or args[0].startswith(text)
    return getattr(text, question)(*args)


JsonOptions = tuple[bool, int | None, tuple[str, str] | None, bool]
"""ensure_ascii, indent, separators, sort_keys."""


def write_json(value: Json, options: JsonOptions) -> str:
    """The JSON that the filter `tojson` writes with these options."""
    ensure_ascii, indent, separators, sort_keys = options
    return dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
