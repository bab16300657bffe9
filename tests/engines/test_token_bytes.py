"""The bytes of each id, and the bytes that a tokenizer's fingerprint is of: equal to their slow and obvious forms."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.engines.canonical import canonical
from sftprep.engines.load import load_model
from sftprep.engines.reference import ReferenceEngine
from sftprep.engines.token_bytes import bytes_of_characters, token_table

OF_CHARACTER = bytes_of_characters()
WORDS = st.text(st.one_of(st.sampled_from(sorted(OF_CHARACTER)), st.characters()), max_size=6)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), WORDS)
VOCABULARIES = st.one_of(
    st.dictionaries(WORDS, st.integers(0, 99)), st.lists(st.tuples(WORDS, st.floats(allow_nan=False)).map(list))
)
MERGES = st.one_of(st.lists(WORDS), st.lists(st.lists(WORDS, min_size=2, max_size=2)), st.none())


def slow_canonical(parts: dict[str, Any]) -> bytes:
    """As it was written first: one call of the standard library."""
    model = dict(parts["model"])
    if isinstance(model.get("merges"), list):
        model["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    kept = {key: parts.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer")}
    text = json.dumps({**kept, "model": model}, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


@settings(deadline=None, max_examples=300)
@given(VOCABULARIES, MERGES, st.dictionaries(WORDS, SCALARS, max_size=3), SCALARS)
def test_the_bytes_of_a_fingerprint_never_become_others_h6(
    vocab: Any, merges: Any, others: dict[str, Any], scalar: Any
) -> None:
    parts = {"model": {**others, "vocab": vocab, "merges": merges, "dropout": scalar}, "normalizer": others}
    assert canonical(parts) == slow_canonical(parts)


def slow_bytes(piece: str) -> bytes:
    if all(character in OF_CHARACTER for character in piece):
        return bytes(OF_CHARACTER[character] for character in piece)
    return piece.encode("utf-8", "surrogatepass")


@settings(deadline=None, max_examples=300)
@given(st.lists(WORDS, unique=True, min_size=1), st.lists(WORDS.filter(bool), unique=True, max_size=3))
def test_the_bytes_of_each_id_are_those_of_its_piece(pieces: list[str], added: list[str]) -> None:
    first = len(pieces)
    parts = {
        "model": {"type": "BPE", "vocab": {piece: number for number, piece in enumerate(pieces)}},
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [{"id": first + number, "content": token} for number, token in enumerate(added)],
    }
    model = load_model(str(Path(__file__).resolve().parents[2] / "data_samples" / "model"))
    table = token_table(replace(model, tokenizer_json=json.dumps(parts)))
    assert table is not None
    expected = [*map(slow_bytes, pieces), *(token.encode("utf-8", "surrogatepass") for token in added)]
    assert table.pieces.to_pylist() == expected
    assert table.lengths.tolist() == [len(piece) for piece in expected]


@pytest.mark.corpus
def test_vocabulary_and_fingerprint_of_real_tokenizers_are_those_of_the_slow_forms(corpus: Path) -> None:
    paths = [path for path in sorted((corpus / "models").iterdir()) if (path / "chat_template.jinja").is_file()]
    assert len(paths) >= 9
    for path in paths:
        model = load_model(str(path), keep_open=True)
        tokenizer, parts = model.opened.take()
        assert canonical(parts) == slow_canonical(json.loads(model.tokenizer_json)), path.name
        assert model.vocab_size == 1 + max(tokenizer.get_vocab(with_added_tokens=True).values()), path.name


def test_what_was_made_of_a_tokenizer_is_handed_on_once_and_to_no_other_process(samples: Path) -> None:
    model = load_model(str(samples / "model"), keep_open=True)
    assert pickle.loads(pickle.dumps(model)).opened.take() == (None, None)
    tokenizer, parts = model.opened.take()
    assert parts == json.loads(model.tokenizer_json)
    assert model.opened.take() == (None, None)
    texts = ["Hello  world\n", "<|im_start|>user"]
    own, other = ReferenceEngine(model.tokenizer_json, tokenizer), ReferenceEngine(model.tokenizer_json)
    for one, two in zip(own.encode(texts), other.encode(texts), strict=True):
        assert one.ids.tolist() == two.ids.tolist()
    assert load_model(str(samples / "model")).opened.take() == (None, None)
