"""ShareGPT: `{"conversations": [{"from": "human", "value": "..."}, ...]}`, with optional `system` and `tools`.

Turns with `role` and `content` instead are chat messages: `sftprep.records.recast`.

`function_call` turns hold JSON (`{"name": ..., "arguments": ...}` or a list of such) and become an assistant message
with tool calls; `observation` is a tool's result. `tools` may be a list or, as is usual in this format, a string that
holds one; a bare function becomes `{"type": "function", "function": ...}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from sftprep.data import Json
from sftprep.records.codes import Fault
from sftprep.records.draft import Draft, Reading, metadata_of
from sftprep.records.json_text import parse_json
from sftprep.records.openai import Weight, read_weight

ROLES: Final = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
_CALLS: Final = frozenset({"function_call", "tool_call"})


class Turn(BaseModel):
    """One message; `weight` and `train` as in the chat format."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    speaker: str = Field(alias="from")
    value: str
    weight: Weight = 1.0
    train: bool = True


class ShareGptRow(BaseModel):
    """One conversation a line. Other keys of the row are kept as metadata."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    conversations: Annotated[list[Turn], Field(min_length=1)]
    system: str | None = None
    tools: str | list[dict[str, Any]] | None = None


ROW_KEYS: Final = frozenset(ShareGptRow.model_fields)


def read_sharegpt(value: Mapping[str, Json]) -> Reading:
    """A row that `ShareGptRow` accepts, as a draft."""
    faults: list[Fault] = []
    messages, weights, places = [], [], []
    if value.get("system"):
        messages.append({"role": "system", "content": value["system"]})
        weights.append(1.0)
        places.append("/system")
    for index, turn in enumerate(value["conversations"]):
        pointer = f"/conversations/{index}"
        messages.append(_message(turn, pointer=pointer, faults=faults))
        places.append(f"{pointer}/value")
        weights.append(_weight(turn, pointer=pointer, faults=faults))
    tools = _tools(value.get("tools"), faults=faults)
    metadata = metadata_of(value, known=ROW_KEYS)
    draft = None if faults else Draft(messages, weights, tools=tools, metadata=metadata, places=places)
    return Reading(draft, tuple(faults))


def _message(turn: Mapping[str, Json], *, pointer: str, faults: list[Fault]) -> dict[str, Json]:
    speaker, text = turn["from"], turn["value"]
    if speaker not in ROLES:
        hint = f"speakers of this format are {', '.join(ROLES)}"
        faults.append(Fault("unknown-role", f"{pointer}/from", f"no speaker is called {speaker!r}", hint))
    if speaker in _CALLS:
        calls = _tool_calls(text, pointer=f"{pointer}/value", faults=faults)
        return {"role": "assistant", "content": "", "tool_calls": calls}
    return {"role": ROLES.get(speaker, ""), "content": text}


def _weight(turn: Mapping[str, Json], *, pointer: str, faults: list[Fault]) -> float:
    if "weight" not in turn and "train" not in turn:
        return 1.0
    if ROLES.get(turn["from"]) != "assistant":
        key = "weight" if "weight" in turn else "train"
        hint = "only what the model writes has a weight"
        faults.append(Fault("unknown-key", f"{pointer}/{key}", f"the key {key!r} stands in a prompt's turn", hint))
        return 1.0
    weight, more = read_weight(turn, pointer=pointer)
    faults += more
    return weight


def _tool_calls(text: str, *, pointer: str, faults: list[Fault]) -> list[Json]:
    parsed = parse_json(text.encode("utf-8", "replace"))  # Half a character was reported with the row.
    calls = parsed.value if isinstance(parsed.value, list) else [parsed.value]
    if parsed.faults or not calls or not all(_is_call(call) for call in calls):
        why = parsed.faults[0].message if parsed.faults else "name (text) and arguments are needed, nothing else"
        faults.append(Fault("bad-function-call", pointer, f"the function call cannot be read: {why}"))
        return []
    return [{"type": "function", "function": call} for call in calls]


def _is_call(call: Json) -> bool:
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        return False
    return bool(call["name"]) and isinstance(call["name"], str) and isinstance(call["arguments"], str | dict)


def _tools(tools: Json, *, faults: list[Fault]) -> list[Json] | None:
    if isinstance(tools, str):
        if not tools.strip():
            return None
        parsed = parse_json(tools.encode("utf-8", "replace"))  # as above
        if parsed.faults or not isinstance(parsed.value, list):
            hint = "tools is a list of functions, or a string that holds such a list as JSON"
            faults.append(Fault("bad-tool", "/tools", "the text in tools is not a JSON list", hint))
            return None
        tools = parsed.value
    if not tools:
        return None
    return [{"type": "function", "function": tool} if _is_bare(tool) else tool for tool in tools]


def _is_bare(tool: Json) -> bool:
    return isinstance(tool, dict) and "function" not in tool and isinstance(tool.get("name"), str)
