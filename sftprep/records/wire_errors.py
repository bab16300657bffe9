"""Pydantic's errors as faults: our own codes, plain words, and a JSON pointer into the row as it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError

from sftprep.data import Json
from sftprep.records.codes import Fault, escape

_EXPECTED: Final = {
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "float_type": "a number",
    "bool_type": "true or false",
}
HALF_CHARACTER: Final = "string_unicode"
"""Pydantic's name for half of a surrogate pair; whoever read the JSON has told it by our own."""

_WHOLE: Final = frozenset({"missing", "extra_forbidden", "union_tag_not_found", "union_tag_invalid"})
_UNION_FIELDS: Final = {
    "content": "text or a list of text parts",
    "arguments": "an object or text that holds one",
    "tools": "a list of functions",
}
"""Fields of several types: Pydantic reports each branch, a reader wants one sentence."""

_KEY_HINTS: Final = {
    "function_call": "the present name is tool_calls, a list",
    "weight": "only assistant messages are trained: others have no weight",
    "train": "only assistant messages are trained: others have no train",
    "tool_calls": "only an assistant calls tools; where the value is null, leave the key out",
    "tool_call_id": "only a tool message answers a call; where the value is null, leave the key out",
    "loss": "call it weight, or train",
    "from": "role and content are the keys of this format; from and value are those of sharegpt",
    "value": "role and content are the keys of this format; from and value are those of sharegpt",
}


def faults_of(error: ValidationError, *, value: Json) -> list[Fault]:
    """One fault for each thing wrong, in document order as Pydantic walks it."""
    faults: dict[tuple[str, str], Fault] = {}
    for item in error.errors(include_url=False, include_context=True, include_input=True):
        fault = _fault(item, value)
        if fault is not None:
            faults.setdefault((fault.code, fault.pointer), fault)
    return list(faults.values())


def describe(value: Json) -> str:
    """A JSON value's type in plain words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "an object"


def _fault(item: Mapping[str, Any], value: Json) -> Fault | None:
    """None for the branch of a union that the value does not belong to, and for what is told already."""
    if item["type"] == HALF_CHARACTER:
        return None
    path, union, branch = _json_path(item["loc"])
    pointer = "".join(f"/{escape(step)}" for step in path)
    if union is None:
        return _plain_fault(item, path=path, pointer=pointer)
    actual = _value_at(value, union)
    field = str(union[-1])
    if isinstance(actual, list) and field != "arguments":
        return None if branch == "str" else _plain_fault(item, path=path, pointer=pointer)
    place = "".join(f"/{escape(step)}" for step in union)
    if actual is None and field == "content":
        return Fault("null-content", place, "'content' is null")
    return Fault("wrong-type", place, f"{field!r} must be {_UNION_FIELDS[field]}, is {describe(actual)}")


def _json_path(loc: Sequence[int | str]) -> tuple[list[int | str], list[int | str] | None, str]:
    """A location without Pydantic's own steps; the path of the union on the way, and which of its branches.

    Those steps are known by position, not by name, as a row may have any name for a key: a message's role follows
    its index, a branch follows a union's field.
    """
    path: list[int | str] = []
    union: list[int | str] | None = None
    branch = ""
    steps = list(loc)
    while steps:
        step = steps.pop(0)
        path.append(step)
        if len(path) == 2 and path[0] == "messages" and steps:
            steps.pop(0)
        elif union is None and steps and _is_union(path) and isinstance(steps[0], str):
            union, branch = list(path), str(steps.pop(0))
    return path, union, branch


def _is_union(path: Sequence[int | str]) -> bool:
    content = len(path) == 3 and path[0] == "messages" and path[2] == "content"
    arguments = len(path) == 6 and tuple(path[i] for i in (0, 2, 4, 5)) == (
        "messages",
        "tool_calls",
        "function",
        "arguments",
    )
    return content or arguments or list(path) == ["tools"]


def _value_at(value: Json, path: Sequence[int | str]) -> Json:
    for step in path:
        value = value[step]
    return value


def _plain_fault(item: Mapping[str, Any], *, path: Sequence[int | str], pointer: str) -> Fault:
    kind, actual = str(item["type"]), item["input"]
    key = path[-1] if path else ""
    if kind in _EXPECTED:
        return _type_fault(_EXPECTED[kind], path=path, pointer=pointer, actual=actual)
    if kind in _WHOLE:
        return _key_fault(kind, key=key, pointer=pointer, actual=actual)
    if key == "weight":
        return Fault("bad-weight", pointer, f"'weight' is {actual!r:.60}")
    if kind == "too_short" and path in (["messages"], ["conversations"]):
        return Fault("no-messages", pointer, f"{key!r} is an empty list")
    expected = f", must be {item['ctx']['expected']}" if kind == "literal_error" else f": {item['msg'].lower()}"
    return Fault("wrong-value", pointer, f"{key!r} is {actual!r:.60}{expected}")


def _key_fault(kind: str, *, key: int | str, pointer: str, actual: Json) -> Fault:
    """A key that is not there, is not known, or is a role that decides the others."""
    match kind:
        case "missing":
            return Fault("missing-key", pointer, f"the key {key!r} is missing")
        case "extra_forbidden":
            return Fault("unknown-key", pointer, f"unknown key {key!r}", _KEY_HINTS.get(str(key), ""))
        case "union_tag_not_found":
            return Fault("missing-key", f"{pointer}/role", "the key 'role' is missing")
        case _:
            return Fault("unknown-role", f"{pointer}/role", f"no role is called {str(actual['role'])!r:.60}")


def _type_fault(expected: str, *, path: Sequence[int | str], pointer: str, actual: Json) -> Fault:
    key = path[-1] if path else ""
    if len(path) == 3 and key in {"weight", "train"}:
        return Fault("bad-weight", pointer, f"{key!r} must be {expected}, is {describe(actual)}")
    if path == ["tools"] and isinstance(actual, str):
        return Fault("tools-string", pointer, "'tools' is text, must be a list")
    what = f"item {key}" if isinstance(key, int) else f"{key!r}"
    return Fault("wrong-type", pointer, f"{what} must be {expected}, is {describe(actual)}")
