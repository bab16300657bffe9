"""The reference engine: Hugging Face `tokenizers`, exactly as a server runs it."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from sftprep.data import Encoded
from sftprep.engines.model import ModelFiles


class ReferenceEngine:
    """A `data.Engine` on a model's own tokenizer.json."""

    def __init__(self, model: ModelFiles) -> None:
        self._json = model.tokenizer_json
        self._tokenizer = _load(model.tokenizer_json)
        self._cutting = frozenset(
            token.content
            for token in self._tokenizer.get_added_tokens_decoder().values()
            if not (token.normalized or token.single_word or token.lstrip)
        )

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode each text as a server encodes a rendered prompt: no special token is added."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            Encoded(
                ids=np.asarray(encoding.ids, dtype=np.int32),
                offsets=np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2),
            )
            for encoding in encodings
        ]

    def encode_middle(self, text: str) -> npt.NDArray[np.int32]:
        """Encode a text as it stands in the middle of another: no prefix space is added. int32 `[n]`."""
        return np.asarray(self._middle.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens shown."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))

    def normalise(self, text: str) -> str:
        """The text after the tokenizer's normaliser."""
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def cuts(self, token: str) -> bool:
        """Whether a text is an added token that is matched in raw text, wherever it stands."""
        return token in self._cutting

    @functools.cached_property
    def _middle(self) -> Tokenizer:
        """The tokenizer without what it puts before a text: made once, when a token first straddles a border."""
        parts = json.loads(self._json)
        for key in ("normalizer", "pre_tokenizer"):
            parts[key] = _without_prefix(parts.get(key))
        return _load(json.dumps(parts))


def _load(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _without_prefix(part: Any) -> Any:
    """A normaliser or pre-tokenizer, as its JSON, that prepends nothing."""
    if not isinstance(part, dict):
        return part
    changed = dict(part)
    for key in ("normalizers", "pretokenizers"):
        if key in changed:
            kept = [_without_prefix(item) for item in changed[key]]
            changed[key] = [item for item in kept if item is not None]
    if changed.get("type") == "Prepend":
        return None
    if changed.get("type") == "Metaspace":
        changed["prepend_scheme"] = "never"
        changed.pop("add_prefix_space", None)
    elif changed.get("type") == "ByteLevel":
        changed["add_prefix_space"] = False
    return changed
