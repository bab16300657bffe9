"""The reference engine: Hugging Face `tokenizers`, exactly as a server runs it."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from tokenizers import Encoding, Tokenizer

from sftprep.data import Encoded
from sftprep.engines.hidden import Hidden, hide
from sftprep.engines.panics import named_panics
from sftprep.engines.tokenizer import assembled, parts_of, tokenizer_of
from sftprep.errors import MaskError
from sftprep.stages.encode_batch import EncodedTexts, flat_offsets

REFERENCE: Final = "tokenizers"


class ReferenceEngine:
    """A `data.Engine` on a model's own tokenizer.json, which encodes many texts at once too."""

    name = REFERENCE

    def __init__(self, tokenizer_json: str, tokenizer: Tokenizer | None = None) -> None:
        """`tokenizer` is what was made of the same text, where somebody has made it and lets go of it."""
        self._json = tokenizer_json
        self._tokenizer = _load(tokenizer_json) if tokenizer is None else _plain(tokenizer)
        # What is matched after normalising is matched in raw text where normalising changes nothing.
        normalises = _normalises(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.added = frozenset(token.content for token in added)
        self.cutting = frozenset(
            token.content
            for token in added
            if not ((token.normalized and normalises) or token.single_word or token.lstrip)
        )

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode each text as a server encodes a rendered prompt: no special token is added."""
        with named_panics():
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [self._encoded(encoding) for encoding in encodings]

    def encode_batch(self, texts: Sequence[bytes]) -> EncodedTexts:
        """Encode UTF-8 texts, ids only."""
        with named_panics():
            encodings = self._tokenizer.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        ids = [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
        return EncodedTexts(np.concatenate([np.zeros(0, np.int32), *ids]), flat_offsets([len(own) for own in ids]))

    def encode_middle(self, text: str) -> Encoded:
        """Encode a text as it stands in the middle of another: no prefix space is added."""
        with named_panics():
            encoding = self._middle.encode(text, add_special_tokens=False)
        return self._encoded(encoding)

    def middle_json(self) -> str:
        """The tokenizer.json of what encodes texts in the middle of others."""
        return str(self._middle.to_str())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens shown."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))

    def normalise(self, text: str) -> str:
        """The text after the tokenizer's normaliser."""
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def has(self, token: str) -> bool:
        """Whether a text is in the vocabulary."""
        return self._tokenizer.token_to_id(token) is not None

    def piece_id(self, piece: str) -> int | None:
        """The id of a piece of the model's vocabulary, added tokens left aside."""
        found: int | None = self._tokenizer.model.token_to_id(piece)
        return found

    def count_ids(self) -> int:
        """The least number that all ids are below."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def cuts(self, token: str) -> bool:
        """Whether a text is an added token that is matched in raw text, wherever it stands."""
        return token in self.cutting

    def as_written(self, text: str, written: Sequence[tuple[int, int]]) -> tuple[ReferenceEngine, str]:
        """An engine whose control tokens are private characters, and the text with those in the written places."""
        names = self._hiding.hidden.names
        if any(character in text for character in names.values()):
            raise MaskError(
                "the text holds a private-use character that stands for a control token",
                code="control-token",
                place="/messages",
                hint="take the characters of the last private plane (U+100000 and above) out of the row",
            )
        borders = [0, *(border for span in written for border in span), len(text)]
        pieces = [text[start:stop] for start, stop in itertools.pairwise(borders)]
        pieces[1::2] = [names[piece] for piece in pieces[1::2]]
        return self._hiding, "".join(pieces)

    @functools.cached_property
    def _hiding(self) -> _HidingEngine:
        """Made once, when it is first asked for."""
        return _HidingEngine(self._json, hide(self._tokenizer, self._json))

    @functools.cached_property
    def _middle(self) -> Tokenizer:
        """The tokenizer without what it puts before a text: made once, when a token first straddles a border."""
        parts = parts_of(self._tokenizer)
        changed = {**parts, **{key: _without_prefix(parts[key]) for key in ("normalizer", "pre_tokenizer")}}
        if changed == parts:
            return self._tokenizer
        added = self._tokenizer.get_added_tokens_decoder()
        return assembled(changed, self._tokenizer.model, added.values())

    def _encoded(self, encoding: Encoding) -> Encoded:
        offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return Encoded(np.asarray(encoding.ids, dtype=np.int32), offsets)


class _HidingEngine(ReferenceEngine):
    """The same model, of which control tokens are private characters."""

    def __init__(self, tokenizer_json: str, hidden: Hidden) -> None:
        super().__init__(tokenizer_json, hidden.tokenizer)
        self.hidden = hidden

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens as private characters."""
        return super().decode(self.hidden.of_tokenizer(np.asarray(ids, dtype=np.int32)).tolist())

    def _encoded(self, encoding: Encoding) -> Encoded:
        found = super()._encoded(encoding)
        return replace(found, ids=self.hidden.of_model(found.ids))


def _load(tokenizer_json: str) -> Tokenizer:
    try:
        parts = json.loads(tokenizer_json)
    except ValueError:
        return _plain(Tokenizer.from_str(tokenizer_json))  # which says what is wrong
    return _plain(tokenizer_of(parts, tokenizer_json))


def _normalises(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has a normaliser that does anything."""
    if tokenizer.normalizer is None:
        return False
    return bool(json.loads(tokenizer.normalizer.__getstate__()) != {"type": "Sequence", "normalizers": []})


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without what its file does to lengths."""
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
