"""Which tools a row declares, whether its calls fit them, and which result answers which call."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from jsonschema_rs import Validator, validator_for
from pydantic_core import PydanticSerializationError, from_json, to_json

from sftprep.data import Json
from sftprep.records.codes import Fault, escape
from sftprep.records.draft import Draft
from sftprep.records.json_text import parse_json

_NUM_SCHEMAS: Final = 4096
"""Compiled schemas kept: rows of a source share their tools."""


def check_tools(tools: Sequence[Json]) -> Iterator[Fault]:
    """Faults of the declared functions."""
    names: set[str] = set()
    for index, tool in enumerate(tools):
        pointer = f"/tools/{index}"
        function = _function(tool)
        if function is None:
            yield Fault("bad-tool", pointer, "no function with a name")
            continue
        if function is tool:
            yield Fault("bare-tool", pointer, "a function without its wrapping")
        if function["name"] in names:
            yield Fault("duplicate-tool", pointer, f"two functions are called {function['name']!r}")
        names.add(function["name"])
        why = _compiled(_schema_bytes(function.get("parameters")))
        if isinstance(why, str):
            steps = "parameters" if function is tool else "function/parameters"
            yield Fault("bad-schema", f"{pointer}/{steps}", f"the parameters are not a JSON Schema: {why}")


def calls_without_tools(draft: Draft) -> Iterator[Fault]:
    """The first call of a row that declares no tool."""
    for index, message in enumerate(draft.messages):
        if message.get("tool_calls"):
            yield Fault("no-tools", draft.place(index, "tool_calls"), "the row calls tools and declares none")
            return


@dataclass(slots=True)
class ToolState:
    """The calls met so far, and the functions that may be called; None where the row declares none.

    `use_ids`: any call or result has an id; `complete`: every message can be read. `waiting` maps the ids of calls
    without a result to their places, `open_calls` are the places of those that have no id.
    """

    use_ids: bool
    complete: bool
    schemas: Mapping[str, Json] | None
    called: set[str] = field(default_factory=set)
    waiting: dict[str, str] = field(default_factory=dict)
    open_calls: list[str] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, draft: Draft, *, unreadable: frozenset[int]) -> ToolState:
        """Nothing called yet."""
        readable = (message for index, message in enumerate(draft.messages) if index not in unreadable)
        schemas = {f["name"]: f.get("parameters") for f in map(_function, draft.tools or ()) if f is not None}
        return cls(use_ids=any(map(_has_id, readable)), complete=not unreadable, schemas=schemas or None)

    def check_calls(self, draft: Draft, index: int) -> Iterator[Fault]:
        """Faults of one message's calls, which wait for their results from here on."""
        for number, call in enumerate(draft.messages[index]["tool_calls"]):
            path = f"tool_calls/{number}"
            yield from self._check_function(call["function"], draft, index, path)
            key, place = call.get("id"), draft.place(index, path)
            if key is None:
                self.open_calls.append(place)
                if self.use_ids:
                    what = "a call without an id beside calls or results that have one"
                    yield Fault("missing-tool-call-id", place, what)
                continue
            if key in self.called:
                # Models do use an id again once it is answered; only two open calls with one id are the same.
                code = "duplicate-tool-call-id" if key in self.waiting else "reused-tool-call-id"
                yield Fault(code, draft.place(index, f"{path}/id"), f"the id {key!r} was used before")
            self.called.add(key)
            self.waiting[key] = place

    def check_result(self, draft: Draft, index: int) -> Iterator[Fault]:
        """Faults of a tool's message, which answers a call."""
        key = draft.messages[index].get("tool_call_id")
        if key is None:
            if self.open_calls:
                self.open_calls.pop(0)
            elif not self.use_ids:
                yield Fault("orphan-tool-result", draft.place(index), "a tool result without a tool call before it")
            if self.use_ids:
                yield Fault("missing-tool-call-id", draft.place(index), "a result without tool_call_id")
        elif key not in self.called:
            what = f"no call before it has the id {key!r}"
            yield Fault("unknown-tool-call-id", draft.place(index, "tool_call_id"), what)
        elif key not in self.waiting:
            what = f"the call {key!r} is answered twice"
            yield Fault("repeated-tool-result", draft.place(index, "tool_call_id"), what)
        else:
            del self.waiting[key]

    def unanswered(self) -> Iterator[Fault]:
        """The calls that wait while the conversation goes on without them; each is named once."""
        for place in (*self.waiting.values(), *self.open_calls):
            if self.complete and place not in self.reported:
                self.reported.add(place)
                yield Fault("unanswered-call", place, "the conversation goes on without this call's result")

    def _check_function(self, function: Mapping[str, Json], draft: Draft, index: int, path: str) -> Iterator[Fault]:
        name, arguments = function["name"], function["arguments"]
        pointer = draft.place(index, f"{path}/function/arguments")
        if isinstance(arguments, str):
            # Half a character of the row's own text was reported with it.
            parsed = parse_json(arguments.encode("utf-8", "replace"))
            if parsed.faults:
                what = f"the text in arguments is not sound JSON: {parsed.faults[0].message}"
                yield Fault("bad-arguments", pointer, what)
                return
            arguments = parsed.value
            if not isinstance(arguments, dict):
                yield Fault("arguments-not-object", pointer, "the JSON text in arguments is not an object")
                return
        if self.schemas is None:
            return
        if name not in self.schemas:
            what = f"no tool of this row is called {name!r}"
            yield Fault("unknown-tool", draft.place(index, f"{path}/function/name"), what)
            return
        yield from _misfits(arguments, self.schemas[name], pointer=pointer)


def _misfits(arguments: Json, schema: Json, *, pointer: str) -> Iterator[Fault]:
    compiled = _compiled(_schema_bytes(schema))
    if isinstance(compiled, str):
        return
    try:
        errors = [] if compiled.is_valid(arguments) else list(compiled.iter_errors(arguments))
    except UnicodeEncodeError:
        # Half of a character, which was reported with the row's text.
        return
    for error in errors:
        steps = "".join(f"/{escape(step)}" for step in error.instance_path)
        what = f"the arguments{f' at {steps}' if steps else ''} do not fit the tool's schema: {error.message:.120}"
        yield Fault("arguments-misfit", pointer, what)


def _schema_bytes(schema: Json) -> bytes:
    try:
        return to_json(True if schema is None else schema)
    except PydanticSerializationError:
        # Half of a character: written as an escape, which no reader of schemas takes.
        return json.dumps(schema).encode("ascii")


@lru_cache(maxsize=_NUM_SCHEMAS)
def _compiled(schema: bytes) -> Validator | str:
    """A function's parameters as a check, or why they are none.

    Read by the dialect that the schema names, else by the present one. Offline: a row must not make us fetch.
    """
    try:
        return validator_for(from_json(schema), offline=True)
    except ValueError as error:
        return str(error).partition("\n")[0]


def _function(tool: Json) -> Mapping[str, Json] | None:
    """The function of a tool, wrapped or bare; None where it has no name."""
    function = tool.get("function", tool)
    named = isinstance(function, dict) and isinstance(function.get("name"), str)
    return function if named else None


def _has_id(message: Mapping[str, Json]) -> bool:
    # Asked by role: in another role's message these keys are unknown, and may hold anything.
    if message["role"] == "assistant":
        return any(call.get("id") for call in message.get("tool_calls") or ())
    return message["role"] == "tool" and message.get("tool_call_id") is not None
