"""The wire format: one conversation a row, messages as the chat APIs of model servers take them.

`ChatRow` is what users write, and what every other format is converted to. Unknown keys of a message are errors,
unknown keys of the row are metadata. `weight` and `train` are read by sftprep and never reach a template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from sftprep.data import Json
from sftprep.records.codes import Fault
from sftprep.records.draft import Draft, Reading, metadata_of

_STRICT: Final = ConfigDict(frozen=True, extra="forbid", strict=True)

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]


class TextPart(BaseModel):
    """A part of a message's content; the templates decide how parts are joined."""

    model_config = _STRICT

    type: Literal["text"]
    text: str


Text = str | list[TextPart]


class FunctionCall(BaseModel):
    """Which function is called, with what."""

    model_config = _STRICT

    name: Name
    arguments: str | dict[str, Any] = Field(description="A JSON object, or a string that holds one; kept as it came.")


class ToolCall(BaseModel):
    """One call of a tool by the assistant."""

    model_config = _STRICT

    id: Name | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class SystemMessage(BaseModel):
    """The system prompt; comes first."""

    model_config = _STRICT

    role: Literal["system"]
    content: Text
    name: str | None = None


class DeveloperMessage(BaseModel):
    """The system prompt, as newer APIs call it."""

    model_config = _STRICT

    role: Literal["developer"]
    content: Text
    name: str | None = None


class UserMessage(BaseModel):
    """What the user wrote. Never trained."""

    model_config = _STRICT

    role: Literal["user"]
    content: Text
    name: str | None = None


class AssistantMessage(BaseModel):
    """What the model is to write. Trained, unless its weight is 0."""

    model_config = _STRICT

    role: Literal["assistant"]
    content: Text | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = Field(default=None, description="What the model thought before it answered.")
    reasoning: str | None = Field(default=None, description="Another name of reasoning_content.")
    thinking: str | None = Field(default=None, description="Another name of reasoning_content.")
    name: str | None = None
    weight: Weight = Field(default=1.0, description="Of this message's tokens in the loss; 0: context only.")
    train: bool = Field(default=True, description="false is weight 0.")


class ToolMessage(BaseModel):
    """The result of a tool call. Never trained."""

    model_config = _STRICT

    role: Literal["tool"]
    content: Text
    name: str | None = None
    tool_call_id: Name | None = None


Message = Annotated[
    SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class ChatRow(BaseModel):
    """One conversation a line. Other keys of the row are kept as metadata."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[dict[str, Any]] | None = Field(
        default=None, description="Functions that the model may call: JSON Schemas as the template shows them."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Variables for the chat template, such as enable_thinking, for this row."
    )


ROW_KEYS: Final = frozenset(ChatRow.model_fields)
MISPLACED_ELSEWHERE: Final = {
    "messages": "rows with messages are of the format openai",
    "functions": "write tools, in the format openai or sharegpt",
    "tools": "write tools in the format openai or sharegpt",
    "chat_template_kwargs": "variables for the template go into rows of the format openai",
}
"""The same in rows of other formats."""
MISPLACED: Final = {
    "functions": "call it tools",
    "system": "write it as the first message, with role system",
    "system_prompt": "write it as the first message, with role system",
}
"""Keys that would be lost as metadata although the model was meant to see them, and where they belong."""


def read_chat(value: Mapping[str, Json]) -> Reading:
    """A row that `ChatRow` accepts, as a draft: messages are the row's own objects, minus weight and train."""
    messages, faults = [], []
    weights = [1.0] * len(value["messages"])
    for index, message in enumerate(value["messages"]):
        if "weight" in message or "train" in message:
            weights[index], message_faults = read_weight(message, pointer=f"/messages/{index}")
            faults += message_faults
            messages.append({key: item for key, item in message.items() if key not in {"weight", "train"}})
        else:
            messages.append(message)
    draft = Draft(
        messages=messages,
        weights=weights,
        tools=value.get("tools"),
        template_kwargs=value.get("chat_template_kwargs") or {},
        metadata=metadata_of(value, known=ROW_KEYS),
    )
    return Reading(draft, tuple(faults))


def read_weight(message: Mapping[str, Json], *, pointer: str) -> tuple[float, list[Fault]]:
    """The weight of a message that has a key `weight` or `train`, and a fault where it has both."""
    if "weight" in message and "train" in message:
        return 1.0, [Fault("weight-and-train", pointer, "the message has both weight and train")]
    return float(message["weight"] if "weight" in message else message["train"]), []
