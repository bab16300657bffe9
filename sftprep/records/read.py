"""One way into all formats: a JSON object to a draft, with every fault of its keys, types and rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ValidationError

from sftprep.data import Json
from sftprep.records.alpaca import AlpacaRow, read_alpaca
from sftprep.records.codes import Fault, escape
from sftprep.records.detect import detect_format, signatures_of
from sftprep.records.draft import Draft, Format, Reading
from sftprep.records.json_text import is_encodable
from sftprep.records.openai import MISPLACED, MISPLACED_ELSEWHERE, ChatRow, read_chat
from sftprep.records.plain import plain_chat
from sftprep.records.prompt_response import PromptCompletionRow, PromptResponseRow, read_prompt_response
from sftprep.records.recast import Recast, recast
from sftprep.records.rules import check_messages
from sftprep.records.sharegpt import ShareGptRow, read_sharegpt
from sftprep.records.text_rules import check_characters
from sftprep.records.tool_rules import calls_without_tools, check_tools
from sftprep.records.wire_errors import HALF_CHARACTER, faults_of

_OTHERS: Final = frozenset({"conversations", "instruction", "prompt"})


class Record(NamedTuple):
    """What became of a row: its draft where it could be read, what is wrong with it, and the format it was read in."""

    draft: Draft | None
    faults: tuple[Fault, ...]
    format: Format | None


class _Reader(NamedTuple):
    model: type[BaseModel]
    read: Callable[[Mapping[str, Json]], Reading]


_READERS: Final = {
    Format.OPENAI: _Reader(ChatRow, read_chat),
    Format.SHAREGPT: _Reader(ShareGptRow, read_sharegpt),
    Format.ALPACA: _Reader(AlpacaRow, read_alpaca),
    Format.PROMPT_RESPONSE: _Reader(PromptResponseRow, read_prompt_response),
}
_COMPLETION_READER: Final = _Reader(PromptCompletionRow, read_prompt_response)


def read_record(value: dict[str, Json], *, named: Format | None, suspect: bool = True) -> Record:
    """A row as a draft, in the format that was `named`, else in the one whose keys it has.

    `suspect`: texts are looked at, as the row's bytes did not prove them fine.
    """
    row_format = _plainly_chat(value) if named is None else named
    found = row_format or detect_format(value)
    if isinstance(found, Fault):
        return Record(None, (found,), None)
    plain = plain_chat(value) if found is Format.OPENAI and not suspect else None
    if plain is not None:
        return Record(plain, tuple(_check_metadata(plain, row_format=found)) if plain.metadata else (), found)
    recasted = recast(value, found)
    reading = _read(value, found) if recasted is None else _read_recast(recasted)
    draft, faults = reading
    if draft is None:
        return Record(None, faults, found)
    more = check_messages(draft)
    more.extend(check_tools(draft.tools) if draft.tools else calls_without_tools(draft))
    if suspect:
        more.extend(check_characters(draft))
    if draft.metadata:
        more.extend(_check_metadata(draft, row_format=found))
    return Record(draft, (*faults, *more), found)


def _plainly_chat(value: Mapping[str, Json]) -> Format | None:
    """The usual case, known at once: no other format does without one of these keys."""
    return Format.OPENAI if "messages" in value and _OTHERS.isdisjoint(value) else None


def _read(value: dict[str, Json], row_format: Format) -> Reading:
    reader = _READERS[row_format]
    if row_format is Format.PROMPT_RESPONSE and "response" not in value and "completion" in value:
        reader = _COMPLETION_READER
    value, error = _judged(value, reader.model)
    return reader.read(value) if error is None else _refused(value, error, row_format=row_format)


def _read_recast(recasted: Recast) -> Reading:
    row, error = _judged(dict(recasted.row), ChatRow)
    if error is None:
        return recasted.read()
    return Reading(None, tuple(map(recasted.moved, _refused(row, error, row_format=Format.OPENAI).faults)))


def _judged(value: dict[str, Json], model: type[BaseModel]) -> tuple[dict[str, Json], ValidationError | None]:
    """The row, and what the model says of it. A key with half a character has its fault already, and is taken out.

    Of an object with such a key Pydantic says that and nothing else.
    """
    try:
        model.model_validate(value)
    except ValidationError as error:
        if any(item["type"] == HALF_CHARACTER for item in error.errors(include_url=False, include_context=False)):
            whole = _without_half_keys(value)
            return (value, error) if whole == value else _judged(whole, model)
        return value, error
    return value, None


def _without_half_keys(value: Json) -> Json:
    if isinstance(value, list):
        return [_without_half_keys(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_half_keys(item) for key, item in value.items() if is_encodable(key)}
    return value


def _check_metadata(draft: Draft, *, row_format: Format) -> Iterator[Fault]:
    return (_metadata_fault(key, row_format) for key in draft.metadata)


@lru_cache(maxsize=1024)
def _metadata_fault(key: str, row_format: Format) -> Fault:
    # Most rows of a file have the same keys, each a fault that is said once.
    misplaced = MISPLACED if row_format is Format.OPENAI else MISPLACED_ELSEWHERE
    pointer = f"/{escape(key)}"
    if key in misplaced:
        return Fault("misplaced-key", pointer, f"{key!r} is not a key of this format", misplaced[key])
    return Fault("unknown-row-key", pointer, f"unknown key {key!r} of the row")


def _refused(value: dict[str, Json], error: ValidationError, *, row_format: Format) -> Reading:
    """The faults of a row that the model refuses, and those of the rules as far as its messages can be read."""
    others = [known for known in signatures_of(value) if known is not row_format]
    faults = faults_of(error, value=value)
    if others and any(fault.code == "missing-key" and fault.pointer.count("/") == 1 for fault in faults):
        what = f"the row is in the format {others[0]}, not in {row_format}"
        return Reading(None, (Fault("other-format", "", what),))
    if row_format is Format.OPENAI and isinstance(value.get("messages"), list):
        faults.extend(_readable_rules(value, faults))
    return Reading(None, tuple(faults))


def _readable_rules(value: dict[str, Any], faults: list[Fault]) -> list[Fault]:
    messages = value["messages"]
    # A message with a key too many can still be judged; one with a key of the wrong type cannot.
    broken = [fault.pointer.split("/") for fault in faults if fault.code != "unknown-key"]
    unreadable = frozenset(int(steps[2]) for steps in broken if steps[1:2] == ["messages"] and len(steps) > 2)
    weights = [_weight(message, readable=i not in unreadable) for i, message in enumerate(messages)]
    return check_messages(Draft(messages, weights), unreadable=unreadable) if messages else []


def _weight(message: Mapping[str, Json], *, readable: bool) -> float:
    if not readable or message["role"] != "assistant":
        return 1.0
    return float(message.get("weight", 1)) * float(message.get("train", True))
