"""A conversation as the texts that the measures of quality compare: prompts, responses, the whole, each answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sftprep.data import Conversation, Json, Role, RowAddress


@dataclass(frozen=True, slots=True)
class Answer:
    """The text of a trained assistant turn, and what it answers.

    `prompt` is the last user message before it; `tool_results` what tools returned since then; `context` everything
    that users, tools and the system said before it.
    """

    message: int
    text: str
    prompt: str
    tool_results: str
    context: str


@dataclass(frozen=True, slots=True)
class RowText:
    """The texts of a row. System messages are in none: a data set shares them, so they would make all rows alike."""

    address: RowAddress
    prompts: str
    responses: str
    conversation: str
    answers: Sequence[Answer]


def row_text(conversation: Conversation) -> RowText:
    """The texts of a conversation; tool calls count as text of a response, and only trained turns are answers."""
    said = [(message["role"], _spoken(message)) for message in conversation.messages]
    return RowText(
        conversation.address,
        prompts=_join(text for role, text in said if role == Role.USER),
        responses=_join(text for role, text in said if role == Role.ASSISTANT),
        conversation=_join(text for role, text in said if role not in (Role.SYSTEM, Role.DEVELOPER)),
        answers=tuple(_answers(conversation)),
    )


def _answers(conversation: Conversation) -> Iterator[Answer]:
    prompt = ""
    results: list[str] = []
    context: list[str] = []
    for index, message in enumerate(conversation.messages):
        text = content_text(message)
        if message["role"] == Role.ASSISTANT:
            if text.strip() and conversation.weights[index]:
                yield Answer(index, text, prompt, _join(results), _join(context))
            continue
        context.append(text)
        if message["role"] == Role.USER:
            prompt, results = text, []
        elif message["role"] == Role.TOOL:
            results.append(text)


def _join(texts: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(text for text in texts if text)


def _spoken(message: Mapping[str, Json]) -> str:
    calls = message.get("tool_calls")
    called = json.dumps(calls, ensure_ascii=False) if calls else ""
    return _join([content_text(message), called])


def content_text(message: Mapping[str, Json]) -> str:
    """The text of a message's content: a string, or the text parts of a list; '' for none."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return _join([part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)])
