"""The form in which a template wants messages: probed on the template itself, never guessed.

Three things differ between templates, and servers do either: a tool call's arguments come as an object or as a JSON
string, the content of a message that only calls tools is absent or empty, and text parts are kept, joined by line
breaks or made of strings (as vLLM does for templates that read content as one string, or as parts only).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sftprep.data import Json, Role
from sftprep.errors import TemplateError
from sftprep.templates.template import ChatTemplate, Request

_KEY: Final = "probekey"
_VALUE: Final = "probevalue"


class ArgumentForm(StrEnum):
    """How a template renders arguments unescaped."""

    EITHER = "either"
    OBJECT = "object"
    STRING = "string"
    NEITHER = "neither"


@dataclass(frozen=True, slots=True)
class MessageForm:
    """What a template wants.

    `empty_content`: it fails where content is absent; `join_parts`: it wants one string; `wrap_text`: it shows parts
    and nothing of a string.
    """

    arguments: ArgumentForm
    empty_content: bool
    join_parts: bool
    wrap_text: bool = False


@functools.lru_cache(maxsize=8)
def probe_form(template: ChatTemplate) -> MessageForm:
    """Render each form and look which comes out as the model would write it."""
    as_object: Json = {_KEY: _VALUE}
    as_string = json.dumps(as_object)
    absent = _call_text(template, as_object, {}) or _call_text(template, as_string, {})
    content = {} if absent else {"content": ""}
    form = _argument_form(
        _is_written(_call_text(template, as_object, content)), _is_written(_call_text(template, as_string, content))
    )
    shows_parts = _shows(template, [{"type": "text", "text": _VALUE}])
    wrap = shows_parts and not _shows(template, _VALUE)
    return MessageForm(form, empty_content=not absent, join_parts=not shows_parts, wrap_text=wrap)


def _argument_form(as_object: bool, as_string: bool) -> ArgumentForm:
    if as_object and as_string:
        return ArgumentForm.EITHER
    if as_object:
        return ArgumentForm.OBJECT
    return ArgumentForm.STRING if as_string else ArgumentForm.NEITHER


def _call_text(template: ChatTemplate, arguments: Json, content: Mapping[str, Json]) -> str:
    """A rendered call; empty where the template refuses it."""
    tool = {"name": "probe", "description": "probe", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "probe0001", "type": "function", "function": {"name": "probe", "arguments": arguments}}
    messages: list[dict[str, Json]] = [{"role": "user", "content": "probe"}]
    messages.append({"role": "assistant", **content, "tool_calls": [call]})
    return _text(template, messages, Request(tools=[{"type": "function", "function": tool}]))


def _text(template: ChatTemplate, messages: Sequence[Mapping[str, Json]], request: Request) -> str:
    try:
        return template.render(messages, request, prompt=False)
    except TemplateError:
        return ""


def _is_written(text: str) -> bool:
    """Whether key and value appear, neither escaped within JSON nor as Python writes a dict."""
    return _KEY in text and _VALUE in text and f'\\"{_KEY}' not in text and f"'{_KEY}'" not in text


def _shows(template: ChatTemplate, content: Json) -> bool:
    """Whether content comes out as its text, not as Python writes a list."""
    messages: list[dict[str, Json]] = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    text = _text(template, messages, Request())
    return text.count(_VALUE) > 1 and f"'{_VALUE}'" not in text


def adapt_messages(messages: Sequence[Mapping[str, Json]], form: MessageForm) -> list[Mapping[str, Json]]:
    """The messages in the form that the template renders as the model would write it."""
    return [_adapted(message, form) for message in messages]


def _adapted(message: Mapping[str, Json], form: MessageForm) -> Mapping[str, Json]:
    calls = message.get("tool_calls")
    content = message.get("content")
    if isinstance(calls, list) and calls:
        message = {**message, "tool_calls": [_adapted_call(call, form.arguments) for call in calls]}
        if form.empty_content and message.get("role") == Role.ASSISTANT and content is None:
            message = {**message, "content": ""}
    if form.join_parts and isinstance(content, list) and all(isinstance(part, dict) for part in content):
        message = {**message, "content": "\n".join(str(part.get("text", "")) for part in content)}
    if form.wrap_text and isinstance(content, str):
        message = {**message, "content": [{"type": "text", "text": content}]}
    return message


def _adapted_call(call: Json, form: ArgumentForm) -> Json:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    return {**call, "function": {**function, "arguments": _as_form(function["arguments"], form)}}


def _as_form(arguments: Json, form: ArgumentForm) -> Json:
    if form is ArgumentForm.OBJECT and isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except json.JSONDecodeError:
            return arguments
    if form is ArgumentForm.STRING and not isinstance(arguments, str):
        return json.dumps(arguments, ensure_ascii=False)
    return arguments
