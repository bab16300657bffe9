"""The quick way through rows that are plainly fine, which most are; what it cannot prove is judged in full elsewhere.

A search over a row's bytes tells whether anything in its texts needs a second look. It may say so for nothing; it
never misses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sftprep.data import Json
from sftprep.records.draft import Draft, metadata_of
from sftprep.records.openai import ROW_KEYS
from sftprep.records.search import has_spaced_key, searching

_TAIL: Final = (
    "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122",
    r"\\u(?:00[89abAB]|01[5-9]|02[cCdD]|20[1-3aA]|212)",
)
_CYRILLIC_TAIL: Final = (
    "\u0080-\u00bf\u0402-\u040f\u0452-\u045f\u0490\u0491\u2013-\u2122",
    r"\\u(?:00[89abAB]|040|045|049|20[1-9a-fA-F]|21[0-2])",
)
"""What follows a first character where the encoding was wrong: as it is, and as escapes write it."""
_WRITTEN: Final = "|".join(
    (
        # Control characters, U+FFFD, and what wrong decoding leaves, of which either half may be an escape.
        r"[\x7f-\u0084\u0086-\u009f\ufffd]",
        rf"(?:[\u00c2-\u00f4]|\\u00[c-fC-F][0-9a-fA-F])(?:[{_TAIL[0]}]|{_TAIL[1]})",
        rf"(?:[\u0420\u0421]|\\u042[01])(?:[{_CYRILLIC_TAIL[0]}]|{_CYRILLIC_TAIL[1]})",
    )
)
_WRITTEN_IN_ASCII: Final = "|".join(
    (r"\x7f", rf"\\u00[c-fC-F][0-9a-fA-F](?:{_TAIL[1]})", rf"\\u042[01](?:{_CYRILLIC_TAIL[1]})")
)
"""The same where no character is beyond ASCII."""
_ESCAPED: Final = r"\\[bf]|\\u(?:00[0-9]|[fF]{3}[dD])"
"""Escapes that may write one of these, or a quote, a colon, a bracket or a letter."""
_TAGGED: Final = (
    r"think>|thinking>|reasoning>|thought>|THINK\]"
    r"|<(?:tool_|function_|observation|execution_)|TOOL_RESULTS|<\|(?:tool_|observation)|Observation:"
)
"""Tags of reasoning, and marks of tools' results."""


_holds_any: Final = searching(_WRITTEN, _ESCAPED, _TAGGED)
# The engine leaps from one place to the next where what it looks for begins with a few bytes, and reads byte by byte
# where it may begin with many: several searches take half the time of one.
_holds_tag, _holds_escape = searching(_TAGGED), searching(_WRITTEN_IN_ASCII, _ESCAPED)

TURNS: Final = frozenset(
    {("", "system"), ("", "user"), ("system", "user"), ("user", "assistant"), ("assistant", "user")}
)
"""Who speaks after whom in the plainest of conversations; nobody before the first."""

_MESSAGES_ONLY: Final = frozenset({"messages"})
_NOT_PLAIN: Final = ROW_KEYS - _MESSAGES_ONLY


def is_suspect(raw: bytes) -> bool:
    """Whether a row's UTF-8 may hold a broken character, a tag, or a key that cannot be counted; False is certain."""
    return has_suspect_text(raw) or has_spaced_key(raw)


def has_suspect_text(raw: bytes) -> bool:
    """The same, but for keys with space before their colon."""
    return _holds_tag(raw) or _holds_escape(raw) if raw.isascii() else _holds_any(raw)


def plain_chat(value: Mapping[str, Json]) -> Draft | None:
    """The draft of a row of messages in turn that have a role and a text each, and of metadata; None where it is not.

    The messages of such a row have no fault if `is_suspect` is False.
    """
    messages = value.get("messages")
    if type(messages) is not list or not messages or not _NOT_PLAIN.isdisjoint(value):
        return None
    previous = ""
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return None
        role, content = message.get("role"), message.get("content")
        if type(content) is not str or type(role) is not str or (previous, role) not in TURNS:
            return None
        if not content or content.isspace():
            return None
        previous = role
    if previous != "assistant":
        return None
    return Draft(messages, [1.0] * len(messages), metadata=metadata_of(value, known=_MESSAGES_ONLY))
