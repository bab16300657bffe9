"""Lines that are the plainest of chats, read into columns: who speaks, and what is said, without an object a message.

Most lines of most files are such, and reading them in full costs more than encoding them. msgspec reads one into its
texts in a third of the time that any reader takes to make dictionaries, and refuses whatever is not JSON of exactly
these keys and types. What it cannot see, a key given twice and the order of keys, is counted in the line's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import msgspec

from sftprep.records.plain import TURNS, is_suspect

_STARTS: Final = (b'{"messages": [{', b'{"messages":[{')
"""Of a line whose first list of messages is not empty."""


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant"]
    content: str


class _Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: list[_Message]


_DECODE: Final = msgspec.json.Decoder(_Row).decode


class PlainChat(NamedTuple):
    """A conversation of messages that have a role and a text each, in this order, and of nothing else."""

    roles: tuple[str, ...]
    texts: list[str]

    def messages(self) -> list[dict[str, str]]:
        """The messages as the row has them."""
        return [{"role": role, "content": text} for role, text in zip(self.roles, self.texts, strict=True)]


def plain_lines(lines: Sequence[bytes]) -> list[PlainChat | None]:
    """The chat that each line is; None where it is none of these, or any finding could be made of it."""
    read = [_messages(raw) for raw in lines]
    known = [(raw, messages) for raw, messages in zip(lines, read, strict=True) if messages is not None]
    if not _have_keys_once(b"".join([raw for raw, _ in known]), sum([len(messages) for _, messages in known])):
        # As each line has at least a key a message, all of them have just those where the sums say so.
        read = [_checked(raw, messages) for raw, messages in zip(lines, read, strict=True)]
    return [None if messages is None else _chat(messages) for messages in read]


def plain_line(raw: bytes) -> PlainChat | None:
    """The same of one line."""
    return plain_lines((raw,))[0]


def _messages(raw: bytes) -> list[_Message] | None:
    if not raw.startswith(_STARTS) or is_suspect(raw):
        return None
    try:
        return _DECODE(raw).messages
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _checked(raw: bytes, messages: list[_Message] | None) -> list[_Message] | None:
    return messages if messages is not None and _have_keys_once(raw, len(messages)) else None


def _have_keys_once(data: bytes, num_messages: int) -> bool:
    """Whether lines without anything suspect have a role and then a content a message, and no second messages.

    In a string a quote is escaped, so these are keys, and all of them: space before a colon and letters written as
    escapes are suspect. A second list of messages has messages of its own, or is the one that was read, and empty.
    """
    keys = (b'{"role":', b'"role":', b'"content":')
    return all(data.count(key) == num_messages for key in keys)


def _chat(messages: list[_Message]) -> PlainChat | None:
    texts = [message.content for message in messages]
    roles = tuple([message.role for message in messages])
    if not _are_in_turn(roles) or not all(texts) or any(map(str.isspace, texts)):
        return None
    return PlainChat(roles, texts)


@lru_cache(maxsize=4096)
def _are_in_turn(roles: tuple[str, ...]) -> bool:
    """Whether nothing is to be said of who speaks when."""
    pairs = zip(("", *roles), roles, strict=False)
    return roles[-1:] == ("assistant",) and all(pair in TURNS for pair in pairs)
