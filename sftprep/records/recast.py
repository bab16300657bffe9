"""Rows that hold chat messages under other names: read as chat rows, with pointers into the row as it was written.

`{"prompt": [messages], "completion": [messages]}` (either may be text) and `{"conversations": [{"role", "content"}]}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sftprep.data import Json
from sftprep.records.codes import Fault
from sftprep.records.draft import Format, Reading, moved
from sftprep.records.openai import MISPLACED_ELSEWHERE, read_chat


@dataclass(frozen=True, slots=True)
class Recast:
    """A chat row and where each of its messages stood; what ends in a slash is an object, else a text.

    The first `num_prompt` messages are a prompt: their answers are context unless they have a weight.
    """

    row: Mapping[str, Json]
    places: Sequence[str]
    num_prompt: int
    stray: tuple[Fault, ...] = ()
    """Keys that a chat row's own would hide."""

    def moved(self, fault: Fault) -> Fault:
        """A fault of the chat row with its pointer into the row as it was written."""
        return replace(fault, pointer=moved(fault.pointer, self.places))

    def read(self) -> Reading:
        """The chat row, which `ChatRow` accepts, as a draft."""
        draft, faults = read_chat(self.row)
        if draft is None:
            return Reading(None, tuple(map(self.moved, faults)))
        weights = list(draft.weights)
        for index, message in enumerate(self.row["messages"][: self.num_prompt]):
            if message["role"] == "assistant" and "weight" not in message and "train" not in message:
                weights[index] = 0.0
        draft = replace(draft, weights=weights, places=self.places)
        return Reading(draft, (*map(self.moved, faults), *self.stray))


def recast(value: Mapping[str, Json], row_format: Format) -> Recast | None:
    """The row as a chat row, where it holds messages under another name; None where it does not."""
    if row_format is Format.PROMPT_RESPONSE:
        answer = "response" if "response" in value or "completion" not in value else "completion"
        if isinstance(value.get("prompt"), list) or isinstance(value.get(answer), list):
            return _pair(value, answer)
    elif row_format is Format.SHAREGPT and _has_roles(value.get("conversations")):
        turns = value["conversations"]
        first, place = _system(value)
        places = [*place, *_places("conversations", turns)]
        rest = _rest(value, {"conversations", "system"})
        return Recast({"messages": [*first, *turns], **rest}, places, 0, _stray(value))
    return None


def _pair(value: Mapping[str, Json], answer: str) -> Recast:
    first, place = _system(value)
    prompt = _messages(value.get("prompt"), role="user")
    completion = _messages(value.get(answer), role="assistant")
    places = [*place, *_places("prompt", value.get("prompt")), *_places(answer, value.get(answer))]
    rest = _rest(value, {"prompt", answer, "system"})
    row = {"messages": [*first, *prompt, *completion], **rest}
    return Recast(row, places, len(first) + len(prompt), _stray(value))


def _rest(value: Mapping[str, Json], read: set[str]) -> dict[str, Json]:
    return {key: item for key, item in value.items() if key not in read | {"messages"}}


def _stray(value: Mapping[str, Json]) -> tuple[Fault, ...]:
    if "messages" not in value:
        return ()
    hint = MISPLACED_ELSEWHERE["messages"]
    return (Fault("misplaced-key", "/messages", "'messages' is not a key of this format", hint),)


def _system(value: Mapping[str, Json]) -> tuple[list[Json], list[str]]:
    if not value.get("system"):
        return [], []
    return [{"role": "system", "content": value["system"]}], ["/system"]


def _messages(value: Json, *, role: str) -> list[Json]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _places(key: str, value: Json) -> list[str]:
    return [f"/{key}/{index}/" for index in range(len(value))] if isinstance(value, list) else [f"/{key}"]


def _has_roles(turns: Json) -> bool:
    """Whether the first turn is a chat message and not a `from` and a `value`."""
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and "role" in first and "from" not in first
