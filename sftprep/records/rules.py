"""What a conversation must be beyond its keys and types: who speaks when, and which result answers which call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sftprep.data import Json
from sftprep.records.codes import Fault
from sftprep.records.draft import Draft
from sftprep.records.json_text import parse_json

_SYSTEM_ROLES: Final = frozenset({"system", "developer"})
_REASONING_KEYS: Final = ("reasoning_content", "reasoning", "thinking")


@dataclass(slots=True)
class _Calls:
    """The tool calls met so far: whether any call or result has an id, which were called, which wait."""

    use_ids: bool
    called: set[str] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)
    any_call: bool = False

    def note(self, key: str | None) -> None:
        """A call was made; None: without an id."""
        self.any_call = True
        if key is not None:
            self.called.add(key)
            self.waiting.add(key)


def check_messages(draft: Draft, *, unreadable: frozenset[int] = frozenset()) -> list[Fault]:
    """All faults of a conversation, message by message, then those of the whole.

    Messages whose index is in `unreadable` have faults already: they are not judged, and nor is what depends on all
    messages being known.
    """
    faults: list[Fault] = []
    calls = _Calls(use_ids=_use_ids(draft.messages, unreadable))
    previous = ""
    for index, message in enumerate(draft.messages):
        role = "" if index in unreadable else message["role"]
        if role == "assistant":
            faults.extend(_check_assistant(draft, index, previous=previous))
            faults.extend(_check_calls(draft, index, calls))
        elif role == "tool" and not unreadable:
            faults.extend(_check_result(draft, index, calls))
        elif index and role in _SYSTEM_ROLES:
            faults.append(Fault("late-system", draft.place(index), f"a {role} message that is not the first"))
        previous = role
    if not unreadable:
        faults.extend(_check_whole(draft, last=previous))
    return faults


def check_tools(tools: Sequence[Json]) -> Iterator[Fault]:
    """Faults of the declared functions."""
    for index, tool in enumerate(tools):
        function = tool.get("function")
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            continue
        if "function" not in tool and isinstance(tool.get("name"), str):
            yield Fault("bare-tool", f"/tools/{index}", "a function without its wrapping")
        else:
            yield Fault("bad-tool", f"/tools/{index}", "no function with a name")


def _use_ids(messages: Sequence[Mapping[str, Json]], unreadable: frozenset[int]) -> bool:
    readable = (message for index, message in enumerate(messages) if index not in unreadable)
    return any(_has_id(message) for message in readable)


def _has_id(message: Mapping[str, Json]) -> bool:
    # Asked by role: in another role's message these keys are unknown, and may hold anything.
    if message["role"] == "assistant":
        return any(call.get("id") for call in message.get("tool_calls") or ())
    return message["role"] == "tool" and message.get("tool_call_id") is not None


def _check_assistant(draft: Draft, index: int, *, previous: str) -> Iterator[Fault]:
    if previous == "assistant":
        yield Fault("consecutive-assistant", draft.place(index), "follows another assistant message")
    message = draft.messages[index]
    content = message.get("content")
    text = content if isinstance(content, str) else "".join(part["text"] for part in content or ())
    if not text and not message.get("tool_calls") and draft.weights[index] > 0:
        yield Fault("empty-completion", draft.place(index), "the assistant says nothing and calls nothing")
    if "think>" in text and not _is_balanced(text):
        where = draft.place(index, "content")
        yield Fault("unbalanced-reasoning", where, "<think> and </think> do not pair up")
    for key in _REASONING_KEYS:
        reasoning = message.get(key)
        if reasoning and "think>" in reasoning and not _is_balanced(reasoning):
            yield Fault("unbalanced-reasoning", draft.place(index, key), "<think> and </think> do not pair up")


def _is_balanced(text: str) -> bool:
    """Whether each <think> is closed before the next one opens, and nothing is closed that is not open."""
    before, *opened = text.split("<think>")
    return "</think>" not in before and all(part.count("</think>") == 1 for part in opened)


def _check_calls(draft: Draft, index: int, calls: _Calls) -> Iterator[Fault]:
    for number, call in enumerate(draft.messages[index].get("tool_calls") or ()):
        place = draft.place(index, f"tool_calls/{number}")
        yield from _check_arguments(
            call["function"]["arguments"], pointer=draft.place(index, f"tool_calls/{number}/function/arguments")
        )
        key = call.get("id")
        if key is None:
            if calls.use_ids:
                yield Fault("missing-tool-call-id", place, "a call without an id beside calls or results that have one")
        elif key in calls.called:
            # Models do use an id again once it is answered; only two open calls with one id cannot be told apart.
            code = "duplicate-tool-call-id" if key in calls.waiting else "reused-tool-call-id"
            yield Fault(code, draft.place(index, f"tool_calls/{number}/id"), f"the id {key!r} was used before")
        calls.note(key)


def _check_arguments(arguments: Json, *, pointer: str) -> Iterator[Fault]:
    if not isinstance(arguments, str):
        return
    # A surrogate that is alone in the row's text was reported with it.
    parsed = parse_json(arguments.encode("utf-8", "surrogatepass"))
    if parsed.faults:
        yield Fault("bad-arguments", pointer, f"the text in arguments is not sound JSON: {parsed.faults[0].message}")
    elif not isinstance(parsed.value, dict):
        yield Fault("arguments-not-object", pointer, "the JSON text in arguments is not an object")


def _check_result(draft: Draft, index: int, calls: _Calls) -> Iterator[Fault]:
    key = draft.messages[index].get("tool_call_id")
    if key is None:
        if calls.use_ids:
            yield Fault("missing-tool-call-id", draft.place(index), "a result without tool_call_id")
        elif not calls.any_call:
            yield Fault("orphan-tool-result", draft.place(index), "a tool result without a tool call before it")
    elif key not in calls.called:
        yield Fault("unknown-tool-call-id", draft.place(index, "tool_call_id"), f"no call before it has the id {key!r}")
    elif key not in calls.waiting:
        yield Fault("repeated-tool-result", draft.place(index, "tool_call_id"), f"the call {key!r} is answered twice")
    else:
        calls.waiting.discard(key)


def _check_whole(draft: Draft, *, last: str) -> Iterator[Fault]:
    if all(message["role"] != "assistant" for message in draft.messages):
        where = "/messages" if draft.places is None else "/conversations"
        yield Fault("no-assistant", where, "no message is the assistant's")
    elif last != "assistant":
        index = len(draft.messages) - 1
        yield Fault("ends-without-assistant", draft.place(index), f"the last message is the {last}'s")
