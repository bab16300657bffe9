"""Digits that a tokenizer cuts off one by one, as added tokens, which cut as that does: fastokens is faster so."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from pydantic_core import SchemaValidator, core_schema
from tokenizers.pre_tokenizers import Digits

from sftprep.engines.reference import ReferenceEngine
from sftprep.engines.token_bytes import bytes_of_characters

_ASCII: Final = bytes(range(128))
_ASCII_DIGITS: Final = frozenset("0123456789")
# Unassigned ones too: what reads them may know a newer Unicode.
_OTHER_DIGIT: Final = SchemaValidator(
    core_schema.str_schema(pattern=r"[[\p{N}\p{Cn}]&&[^\x00-\x7f]]", regex_engine="rust-regex")
)


def may_have_other_digits(text: str) -> bool:
    """False where no character beyond ASCII is numeric."""
    # Where there is one, it is among few: to look for it takes longer than to throw all ASCII away.
    return not text.isascii() and _OTHER_DIGIT.isinstance_python(text.encode().translate(None, _ASCII).decode())


def at_other_digits(text: str) -> list[str]:
    """A text cut before and after each numeric character beyond ASCII, as `Digits` does; nothing empty is cut off."""
    digits = sorted(character for character in set(text) if character > "\x7f" and _is_digit(character))
    return [piece for piece in re.split(f"([{''.join(digits)}])", text) if piece] if digits else [text]


@functools.lru_cache(maxsize=4096)
def _is_digit(character: str) -> bool:
    """Whether the reference itself cuts there."""
    return len(Digits(individual_digits=True).pre_tokenize_str(f"a{character}a")) > 1


def digits_as_tokens(
    tokenizer_json: str, loaded: Callable[[], ReferenceEngine], num_ids: int
) -> tuple[str, int] | None:
    """The tokenizer without `Digits` before `ByteLevel`, with the ten digits as added tokens, which cut as that does.

    fastokens encodes such a one four times as fast. It then wants all bytes in the vocabulary: those that it lacks have
    ids from the number on that is given back, and all others are below. None where a tokenizer is another, or its own
    added tokens would cut otherwise beside those. The vocabulary and the merges are copied as they are written: what
    `loaded` gives, the reference of the same tokenizer.json, has read them. `num_ids` as in `FastokensBatch`.
    """
    parts = _PARTS.decode(tokenizer_json)
    outer, normalizer, added = (
        msgspec.json.decode(parts.get(key, b"null")) for key in ("pre_tokenizer", "normalizer", "added_tokens")
    )
    steps: Sequence[Mapping[str, Any]] = outer.get("pretokenizers", ()) if outer and outer["type"] == "Sequence" else ()
    if [step["type"] for step in steps] != ["Digits", "ByteLevel"]:
        return None
    digits, byte_level = steps
    if not digits.get("individual_digits") or byte_level.get("add_prefix_space") or not byte_level.get("use_regex"):
        return None
    reference = loaded()
    ids = {digit: reference.piece_id(digit) for digit in sorted(_ASCII_DIGITS)}
    if normalizer or None in ids.values() or any(map(_meets_digits, added)):
        return None
    missing = [character for character in bytes_of_characters() if reference.piece_id(character) is None]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added += [{"id": number, "content": digit, **flags} for digit, number in ids.items()]
    size = num_ids or reference.count_ids()
    model = _PARTS.decode(parts["model"])
    model["vocab"] = _longer(model["vocab"], {character: size + n for n, character in enumerate(missing)})
    changed = {**parts, "pre_tokenizer": byte_level, "added_tokens": added, "model": model}
    return msgspec.json.encode(changed).decode(), size


_PARTS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
"""Of a JSON object, each value as its text."""


def _longer(written: msgspec.Raw, more: Mapping[str, int]) -> msgspec.Raw:
    """A JSON object that holds something, with more members behind its own."""
    if not more:
        return written
    return msgspec.Raw(bytes(written).rstrip().removesuffix(b"}") + b"," + msgspec.json.encode(more)[1:])


def _meets_digits(token: Mapping[str, Any]) -> bool:
    """Whether it matters to an added token that digits are cut off, before it or after it."""
    content: str = token["content"]
    takes_more = token["single_word"] or token["lstrip"] or token["rstrip"]
    return bool(takes_more) or content[:1] in _ASCII_DIGITS or may_have_other_digits(content)
