"""What a conversation must be beyond its keys and types: who speaks when, and that somebody says something."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sftprep.records.codes import Fault
from sftprep.records.draft import Draft
from sftprep.records.text_rules import check_answer, text_of
from sftprep.records.tool_rules import ToolState

_SYSTEM_ROLES: Final = frozenset({"system", "developer"})


def check_messages(draft: Draft, *, unreadable: frozenset[int] = frozenset()) -> list[Fault]:
    """All faults of a conversation, message by message, then those of the whole.

    Messages whose index is in `unreadable` have faults already: they are not judged, and nor is what depends on all
    messages being known.
    """
    faults: list[Fault] = []
    tools = ToolState.of(draft, unreadable=unreadable)
    previous = ""
    for index, message in enumerate(draft.messages):
        role = "" if index in unreadable else message["role"]
        if role == "assistant":
            faults.extend(_check_assistant(draft, index, tools, previous=previous))
        elif role == "tool":
            faults.extend(() if unreadable else tools.check_result(draft, index))
        elif role:
            faults.extend(_check_prompt(draft, index, tools, previous=previous))
        previous = role
    if not unreadable:
        faults.extend(_check_whole(draft, tools, last=previous))
    return faults


def _check_prompt(draft: Draft, index: int, tools: ToolState, *, previous: str) -> Iterator[Fault]:
    """Faults of what a system, developer or user message says, and when."""
    message = draft.messages[index]
    role = message["role"]
    if index and role in _SYSTEM_ROLES:
        yield Fault("late-system", draft.place(index), f"a {role} message that is not the first")
    if role == previous == "user":
        yield Fault("consecutive-user", draft.place(index), "follows another user message")
    text = text_of(message)
    if not text or text.isspace():
        what = "is white space only" if text else "is empty"
        yield Fault("blank-content", draft.place(index, "content"), f"the {role}'s text {what}")
    yield from tools.unanswered()


def _check_assistant(draft: Draft, index: int, tools: ToolState, *, previous: str) -> Iterator[Fault]:
    message = draft.messages[index]
    calls = message.get("tool_calls")
    if previous == "assistant":
        yield Fault("consecutive-assistant", draft.place(index), "follows another assistant message")
    elif not index or (index == 1 and previous in _SYSTEM_ROLES):
        yield Fault("starts-with-assistant", draft.place(index), "the assistant speaks before any user")
    text = text_of(message)
    if not calls and draft.weights[index] > 0 and (not text or text.isspace()):
        what = "the assistant's text is white space only" if text else "the assistant says nothing and calls nothing"
        yield Fault("empty-completion", draft.place(index), what)
    yield from check_answer(draft, index, text)
    if not calls or previous == "tool":
        yield from tools.unanswered()
    if calls:
        yield from tools.check_calls(draft, index)


def _check_whole(draft: Draft, tools: ToolState, *, last: str) -> Iterator[Fault]:
    if all(message["role"] != "assistant" for message in draft.messages):
        yield Fault("no-assistant", draft.list_place, "no message is the assistant's")
    elif last != "assistant":
        index = len(draft.messages) - 1
        yield Fault("ends-without-assistant", draft.place(index), f"the last message is the {last}'s")
        yield from tools.unanswered()
