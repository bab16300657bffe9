"""Control tokens that somebody typed: found in the fields of a conversation, and told apart in a rendered text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pydantic_core import PydanticSerializationError, to_json

from sftprep.data import Conversation, Json
from sftprep.errors import MaskError
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
        self._pattern = re.compile(b"|".join(re.escape(token.encode("utf-8", "surrogatepass")) for token in tokens))

    def clears(self, conversation: Conversation) -> bool:
        """True where no text or key holds one for certain; False says nothing."""
        if not self._is_plain:
            return False
        try:
            written = to_json([conversation.messages, conversation.tools], inf_nan_mode="constants")
        except (PydanticSerializationError, ValueError):
            return False
        return self._pattern.search(written) is None


def typed_tokens(conversation: Conversation, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """JSON pointer and match of each field with a control token in it; the first of each field."""
    fields = [(f"/messages/{index}", message) for index, message in enumerate(conversation.messages)]
    for path, value in [*fields, ("/tools", list(conversation.tools or ()))]:
        for place, text in _strings(value, path):
            match = pattern.search(text)
            if match:
                yield place, match


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
