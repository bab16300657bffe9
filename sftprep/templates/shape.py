"""The shape of messages: all that a template can see of them without looking into a text or a JSON value.

Roles and types are part of it as they are; of any other text only whether it is empty or white space; of a JSON value
(a call's arguments, a tool) only whether it is empty. Conversations of one shape may take the same path through a
template, and do so where every question that it asked of their texts has the same answer.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

from sftprep.data import Json

CONSTANT_KEYS: Final = frozenset({"role", "type"})
"""Keys of messages and their parts whose texts are part of the shape."""
STRUCTURAL_KEYS: Final = frozenset({"tool_calls", "content", "function"})
"""Keys whose lists and objects templates walk through; other containers are JSON that is printed whole."""

EMPTY, BLANK, SAYING = range(3)
"""Of a text: no character, white space only, anything else."""


def shape_of(messages: Sequence[Mapping[str, Json]]) -> tuple[Hashable, ...]:
    """One hashable value a message; equal for messages that differ in texts and JSON values only."""
    return tuple([_plain(message) or _shape_of_object(message) for message in messages])


def _plain(message: Mapping[str, Json]) -> Hashable:
    """The usual message, known at once: role and a text that says something."""
    if len(message) != 2:
        return None
    content = message.get("content")
    if type(content) is not str or not content or content.isspace():
        return None
    role, is_first = message.get("role"), next(iter(message)) == "role"
    return (role, is_first) if type(role) is str else None


def _shape_of_object(value: Mapping[str, Json]) -> Hashable:
    return tuple((key, _shape(key, item)) for key, item in value.items())


def _shape(key: str, value: Json) -> Hashable:
    if isinstance(value, str):
        return value if key in CONSTANT_KEYS else text_shape(value)
    if isinstance(value, (Mapping, list)):
        if key not in STRUCTURAL_KEYS:
            return (type(value).__name__, bool(value))
        if isinstance(value, Mapping):
            return _shape_of_object(value)
        return ("list", tuple(_shape(key, item) for item in value))
    return (type(value).__name__, repr(value))


def text_shape(text: str) -> int:
    """Whether a text is empty, white space, or says something."""
    return SAYING if text and not text.isspace() else BLANK if text else EMPTY


def value_at(value: Any, keys: Sequence[str | int]) -> Any:
    """What lies inside a JSON value at these keys and indices."""
    for key in keys:
        value = value[key]
    return value
