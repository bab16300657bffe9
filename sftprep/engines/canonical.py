"""A tokenizer's meaning as bytes: the order of keys, the form of merges and the decoder do not matter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

_OF_IDS: Final = ("added_tokens", "normalizer", "pre_tokenizer")


def canonical(parts: Mapping[str, Any]) -> bytes:
    """What decides ids, of the JSON of a tokenizer.json: keys sorted, no white space, UTF-8 (halves of characters too).

    Its sha256 is in every manifest: the bytes of a tokenizer must never become others.
    """
    model = dict(parts["model"])
    if isinstance(model.get("merges"), list):
        model["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    kept = {key: _text(parts.get(key)) for key in _OF_IDS}
    written = {key: _large(value) if key in ("merges", "vocab") else _text(value) for key, value in model.items()}
    return _object({**kept, "model": _object(written)}).encode("utf-8", "surrogatepass")


def _object(texts: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{_text(key)}:{texts[key]}" for key in sorted(texts)) + "}"


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _large(value: Any) -> str:
    """The same of a vocabulary or its merges, of which msgspec writes texts and whole numbers six times as fast."""
    if not isinstance(value, dict) and not (isinstance(value, list) and value and isinstance(value[0], str)):
        return _text(value)  # scores: msgspec writes some floats otherwise
    try:
        return msgspec.json.encode(value, order="sorted").decode()
    except (UnicodeEncodeError, OverflowError):
        return _text(value)
