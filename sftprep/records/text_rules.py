"""What the text of messages should not hold: broken characters, half of a reasoning block, a tool's result.

`sftprep.records.plain` knows by one look at a row's bytes when none of it can be there: a new rule is told there too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from sftprep.data import Json
from sftprep.records.codes import Fault, escape
from sftprep.records.draft import Draft

# What cp1252 makes of the bytes 0x80 to 0xBF: the second and later bytes of UTF-8.
_TAIL: Final = "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122"
_MOJIBAKE: Final = re.compile(
    # Latin-1 letters and signs, general punctuation, emoji: one is enough.
    rf"[\u00c2\u00c3][{_TAIL}]|\u00e2[\u20ac\u0080\u201a\u201e\u2020\u2021\u2030][{_TAIL}]|\u00f0[\u0178\u009f][{_TAIL}]{{2}}"
    # Any other script: one may be meant ("é »" in French), three in a row are not.
    rf"|(?:[\u00c4-\u00df][{_TAIL}]|[\u00e0-\u00ef][{_TAIL}]{{2}}|[\u00f0-\u00f4][{_TAIL}]{{3}}){{3,}}"
    # Cyrillic read as cp1251: every second letter is a capital of two.
    r"|(?:[\u0420\u0421][\u0080-\u00bf\u0402-\u040f\u0452-\u045f\u0490\u0491\u2013-\u2122]){3,}"
)
_LEADS: Final = (b"\xc3", b"\xd0")
"""Where UTF-8 has none of these, nothing is of the wrong encoding: so the characters begin with which that begins."""
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")

_REASONING_KEYS: Final = ("reasoning_content", "reasoning", "thinking")
_TAG: Final = re.compile(r"<(/?)(think|thinking|reasoning|thought)>|\[(/?)(THINK)\]")
_TOOL_RESULT: Final = re.compile(
    r"<(?:tool_response|tool_result|tool_output|function_results?|function_response|observation|execution_result)>"
    r"|\[TOOL_RESULTS\]|<\|(?:tool_response|observation)\|>|^Observation:\s",
    re.MULTILINE,
)


def check_characters(draft: Draft) -> Iterator[Fault]:
    """Broken characters in any text of the messages, one fault a text and kind."""
    for index, message in enumerate(draft.messages):
        for path, text in _texts(message, ""):
            if not text.isascii() or _CONTROL.search(text):
                yield from _broken(text, pointer=draft.place(index, path))


def check_answer(draft: Draft, index: int, text: str) -> Iterator[Fault]:
    """Faults of what an assistant's message says and thinks."""
    if ("<" in text or "[" in text) or "Observation:" in text:
        yield from _check_tags(text, pointer=draft.place(index, "content"))
        found = _TOOL_RESULT.search(text)
        if found:
            what = f"the assistant's text holds {found.group().strip()!r}, the mark of a tool's result"
            yield Fault("embedded-tool-result", draft.place(index, "content"), what)
    message = draft.messages[index]
    for key in _REASONING_KEYS:
        reasoning = message.get(key)
        if not reasoning:
            continue
        yield from _check_tags(reasoning, pointer=draft.place(index, key))
        if _TAG.match(text.lstrip()):
            yield Fault("reasoning-twice", draft.place(index, key), f"the content holds reasoning beside {key!r}")


def _texts(value: Json, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            step = escape(key)
            yield from _texts(item, f"{path}/{step}" if path else step)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}/{index}")


def _broken(text: str, *, pointer: str) -> Iterator[Fault]:
    written = text.encode("utf-8", "surrogatepass")
    may_be_mojibake = any(lead in written for lead in _LEADS)
    whole, num_mojibake = _MOJIBAKE.subn("", text) if may_be_mojibake else (text, 0)
    if num_mojibake:
        found = _MOJIBAKE.search(text)
        sample = found.group() if found else ""
        what = f"{num_mojibake} × text of the wrong encoding, such as {sample:.20}"
        yield Fault("mojibake", pointer, what)
    if "\ufffd" in text:
        count, first = text.count("\ufffd"), text.index("\ufffd") + 1
        yield Fault("replacement-character", pointer, f"{count} × U+FFFD, first as character {first}")
    controls = _CONTROL.findall(whole)
    if controls:
        first = text.index(controls[0]) + 1
        what = f"{len(controls)} × control characters, first U+{ord(controls[0]):04X} as character {first}"
        yield Fault("control-character", pointer, what)


def _check_tags(text: str, *, pointer: str) -> Iterator[Fault]:
    """Each tag is closed before it opens again, and nothing is closed that is not open."""
    opened = ""
    for found in _TAG.finditer(text):
        closing, name = found[1] or found[3], found[2] or found[4]
        if bool(closing) != (opened == name) or (opened and opened != name):
            yield Fault(
                "unbalanced-reasoning", pointer, f"{found.group()} does not pair up, at character {found.start() + 1}"
            )
            return
        opened = "" if closing else name
    if opened:
        yield Fault("unbalanced-reasoning", pointer, f"<{opened}> is never closed")


def text_of(message: Mapping[str, Json]) -> str:
    """The text of a message; parts are joined."""
    content = message.get("content")
    return content if isinstance(content, str) else "".join(part["text"] for part in content or ())
