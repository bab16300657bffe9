"""Control tokens that somebody typed: found in the fields of a conversation, and told apart in a rendered text."""

from __future__ import annotations

import itertools
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence

from pydantic_core import PydanticSerializationError, to_json

from sftprep.data import Conversation, Json
from sftprep.errors import MaskError
from sftprep.templates.runs import Run
from sftprep.templates.template import TracedText
from sftprep.templates.turns import is_template_text


def refuse_control_tokens(conversation: Conversation, pattern: re.Pattern[str]) -> None:
    """MaskError `control-token` where a message or a tool holds the text of a control token."""
    for error in typed_errors(conversation, pattern):
        raise error


def typed_errors(conversation: Conversation, pattern: re.Pattern[str]) -> Iterator[MaskError]:
    """One for each field with the text of a control token."""
    for path, match in typed_tokens(conversation, pattern):
        yield MaskError(
            f"the text holds the control token {match.group()!r}, which the tokenizer would not read as text",
            code="control-token",
            place=path,
            hint="clean the row; --control-tokens split encodes it as text, allow as a control token, as a server does",
        )


class TokenSearch:
    """Tells quickly of most conversations that nothing in them is the text of a control token."""

    def __init__(self, tokens: Sequence[str]) -> None:
        # Written as JSON a token is as it is, unless it holds what JSON escapes; and no quote means in one string.
        self._is_plain = not any(character < " " or character in '"\\\x7f' for token in tokens for character in token)
        self._pattern = re.compile(_beginning([token.encode("utf-8", "surrogatepass") for token in tokens]))

    def clears(self, conversation: Conversation) -> bool:
        """True where `may_hold_tokens` is false for certain; False says nothing."""
        if not self._is_plain or any(_has_parts(message) for message in conversation.messages):
            return False
        try:
            written = to_json([conversation.messages, conversation.tools], inf_nan_mode="constants")
        except (PydanticSerializationError, ValueError):
            return False
        # A backslash in a text, which JSON writes twice, may be an escape of arguments that a template takes away.
        return self._pattern.search(written) is None and rb"\\" not in written

    def holding(self, texts: Sequence[bytes]) -> set[int]:
        """The numbers of the texts, UTF-8, that may hold the text of a control token: all are searched at once."""
        spans = [match.span() for match in self._pattern.finditer(b"\n".join(texts))]
        if not spans:
            return set()
        # What is found across a border may hide what begins in it, so all texts that it touches are named.
        begins = list(itertools.accumulate([len(text) + 1 for text in texts], initial=0))
        touched = [range(bisect_right(begins, start) - 1, bisect_left(begins, stop)) for start, stop in spans]
        return set(itertools.chain.from_iterable(touched))


def _beginning(words: Sequence[bytes]) -> bytes:
    """A pattern of what begins with one of some words, beginnings that they share written once.

    There may be a thousand that begin alike, and `re` tries one after the other wherever they might begin.
    """
    if b"" in words:
        return b""
    rest: dict[bytes, list[bytes]] = {}
    for word in words:
        rest.setdefault(word[:1], []).append(word[1:])
    return b"(?:" + b"|".join(re.escape(first) + _beginning(own) for first, own in rest.items()) + b")"


def _has_parts(message: Mapping[str, Json]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and len(content) > 1


def typed_tokens(conversation: Conversation, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """JSON pointer and match of each field with a control token in it; the first of each field."""
    fields = [(f"/messages/{index}", message) for index, message in enumerate(conversation.messages)]
    for path, value in [*fields, ("/tools", list(conversation.tools or ()))]:
        for place, text in _strings(value, path):
            match = pattern.search(text)
            if match:
                yield place, match


def may_hold_tokens(conversation: Conversation, pattern: re.Pattern[str]) -> bool:
    """Whether a template may show a control token that somebody typed, in one text or in pieces that it joins.

    True says nothing for certain: a template may write arguments as they are, escapes and all, or keep parts apart.
    """
    return any(True for _ in typed_tokens(conversation, pattern)) or any(
        pattern.search(text) for message in conversation.messages for text in _formed(message)
    )


def _formed(message: Mapping[str, Json]) -> Iterator[str]:
    """Texts that templates make of a message: its parts joined, and its arguments without JSON's escapes."""
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, list):
        yield "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(arguments, str) and "\\" in arguments:
            yield from _unescaped(arguments)


def _unescaped(arguments: str) -> Iterator[str]:
    try:
        yield from (text for _, text in _strings(json.loads(arguments), ""))
    except (ValueError, RecursionError):
        return


def refuse_formed_tokens(traced: TracedText, pattern: re.Pattern[str]) -> None:
    """MaskError `control-token` where a rendered text holds a control token that the template did not write.

    No field holds it: the template joined it from pieces, or took the JSON escapes away that hid it.
    """
    found = formed_token(traced, pattern)
    if found is None:
        return
    match, run = found
    source = traced.sources[run.source]
    raise MaskError(
        f"the template makes the control token {match!r} of this text, which the tokenizer would not read as text",
        code="control-token",
        place=f"/messages/{source.message}{source.path}" if source.message >= 0 else source.path,
        hint="clean the row; --control-tokens split encodes it as text, allow as a control token, as a server does",
    )


def formed_token(traced: TracedText, pattern: re.Pattern[str]) -> tuple[str, Run] | None:
    """The first control token of a text that somebody typed a part of, and the run of that part."""
    for match in pattern.finditer(traced.text):
        for at in traced.within(*match.span()):
            if not is_template_text(traced, at.run):
                return match.group(), at.run
    return None


def _strings(value: Json, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{path}/{key}", key
            yield from _strings(item, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _strings(item, f"{path}/{index}")


def written_tokens(traced: TracedText, pattern: re.Pattern[str]) -> tuple[tuple[int, int], ...]:
    """Where in a text the template itself wrote a control token, every character of it: `[start, stop)` each.

    What is not among them and looks like one was typed by somebody, in whole or in part.
    """
    typed = [(at.start, at.stop) for at in traced.placed if not is_template_text(traced, at.run)]
    found: list[tuple[int, int]] = []
    position = 0
    while match := pattern.search(traced.text, position):
        is_typed = _overlaps(typed, match.span())
        found += [] if is_typed else [match.span()]
        # A token may begin inside one that was typed: it is looked for from the next character on.
        position = match.start() + 1 if is_typed else match.end()
    return tuple(found)


def _overlaps(spans: Sequence[tuple[int, int]], span: tuple[int, int]) -> bool:
    return any(start < span[1] and stop > span[0] for start, stop in spans)
