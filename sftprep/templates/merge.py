"""Two answers in a row as one message, for those who ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sftprep.data import Conversation, Json, Role

_JOINED_BY = "\n\n"


def merge_consecutive(conversation: Conversation) -> tuple[Conversation, list[int]]:
    """Assistant messages that follow each other and weigh the same become one; and each message's first old index.

    Texts are joined by a blank line, tool calls are strung together; whatever only the first or the last one has,
    the merged one has. Messages with tool calls end a stretch: a result belongs behind them.
    """
    messages: list[Mapping[str, Json]] = []
    weights: list[float] = []
    origin: list[int] = []
    for index, (message, weight) in enumerate(zip(conversation.messages, conversation.weights, strict=True)):
        if messages and _belong_together(messages[-1], message) and weights[-1] == weight:
            messages[-1] = _merged(messages[-1], message)
            continue
        messages.append(message)
        weights.append(weight)
        origin.append(index)
    return replace(conversation, messages=messages, weights=weights), origin


def _belong_together(first: Mapping[str, Json], second: Mapping[str, Json]) -> bool:
    both = first.get("role") == second.get("role") == Role.ASSISTANT
    return both and not first.get("tool_calls")


def _merged(first: Mapping[str, Json], second: Mapping[str, Json]) -> Mapping[str, Json]:
    merged = {**first, **{key: value for key, value in second.items() if value is not None}}
    for key in ("reasoning_content", "content"):
        values = [message[key] for message in (first, second) if message.get(key)]
        if values:
            merged[key] = _joined(values)
    return merged


def _joined(values: list[Json]) -> Json:
    if all(isinstance(value, str) for value in values):
        return _JOINED_BY.join(values)
    parts = [value if isinstance(value, list) else [{"type": "text", "text": value}] for value in values]
    return [part for value in parts for part in value]
