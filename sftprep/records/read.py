"""One way into all formats: a JSON object to a draft, with every fault of its keys, types and rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ValidationError

from sftprep.data import Json
from sftprep.records.alpaca import AlpacaRow, read_alpaca
from sftprep.records.codes import Fault, escape
from sftprep.records.detect import signatures_of
from sftprep.records.draft import Draft, Format, Reading
from sftprep.records.openai import MISPLACED, ChatRow, read_chat
from sftprep.records.prompt_response import PromptCompletionRow, PromptResponseRow, read_prompt_response
from sftprep.records.rules import check_messages
from sftprep.records.sharegpt import ShareGptRow, read_sharegpt
from sftprep.records.text_rules import check_characters
from sftprep.records.tool_rules import calls_without_tools, check_tools
from sftprep.records.wire_errors import faults_of


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


def read_record(value: dict[str, Json], *, row_format: Format, detected: bool, suspect: bool = True) -> Reading:
    """A row as a draft. `detected`: nobody named the format, so a row that could be of another one is refused.

    `suspect`: characters are looked at, as the row's bytes did not prove them fine.
    """
    reader = _READERS[row_format]
    if row_format is Format.PROMPT_RESPONSE and "response" not in value and "completion" in value:
        reader = _COMPLETION_READER
    try:
        reader.model.model_validate(value)
    except ValidationError as error:
        return _refused(value, error, row_format=row_format)
    draft, faults = reader.read(value)
    if draft is None:
        return Reading(None, faults)
    more = check_messages(draft)
    more.extend(check_tools(draft.tools) if draft.tools else calls_without_tools(draft))
    if suspect:
        more.extend(check_characters(draft))
    if draft.metadata:
        more.extend(_check_metadata(value, draft, row_format=row_format, detected=detected))
    return Reading(draft, (*faults, *more))


def _check_metadata(value: dict[str, Json], draft: Draft, *, row_format: Format, detected: bool) -> list[Fault]:
    if detected and len(signatures_of(value)) > 1:
        return [Fault("ambiguous-row", "", f"the row has the keys of several formats: {', '.join(sorted(value))}")]
    faults = []
    for key in draft.metadata:
        pointer = f"/{escape(key)}"
        if row_format is Format.OPENAI and key in MISPLACED:
            faults.append(Fault("misplaced-key", pointer, f"{key!r} is not a key of this format", MISPLACED[key]))
        else:
            faults.append(Fault("unknown-row-key", pointer, f"unknown key {key!r} of the row"))
    return faults


def _refused(value: dict[str, Json], error: ValidationError, *, row_format: Format) -> Reading:
    """The faults of a row that the model refuses, and those of the rules as far as its messages can be read."""
    others = [known for known in signatures_of(value) if known is not row_format]
    faults = faults_of(error, value=value)
    if others and any(fault.code == "missing-key" and fault.pointer.count("/") == 1 for fault in faults):
        what = f"the row is in the format {others[0]}, the file in {row_format}"
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
