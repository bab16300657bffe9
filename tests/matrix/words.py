"""What each author of a conversation says, as words to look for in a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from tests.matrix.suite import Json

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORD.findall(text)


def pieces_of(message: Json) -> Iterator[tuple[str, str]]:
    """What a message says: JSON pointers and texts, in the order of its keys."""
    for key in ("reasoning_content", "content"):
        value = message.get(key)
        parts = [(f"/{key}", value)] if isinstance(value, str) else _parts(value)
        yield from ((path, text) for path, text in parts if text.strip())
    for number, call in enumerate(message.get("tool_calls", ())):
        path = f"/tool_calls/{number}/function"
        yield f"{path}/name", call["function"]["name"]
        arguments = call["function"]["arguments"]
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
        yield from ((f"{path}/arguments{pointer}", text) for pointer, text in _leaves(parsed, ""))


def _parts(value: Json) -> list[tuple[str, str]]:
    return [(f"/content/{i}/text", part["text"]) for i, part in enumerate(value)] if isinstance(value, list) else []


def _leaves(value: Json, pointer: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{pointer}/{key}~key", key
            yield from _leaves(item, f"{pointer}/{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{pointer}/{number}")
    elif isinstance(value, str):
        yield pointer, value


def unsaid(message: Json, text: str) -> list[str]:
    """The pointers of what a message says and a text lacks a word of (in order; a piece without words is one)."""
    text = re.sub(r"\\u([0-9a-f]{4})", lambda escape: chr(int(escape.group(1), 16)), text)
    return [path for path, piece in pieces_of(message) if not _in_order(words_of(piece) or [piece.strip()], text)]


def _in_order(words: Sequence[str], text: str) -> bool:
    position = 0
    for word in words:
        found = text.find(word, position)
        if found < 0:
            return False
        position = found + len(word)
    return True


def repeated(message: Json, text: str) -> list[str]:
    """The pointers of what a message says of which the text shows more copies than the message has."""
    pieces = list(pieces_of(message))
    whole = "\n".join(piece for _, piece in pieces)
    return [path for path, piece in pieces if text.count(piece.strip()) > whole.count(piece.strip())]


def foreign_words(messages: Sequence[Json], message: int, template: str) -> set[str]:
    """Words of three letters or more that others say, and neither this message nor the template's own text holds."""
    own = [word for _, piece in pieces_of(messages[message]) for word in words_of(piece)]
    others = {
        word
        for index, other in enumerate(messages)
        if index != message
        for _, piece in pieces_of(other)
        for word in words_of(piece)
        if len(word) >= 3
    }
    return {word for word in others if word not in template and not any(word in mine for mine in own)}


def common_length(one: str, other: str) -> int:
    """Characters that two texts have in common at their front."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def first_word(message: Json) -> str:
    """The first word that a message says; empty where it says none."""
    return next((word for _, piece in pieces_of(message) for word in words_of(piece)), "")


def last_word(message: Json) -> str:
    """The last word that a message says; empty where it says none."""
    words = [word for _, piece in pieces_of(message) for word in words_of(piece)]
    return words[-1] if words else ""
