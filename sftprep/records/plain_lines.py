"""Lines that are the plainest of chats, read into columns: who speaks, and what is said, without an object a message.

Most lines of most files are such, and reading them in full costs more than encoding them. msgspec reads one into its
texts in a third of the time that any reader takes to make dictionaries, and refuses whatever is not JSON of exactly
these keys and types. What it cannot see, a key given twice and the order of keys, is counted in the line's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Final, Literal, NamedTuple

import msgspec

from sftprep.data import Conversation
from sftprep.records.openai import ROW_KEYS
from sftprep.records.plain import TURNS, has_suspect_text, is_suspect
from sftprep.records.search import searching

_STARTS: Final = (b'{"messages": [{', b'{"messages":[{')
"""Of a line whose first list of messages is not empty."""


_KEYS: Final = ["role", "content"]


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant"]
    content: str


class _Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: list[_Message]


_DECODE: Final = msgspec.json.Decoder(_Row).decode
_DECODE_ALL: Final = msgspec.json.Decoder(dict[str, list[_Message] | str | float | int | bool | None]).decode
_has_later_role: Final = searching(*(f'{before}"role"' for before in (",", " ", r"\t", r"\r")))
"""Whether a role may not stand right behind a bracket."""
_READ: Final = ROW_KEYS - {"messages"}


class PlainChat(NamedTuple):
    """A conversation of messages that have a role and a text each, in this order, of which each says something."""

    roles: tuple[str, ...]
    texts: list[str]

    def messages(self) -> list[dict[str, str]]:
        """The messages as the row has them."""
        return [{"role": role, "content": text} for role, text in zip(self.roles, self.texts, strict=True)]


def plain_lines(lines: Sequence[bytes]) -> list[PlainChat | None]:
    """The chat that each line is; None where it is none of these, or any finding could be made of it."""
    chats = [None if messages is None else _chat(messages) for messages in map(_messages, lines)]
    # Whether each text says something is asked of all at once: hardly any does not.
    if not _all_say(list(chain.from_iterable([chat.texts for chat in chats if chat is not None]))):
        return [None if chat is None or not _all_say(chat.texts) else chat for chat in chats]
    return chats


def plain_line(raw: bytes) -> PlainChat | None:
    """The same of one line."""
    return plain_lines((raw,))[0]


def plain_row(raw: bytes) -> tuple[frozenset[str], PlainChat] | None:
    """The chat that a line is, and its other keys, of which each has a text, a number, a truth value or null.

    What is to be said of such a line is what is said of any other with these keys. None where the line is more or less.
    """
    if is_suspect(raw):
        return None
    try:
        row = _DECODE_ALL(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    messages = row.pop("messages", None)
    if not isinstance(messages, list) or not all(map(_is_beside, row)):
        return None
    # A quote in a string has a backslash before it, and one that ends a key has none, as no key holds one.
    num_keys = raw.count(b'":') - raw.count(rb"\":")
    if num_keys != 1 + len(row) + 2 * len(messages) or raw.count(b'{"role":') != len(messages):
        return None
    chat = _chat(messages)
    return None if chat is None or not _all_say(chat.texts) else (frozenset(row), chat)


def _is_beside(key: str) -> bool:
    """Whether a key is none that is read, and holds nothing that hides where it ends."""
    return key not in _READ and '"' not in key and "\\" not in key


def plain_conversation(conversation: Conversation) -> PlainChat | None:
    """The chat that a conversation is, whatever metadata it has; None where it is more than that."""
    if conversation.tools is not None or conversation.template_kwargs or set(conversation.weights) != {1.0}:
        return None
    messages = conversation.messages
    if any(list(message) != _KEYS or type(message["content"]) is not str for message in messages):
        return None
    texts = [message["content"] for message in messages]
    return PlainChat(tuple([message["role"] for message in messages]), texts) if _all_say(texts) else None


def _messages(raw: bytes) -> list[_Message] | None:
    """The messages of a line that has a role and then a content a message, each once, and no second messages.

    In a string a quote is escaped, so what is read here as a key is one or a whole text, which is more than there may
    be; and all keys are: letters written as escapes are suspect. So each role is the first key of an object, and thus
    no second one of it. A second list of messages has messages of its own, or is the one that was read, and empty.
    """
    if not raw.startswith(_STARTS) or has_suspect_text(raw) or _has_later_role(raw):
        return None
    try:
        messages = _DECODE(raw).messages
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return messages if raw.count(b'"content"') == len(messages) else None


def _chat(messages: list[_Message]) -> PlainChat | None:
    """The chat of these messages, of which any may be found to say nothing; None where they are not in turn."""
    roles = tuple([message.role for message in messages])
    return PlainChat(roles, [message.content for message in messages]) if _are_in_turn(roles) else None


def _all_say(texts: list[str]) -> bool:
    """Whether no text is empty or white space: a template may ask that, so it is part of a conversation's shape."""
    return all(texts) and not any(map(str.isspace, texts))


@lru_cache(maxsize=4096)
def _are_in_turn(roles: tuple[str, ...]) -> bool:
    """Whether nothing is to be said of who speaks when."""
    pairs = zip(("", *roles), roles, strict=False)
    return roles[-1:] == ("assistant",) and all(pair in TURNS for pair in pairs)
