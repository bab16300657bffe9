"""Scorers of answers that hold JSON: extracted fields, and calls of tools."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Final

import jsonschema_rs

from sftprep.data import Json
from sftprep.evaluate.answer import Answer, Score, verdict
from sftprep.evaluate.scorer_specs import JsonFields, ToolCalls

_DECODER: Final = json.JSONDecoder()
_ARGUMENTS: Final = ("arguments", "parameters")
# A call that was begun in the text, finished or not.
_BEGUN: Final = re.compile(r'\{\s*"name"\s*:\s*"[^"\n]*"\s*,\s*"(?:arguments|parameters)"\s*:')
_BROKEN: Final[Json] = {"name": "", "arguments": None}


def objects(text: str) -> Iterator[dict[str, Json]]:
    """The outermost JSON objects that stand anywhere in a text, in order."""
    position = text.find("{")
    while position >= 0:
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):  # also a number of more digits than Python reads
            end = position + 1
        else:
            yield value
        position = text.find("{", end)


def leaves(value: Json, place: str = "") -> Iterator[tuple[str, str]]:
    """Pointer and JSON text of every leaf; an empty list or object is one. 1 and 1.0 are the same, 1 and true not."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{place}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, f"{place}/{index}")
    else:
        whole = isinstance(value, float) and value.is_integer()
        yield place, json.dumps(int(value) if whole else value, ensure_ascii=False)


def json_fields(spec: JsonFields, answer: Answer) -> Score:
    """F1 over leaves with the first object of the answer; 0 where there is none or the schema refuses it."""
    found = next(objects(answer.text), None)
    if found is None:
        return verdict(passed=False, note="no JSON object")
    if spec.json_schema is not None:
        faults = list(jsonschema_rs.validator_for(spec.json_schema).iter_errors(found))
        if faults:
            return verdict(passed=False, note=f"the schema refuses it: {faults[0].message}")
    own, wanted = set(leaves(found)), set(leaves(spec.expected))
    wrong = sorted({place for place, _ in own ^ wanted})
    value = 2 * len(own & wanted) / (len(own) + len(wanted))
    return Score(value, not wrong, f"wrong, missing or extra: {', '.join(wrong)}" if wrong else "")


def calls_of(answer: Answer) -> list[Json]:
    """The calls of an answer, name and arguments: told by the server, else those that stand in the text as JSON.

    A call that cannot be read whole is one without arguments that could match: it counts, and is never right.
    """
    given = list(objects(answer.text)) if answer.calls is None else list(answer.calls)
    calls = [call for value in given if (call := _call(value)) is not None]
    if answer.calls is None:
        begun = len(_BEGUN.findall(answer.text))
        calls += [_BROKEN] * (begun - len(calls))
    else:
        calls += [_BROKEN] * (len(given) - len(calls))
    return calls


def _call(value: dict[str, Json]) -> Json | None:
    """An object that is a call; its arguments are an object, or the JSON text of one."""
    arguments = next((value[key] for key in _ARGUMENTS if key in value), None)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    is_call = isinstance(value.get("name"), str) and isinstance(arguments, dict)
    return {"name": value["name"], "arguments": arguments} if is_call else None


def tool_calls(spec: ToolCalls, answer: Answer) -> Score:
    """F1 over whole calls, in any order, counted with repetition; passed where they are the same."""
    found = calls_of(answer)
    wanted = [{"name": call.name, "arguments": call.arguments} for call in spec.expected]
    shared = _shared(found, wanted)
    total = len(found) + len(wanted)
    value = 2 * shared / total if total else 1.0
    names = ", ".join(call["name"] or "something unreadable" for call in found) or "nothing"
    return Score(value, value == 1.0, "" if value == 1.0 else f"{shared} of {len(wanted)} calls; called {names}")


def _shared(found: Sequence[Json], wanted: Sequence[Json]) -> int:
    left = [sorted(leaves(call)) for call in wanted]
    count = 0
    for call in found:
        own = sorted(leaves(call))
        if own in left:
            left.remove(own)
            count += 1
    return count
