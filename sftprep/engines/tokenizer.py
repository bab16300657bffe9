"""Tokenizers of what is read already: of the JSON of a tokenizer.json, or of another tokenizer's parts.

The library reads a tokenizer.json twice over, and half as long again as a vocabulary takes that is handed to it; one
that has it can share it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

_OPTIONS: Final = frozenset(
    {
        "dropout",
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "fuse_unk",
        "byte_fallback",
        "ignore_merges",
    }
)
_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized", "special")
_COMPONENTS: Final = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_NO_MODEL: Final = {"type": "BPE", "vocab": {}, "merges": []}


def tokenizer_of(parts: Mapping[str, Any], text: str | None = None) -> Tokenizer:
    """The tokenizer that `Tokenizer.from_str` makes of this JSON, of which `text` is the text where somebody has it.

    Exception, as the library raises it, where there is none.
    """
    # Whatever it says against a part, it says of the whole too; and it has no narrower class of errors.
    with suppress(Exception):
        made = _of_parts(parts)
        if made is not None:
            return made
    return Tokenizer.from_str(json.dumps(parts) if text is None else text)


def _of_parts(parts: Mapping[str, Any]) -> Tokenizer | None:
    """None where it is not BPE with options that are known here, or the tokens' ids are not those that are written."""
    model, added = parts["model"], parts["added_tokens"]
    options = {key: value for key, value in model.items() if key not in ("type", "vocab", "merges")}
    if model["type"] != "BPE" or not options.keys() <= _OPTIONS:
        return None
    known = {"id", "content", *_FLAGS}
    if any(token.keys() != known for token in added):
        return None
    bpe = BPE(
        vocab=model["vocab"],
        merges=_pairs(model["merges"]),
        **{key: value for key, value in options.items() if value is not None},
    )
    tokens = [AddedToken(**{key: value for key, value in token.items() if key != "id"}) for token in added]
    made = assembled(parts, bpe, tokens)
    return made if all(made.token_to_id(token["content"]) == token["id"] for token in added) else None


def _pairs(merges: Sequence[Any]) -> list[tuple[str, str]]:
    """ValueError where a merge that is written as one text has more or fewer than two halves."""
    if not merges or not isinstance(merges[0], str):
        return [(first, second) for first, second in merges]
    if any(merge.startswith("#version") for merge in merges):
        raise ValueError("a line that is no merge")
    return [(first, second) for first, second in (merge.split(" ") for merge in merges)]


def assembled(parts: Mapping[str, Any], model: Any, tokens: Iterable[AddedToken]) -> Tokenizer:
    """A tokenizer with this model, which it shares, these added tokens, one after another, and otherwise `parts`."""
    made = Tokenizer.from_str(json.dumps({**parts, "added_tokens": [], "model": _NO_MODEL}))
    made.model = model
    for is_special, group in itertools.groupby(tokens, key=lambda token: token.special):
        (made.add_special_tokens if is_special else made.add_tokens)(list(group))
    return made


def parts_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The JSON of a tokenizer but its model, its added tokens, and what it does to lengths."""
    found: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None}
    for name in _COMPONENTS:
        component = getattr(tokenizer, name)
        found[name] = None if component is None else json.loads(component.__getstate__())
    return found


def renamed_token(token: AddedToken, content: str) -> AddedToken:
    """The same added token with another text."""
    return AddedToken(content, **{flag: getattr(token, flag) for flag in _FLAGS})
