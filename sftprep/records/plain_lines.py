"""Lines that are the plainest of chats, read into columns: who speaks, and what is said, without an object a message.

Most lines of most files are such, and reading them in full costs more than encoding them. msgspec reads one into its
texts in a third of the time that any reader takes to make dictionaries, and refuses whatever is not JSON of exactly
these keys and types. What it cannot see, a key given twice and the order of keys, is counted in the line's bytes.
"""

from __future__ import annotations

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


def plain_line(raw: bytes) -> PlainChat | None:
    """The chat that a line is; None where it is none of these, or any finding could be made of it."""
    if not raw.startswith(_STARTS) or is_suspect(raw):
        return None
    try:
        messages = _DECODE(raw).messages
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    size = len(messages)
    # In a string a quote is escaped, so these are keys, and all of them: space before a colon and letters written as
    # escapes are suspect. A second list of messages has messages of its own, or is the one that was read, and empty.
    if not raw.count(b'{"role":') == raw.count(b'"role":') == raw.count(b'"content":') == size:
        return None
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
