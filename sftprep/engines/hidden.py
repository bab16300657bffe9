"""A tokenizer whose control tokens are private characters: in what it reads, a token that somebody typed is text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import BPE

from sftprep.engines.tokenizer import assembled, parts_of, renamed_token, tokenizer_of

Ids = npt.NDArray[np.int32]

_FIRST_PRIVATE: Final = 0x100000
"""Of the last private plane: what a control token is called where what looks like one is to be plain text."""
_BYTE_PIECE: Final = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True)
class Hidden:
    """`names`: control token → private character. `tokenizer` reads those, and no control token otherwise.

    `ids`, int32 `[n, 2]`: its id of an added token, ascending, and the model's, where they differ.
    """

    names: Mapping[str, str]
    tokenizer: Tokenizer
    ids: Ids

    def of_model(self, ids: Ids) -> Ids:
        """The model's ids, int32 `[n]`, of its tokenizer's."""
        return _mapped(ids, self.ids)

    def of_tokenizer(self, ids: Ids) -> Ids:
        """The other way."""
        return _mapped(ids, self.ids[np.argsort(self.ids[:, 1]), ::-1])


def _mapped(ids: Ids, pairs: Ids) -> Ids:
    if not len(pairs):
        return ids
    at = np.minimum(np.searchsorted(pairs[:, 0], ids), len(pairs) - 1)
    return np.where(pairs[at, 0] == ids, pairs[at, 1], ids)


def hide(tokenizer: Tokenizer, tokenizer_json: str) -> Hidden:
    """Of a tokenizer and its JSON: it shares the vocabulary where that cannot make a control token of any text."""
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    names = {content: chr(_FIRST_PRIVATE + number) for number, content in enumerate(special)}
    sharing = _sharing(tokenizer, names) if _makes_none(tokenizer.model, names) else None
    return sharing or _renamed(json.loads(tokenizer_json), names)


def _sharing(tokenizer: Tokenizer, names: Mapping[str, str]) -> Hidden | None:
    """With the same model; None where an id that it gives a token is one of the vocabulary."""
    model, added = tokenizer.model, tokenizer.get_added_tokens_decoder()
    tokens = [renamed_token(token, names[token.content]) if token.special else token for token in added.values()]
    made = assembled(parts_of(tokenizer), model, tokens)
    given = [made.token_to_id(token.content) for token in tokens]
    is_new = [model.token_to_id(token.content) is None for token in tokens]
    if any(new and model.id_to_token(there) is not None for new, there in zip(is_new, given, strict=True)):
        return None
    pairs = sorted(pair for pair in zip(given, added, strict=True) if pair[0] != pair[1])
    return Hidden(names, made, np.array(pairs, dtype=np.int32).reshape(-1, 2))


def _makes_none(model: Any, names: Mapping[str, str]) -> bool:
    """Whether a model is known to read none of these names as one token, whatever text they stand in, nor knows those.

    Byte pair encoding has a piece of the vocabulary by joining two others, as a character, a byte, or a whole word
    (Sennrich et al., 2016, section 3.2; the last two are options).
    """
    if not isinstance(model, BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    if any(model.token_to_id(private) is not None for private in names.values()):
        return False
    pieces = [name for name in names if model.token_to_id(name) is not None]
    return not (pieces and model.ignore_merges) and not any(_may_be_made(piece, model) for piece in pieces)


def _may_be_made(piece: str, model: Any) -> bool:
    if len(piece) == 1 or (model.byte_fallback and _BYTE_PIECE.fullmatch(piece)):
        return True
    halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    return any(all(model.token_to_id(half) is not None for half in both) for both in halves)


def _renamed(parts: dict[str, Any], names: Mapping[str, str]) -> Hidden:
    """With a vocabulary of its own, in which the names are gone."""
    model = parts["model"]
    for token in parts["added_tokens"]:
        if token["special"]:
            token["content"] = names[token["content"]]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [merge for merge in model["merges"] if names.keys().isdisjoint(_pieces(merge, prefix))]
    return Hidden(names, tokenizer_of(parts), np.zeros((0, 2), dtype=np.int32))


def _pieces(merge: Any, prefix: str) -> tuple[str, str, str]:
    """What a merge joins, and what it makes of them."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second, first + second.removeprefix(prefix)
