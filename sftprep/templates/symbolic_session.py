"""One conversation as symbols: each text and JSON value of it is a source of the tracer, known by its keys."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sftprep.data import Json
from sftprep.templates.runs import Run, Source
from sftprep.templates.shape import CONSTANT_KEYS, STRUCTURAL_KEYS
from sftprep.templates.symbolic import SymbolicStr
from sftprep.templates.symbolic_tracer import SymbolicTracer
from sftprep.templates.symbols import Field, Guard, OpaqueError, Watched, WatchedDict, WatchedList
from sftprep.templates.trace import TracedStr
from sftprep.templates.values import REASONING_KEYS

Keys = tuple[str | int, ...]

_PLAIN: Final[Mapping[str, Json]] = {"role": "", "content": ""}
"""Stands for messages that are not wrapped yet."""
_NUM_PLAIN: Final = len(_PLAIN)
_ROLE: Final[Keys] = ("role",)
_CONTENT: Final[Keys] = ("content",)


class SymbolicSession:
    """The messages, tools and arguments of one conversation, wrapped once for all its renders."""

    def __init__(self, messages: Sequence[Mapping[str, Json]], tools: Sequence[Json] | None) -> None:
        self.tracer = SymbolicTracer(text_class=SymbolicStr)
        self.messages = messages
        self._by_keys: dict[tuple[int, Keys], int] = {}
        self._keys: dict[int, tuple[int, Keys]] = {}
        self.num_tools = None if tools is None else len(tools)
        self._given_tools = tools
        self._wrapped = [self._known_plain(index, m) or self._message(index, m) for index, m in enumerate(messages)]

    @functools.cached_property
    def wrapped(self) -> list[Mapping[str, Json]]:
        """The messages as the template is to see them."""
        return [self._of_plain(index) if copy is _PLAIN else copy for index, copy in enumerate(self._wrapped)]

    @functools.cached_property
    def tools(self) -> list[Json] | None:
        """The tools as the template is to see them."""
        return None if self._given_tools is None else self._tools(self._given_tools)

    def constant(self, message: int, keys: Keys, text: str) -> int:
        """The source of a text that is the same for every conversation of the shape."""
        known = self._by_keys.get((message, keys))
        if known is None or self.tracer.sources[known].text != text:
            known = self._add(message, keys, Source(message, _pointer(keys), text))
        return known

    def keys_of(self, source: int) -> tuple[int, Keys]:
        """The message and the keys of a source that the conversation itself has."""
        return self._keys[source]

    def source_of(self, field: Field) -> int:
        """The number of the source that a field is here."""
        if field.message < 0 and (field.message, field.keys) not in self._by_keys and self.tools is None:
            raise OpaqueError("there are no tools")
        source = self._by_keys[field.message, field.keys]
        derived = self.tracer.derived_sources
        for op in field.ops:
            name, argument = op
            if (source, op) not in derived:
                if name == "json":
                    self.tracer.as_json(source, argument)
                else:
                    getattr(self.tracer.of_field(source), name)(argument)
            source = derived[source, op]
        return source

    def agrees(self, guards: Mapping[Guard, Any]) -> bool:
        """Whether each question has the same answer here. What was asked is noted."""
        return all(self.tracer.ask(self.source_of(g.field), g.question, g.args) == said for g, said in guards.items())

    def _add(self, message: int, keys: Keys, source: Source) -> int:
        self.tracer.sources.append(source)
        number = len(self.tracer.sources) - 1
        self._by_keys[message, keys] = number
        self._keys[number] = (message, keys)
        return number

    def _symbol(self, message: int, keys: Keys, source: Source, value: Json) -> int:
        number = self._add(message, keys, source)
        self.tracer.fields[number] = Field(message, keys)
        self.tracer.values[number] = value
        return number

    def _known_plain(self, index: int, message: Mapping[str, Json]) -> Mapping[str, Json] | None:
        """Know the texts of a message that is a role and a content; it is wrapped when it is rendered."""
        content, role = message.get("content"), message.get("role")
        if len(message) != _NUM_PLAIN or type(content) is not str or type(role) is not str:
            return None
        for keys, path, text in ((_ROLE, "/role", role), (_CONTENT, "/content", content)):
            number = self._add(index, keys, Source(index, path, text))
        self.tracer.fields[number] = Field(index, _CONTENT)
        self.tracer.values[number] = content
        return _PLAIN

    def _of_plain(self, index: int) -> dict[str, Json]:
        of_field = self.tracer.of_field
        copy: dict[str, Json] = {key: of_field(self._by_keys[index, (key,)]) for key in self.messages[index]}
        self.tracer.messages[id(copy)] = index
        self.tracer.keep.append(copy)
        return copy

    def _message(self, index: int, message: Mapping[str, Json]) -> dict[str, Json]:
        """As a server hands it to the template (see `normalise_messages`): no nulls, reasoning under each name."""
        kept = {key: value for key, value in message.items() if value is not None}
        reasoned = next((key for key in REASONING_KEYS if key in kept), None)
        if reasoned is not None:
            value = kept[reasoned]
            shared = self._wrap(index, (reasoned,), value, path="/reasoning_content")
            others = {key for key in REASONING_KEYS if key in kept and kept[key] != value}
            if others:
                raise OpaqueError("a message has two kinds of reasoning")
            kept = {"thinking": value, **kept, "reasoning_content": value}
            copy = {k: shared if k in REASONING_KEYS else self._wrap(index, (k,), v) for k, v in kept.items()}
        else:
            copy = {key: self._wrap(index, (key,), value) for key, value in kept.items()}
        self.tracer.messages[id(copy)] = index
        self.tracer.keep.append(copy)
        return copy

    def _tools(self, tools: Sequence[Json]) -> list[Json]:
        wrapped = [
            self._wrap(-1, ("tools", number), tool, path=f"/tools/{number}") for number, tool in enumerate(tools)
        ]
        self._container(-1, ("tools",), wrapped, value=list(tools))
        return wrapped

    def _wrap(self, message: int, keys: Keys, value: Json, *, path: str | None = None) -> Json:
        path = _pointer(keys) if path is None else path
        name = next(key for key in reversed(keys) if isinstance(key, str))
        if isinstance(value, str):
            return self._text(message, keys, value, path)
        if not isinstance(value, (Mapping, list)):
            return value
        wrapped: Any
        if name not in STRUCTURAL_KEYS:
            wrapped = WatchedDict(value) if isinstance(value, Mapping) else WatchedList(value)
        elif isinstance(value, Mapping):
            wrapped = {key: self._wrap(message, (*keys, key), item) for key, item in value.items()}
        else:
            wrapped = [self._wrap(message, (*keys, i), item) for i, item in enumerate(value)]
        self._container(message, keys, wrapped, value=value)
        return wrapped

    def _text(self, message: int, keys: Keys, value: str, path: str) -> TracedStr:
        source = Source(message, path, value)
        if keys[-1] in CONSTANT_KEYS:
            number = self._add(message, keys, source)
        else:
            number = self._symbol(message, keys, source, value)
        return TracedStr.of(self.tracer, value, (Run(len(value), number, 0),) if value else ())

    def _container(self, message: int, keys: Keys, wrapped: Any, *, value: Json) -> None:
        # What is printed whole says something where it is not empty; which texts are in it is not known.
        says = "{}" if isinstance(wrapped, Watched) and wrapped else ""
        number = self._symbol(message, keys, Source(message, _pointer(keys), says, structure=True), value)
        self.tracer.containers[id(wrapped)] = number
        self.tracer.keep.append(wrapped)


@functools.lru_cache(maxsize=4096)
def _pointer(keys: Keys) -> str:
    return "".join(f"/{key}" for key in keys)
