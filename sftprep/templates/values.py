"""Conversations in and out of the tracer: wrapping JSON values, and writing JSON with the writers known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sftprep.data import Json
from sftprep.templates.trace import TracedStr, Tracer

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


def normalise_messages(messages: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
    """What a server hands to the template: keys with null dropped, reasoning under each name that templates read.

    The same two rules as transformers' `apply_chat_template` (5.24): an OpenAI reply has `content: null` where
    templates expect no key, and templates disagree on the name of reasoning.
    """
    normal: list[dict[str, Json]] = []
    for message in messages:
        kept = {key: value for key, value in message.items() if value is not None}
        reasoning = next((kept[key] for key in REASONING_KEYS if key in kept), None)
        if reasoning is not None:
            kept = {"thinking": reasoning, **kept, "reasoning_content": reasoning}
        normal.append(kept)
    return normal


def wrap_messages(tracer: Tracer, messages: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
    """Normalised messages as plain dicts whose strings are traced; each dict is known to the tracer."""
    return [_wrap_message(tracer, index, message) for index, message in enumerate(messages)]


def _wrap_message(tracer: Tracer, index: int, message: Mapping[str, Json]) -> dict[str, Json]:
    copy: dict[str, Json] = {}
    reasoning = message.get("reasoning_content")
    wrapped: Json = None
    for key, value in message.items():
        if isinstance(value, str) and key in REASONING_KEYS and value == reasoning:
            # One text under three names is one field: seen once it is not lost, seen twice it is repeated.
            wrapped = wrap(tracer, index, "/reasoning_content", value) if wrapped is None else wrapped
            copy[key] = wrapped
        else:
            copy[key] = wrap(tracer, index, f"/{key}", value)
    tracer.messages[id(copy)] = index
    tracer.add_container(index, "", copy)
    return copy


def wrap(tracer: Tracer, message: int, path: str, value: Json) -> Json:
    """A JSON value with every string (keys of nested objects included) traced to its JSON pointer."""
    if isinstance(value, str):
        return tracer.add_field(message, path, value)
    if isinstance(value, Mapping):
        wrapped: Json = {
            tracer.add_field(message, f"{path}/{key}~key", key): wrap(tracer, message, f"{path}/{key}", item)
            for key, item in value.items()
        }
    elif isinstance(value, (list, tuple)):
        wrapped = [wrap(tracer, message, f"{path}/{i}", item) for i, item in enumerate(value)]
    else:
        return value
    tracer.add_container(message, path, wrapped)
    return wrapped


def dumps(value: Json, ensure_ascii: bool, indent: int | str | None, separators: Any, sort_keys: bool) -> str:
    """The JSON that transformers' `tojson` writes: `json.dumps` without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class JsonWriter:
    """Writes JSON as `json.dumps` does, with every character's writer known."""

    def __init__(
        self, tracer: Tracer, *, ensure_ascii: bool, indent: int | str | None, separators: Any, sort_keys: bool
    ) -> None:
        self.tracer = tracer
        self.ensure_ascii = ensure_ascii
        self.indent = " " * indent if isinstance(indent, int) else indent
        default = (", ", ": ") if indent is None else (",", ": ")
        self.item_separator: str = (separators or default)[0]
        self.key_separator: str = (separators or default)[1]
        self.sort_keys = sort_keys

    def write(self, value: Json) -> TracedStr:
        """The traced JSON text of a value."""
        return self.tracer.concat(self._value(value, self.tracer.literal_source, 0))

    def _value(self, value: Json, owner: int, depth: int) -> Iterator[TracedStr]:
        if isinstance(value, str):
            yield self._string(value, owner)
        elif isinstance(value, (dict, list, tuple)):
            yield from self._container(value, self.tracer.containers.get(id(value), owner), depth)
        else:
            yield self._structure(json.dumps(value), owner)

    def _container(self, value: Json, owner: int, depth: int) -> Iterator[TracedStr]:
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        if not value:
            yield self._structure(opening + closing, owner)
            return
        pairs: list[tuple[Json, Json]] = [*value.items()] if isinstance(value, dict) else [(None, v) for v in value]
        if self.sort_keys and isinstance(value, dict):
            pairs.sort()
        before = opening + self._newline(depth + 1)
        for key, item in pairs:
            yield self._structure(before, owner)
            if key is not None:
                yield self._string(key if isinstance(key, str) else json.dumps(key), owner)
                yield self._structure(self.key_separator, owner)
            yield from self._value(item, owner, depth + 1)
            before = self.item_separator + self._newline(depth + 1)
        yield self._structure(self._newline(depth) + closing, owner)

    def _newline(self, depth: int) -> str:
        return "" if self.indent is None else "\n" + self.indent * depth

    def _structure(self, text: str, owner: int) -> TracedStr:
        return self.tracer.of_source(text, owner)

    def _string(self, value: str, owner: int) -> TracedStr:
        """A JSON string: quotes of the owner, characters of their own sources."""
        quote = self._structure('"', owner)
        if not isinstance(value, TracedStr):
            inner = self._structure(json.dumps(value, ensure_ascii=self.ensure_ascii)[1:-1], owner)
            return self.tracer.concat((quote, inner, quote))
        pieces = [quote]
        position = 0
        for run in value.runs:
            text = str.__getitem__(value, slice(position, position + run.length))
            escaped = json.dumps(text, ensure_ascii=self.ensure_ascii)[1:-1]
            piece = value.piece(position, position + run.length)
            pieces.append(piece if escaped == text else self.tracer.of_source(escaped, run.source))
            position += run.length
        return self.tracer.concat([*pieces, quote])


def size_of(value: Json) -> int:
    """Characters of all strings inside a JSON value, and one for everything else."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(size_of(key) + size_of(item) for key, item in value.items())
    return sum(map(size_of, value)) if isinstance(value, (list, tuple)) else 1
