"""JSON text to values, stricter than readers usually are: what two readers could understand differently is a fault.

The quick way parses with pydantic-core, and proves by counting keys that none was given twice. Whatever it refuses, or
cannot prove, is parsed again by the standard library, slowly, to find every fault and its place.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from pydantic_core import from_json, to_json

from sftprep.data import Json
from sftprep.records.codes import Fault, escape
from sftprep.records.search import has_spaced_key, searching

_has_hidden_key: Final = searching(r"\\u00(?:22|3[aA])")
"""Whether a quote or a colon is written as an escape: keys cannot be counted then."""

_TOO_DEEP: Final = "the value is nested too deeply"
_MOST_LEVELS: Final = 201
"""Of lists and objects in one another: what pydantic-core reads. More would be more than a call in a call can walk."""


class Parsed(NamedTuple):
    """A value and what is wrong with it; the value means nothing where `readable` is False."""

    value: Json
    faults: tuple[Fault, ...]
    readable: bool


@dataclass(frozen=True, slots=True)
class _Repeat:
    """An object in which a key stands twice; holding the object keeps its `id` its own."""

    value: dict[str, Json]
    keys: tuple[str, ...]


def parse_json(text: bytes, *, pointer: str = "", countable: bool = False) -> Parsed:
    """The JSON value of UTF-8 text, and all its faults; pointers of faults begin with `pointer`.

    `countable`: it is known that no space stands before a colon and no quote or colon is written as an escape.
    Faults: invalid-utf8, bad-json, duplicate-key, non-finite-number, lone-surrogate, too-deep.
    """
    try:
        value = from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        return _parse_slowly(text, pointer=pointer, refusal=str(error))
    if (countable or not (has_spaced_key(text) or _has_hidden_key(text))) and _has_unique_keys(text, value):
        return Parsed(value, (), readable=True)
    return _parse_slowly(text, pointer=pointer, refusal="")


def _has_unique_keys(text: bytes, value: Json) -> bool:
    r"""Whether it is proven that no object of countable text repeats a key, and that no number is infinite.

    `":` ends each key, and nothing else but an escaped quote before a colon, which stays as it is when the value is
    written out again; a repeated key does not.
    """
    written = to_json(value, inf_nan_mode="constants")
    # 1e999 is read as infinite.
    return written.count(b'":') == text.count(b'":') and b"Infinity" not in written


def _parse_slowly(text: bytes, *, pointer: str, refusal: str) -> Parsed:
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte {error.start + 1} (0x{text[error.start]:02x}) is not UTF-8"
        return _unreadable(Fault("invalid-utf8", pointer, what))
    repeats: list[_Repeat] = []
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: _object(pairs, repeats))
    try:
        value = decoder.decode(decoded)
    except json.JSONDecodeError as error:
        return _unreadable(_syntax_fault(error, pointer=pointer))
    except RecursionError:
        return _unreadable(Fault("too-deep", pointer, _TOO_DEEP))
    except ValueError:
        hint = "no reader takes a whole number of more than 4,300 digits: write it as text"
        return _unreadable(Fault("bad-json", pointer, "a number is too long to be read", hint))
    faults = tuple(_faults_in(value, pointer=pointer, repeats={id(r.value): r for r in repeats}))
    if refusal and not faults:
        code = "too-deep" if "recursion" in refusal else "bad-json"
        return _unreadable(Fault(code, pointer, refusal))
    return Parsed(value, faults, readable=all(fault.code != "too-deep" for fault in faults))


def _unreadable(fault: Fault) -> Parsed:
    return Parsed(None, (fault,), readable=False)


def _object(pairs: list[tuple[str, Json]], repeats: list[_Repeat]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeats.append(_Repeat(value, tuple(key for key, count in counts.items() if count > 1)))
    return value


def _syntax_fault(error: json.JSONDecodeError, *, pointer: str) -> Fault:
    column = f"column {error.pos + 1}"
    if error.pos == 0 and error.doc.startswith("\ufeff"):
        hint = "a byte order mark belongs at the start of a file: were files joined?"
        return Fault("bad-json", pointer, f"a byte order mark stands at {column}", hint)
    if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string"):
        return Fault("bad-json", pointer, f"the JSON is cut off: {error.msg.lower()} at {column}")
    return Fault("bad-json", pointer, f"not JSON: {error.msg.lower()} at {column}")


def _faults_in(value: Json, *, pointer: str, repeats: dict[int, _Repeat]) -> Iterator[Fault]:
    """Faults of a parsed value in document order; last that it is too deep: what lies deeper is not looked at."""
    stack = [(pointer, value, 1)]
    too_deep = False
    while stack:
        place, node, depth = stack.pop()
        if isinstance(node, dict | list) and depth > _MOST_LEVELS:
            too_deep = True
        elif isinstance(node, dict):
            yield from _faults_of_keys(node, place=place, repeats=repeats)
            stack.extend((f"{place}/{escape(key)}", child, depth + 1) for key, child in reversed(node.items()))
        elif isinstance(node, list):
            stack.extend((f"{place}/{index}", node[index], depth + 1) for index in reversed(range(len(node))))
        elif isinstance(node, float) and not math.isfinite(node):
            yield Fault("non-finite-number", place, "the number is NaN or infinite")
        elif isinstance(node, str) and not is_encodable(node):
            yield Fault("lone-surrogate", place, "the text holds half of a surrogate pair")
    if too_deep:
        yield Fault("too-deep", pointer, _TOO_DEEP)


def _faults_of_keys(node: dict[str, Json], *, place: str, repeats: dict[int, _Repeat]) -> Iterator[Fault]:
    repeat = repeats.get(id(node))
    for key in repeat.keys if repeat else ():
        yield Fault("duplicate-key", f"{place}/{escape(key)}", f"the key {key!r} stands twice in one object")
    for key in node:
        if not is_encodable(key):
            yield Fault("lone-surrogate", place, f"the key {key!r} holds half of a surrogate pair")


def is_encodable(text: str) -> bool:
    """Whether a text has no half of a surrogate pair."""
    # isascii looks at a flag; only other text is walked.
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
