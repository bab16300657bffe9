"""The bytes of a SentencePiece-style tokenizer's tokens are the text, and what its own decoder makes of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.engines.load import load_model
from sftprep.engines.reference import ReferenceEngine
from sftprep.engines.token_bytes import token_table
from sftprep.stages.encode_batch import EncodedTexts, TokenTable
from tests.engines.spaced import FORMS, PHI, write_model

TEXTS = st.lists(
    st.sampled_from(["", " ", "  ", "the", " a", "▁", "▁a", "\n", "é", "日", "🏳", "<s>", "<|end|>", "<0x41>", "[in]"]),
    max_size=8,
).map("".join)


@functools.cache
def made(form: str, directory: Path) -> tuple[ReferenceEngine, TokenTable]:
    path = directory / form
    model = load_model(str(path if path.exists() else write_model(path, form, PHI)))
    table = token_table(model)
    assert table is not None
    return ReferenceEngine(model.tokenizer_json), table


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spaced")


def encoded(engine: ReferenceEngine, texts: Sequence[str]) -> EncodedTexts:
    return engine.encode_batch([text.encode() for text in texts])


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=150)
@given(text=TEXTS)
def test_the_bytes_of_the_tokens_are_the_text_wherever_they_decode_to_it(form: str, models: Path, text: str) -> None:
    engine, table = made(form, models)
    found, bounds = table.written(encoded(engine, [text]))
    is_proven = found.to_pybytes() == text.encode()
    assert bounds[-1] == len(found)
    ids = encoded(engine, [text]).ids
    # A decoder takes one space away where the tokenizer put none, so that a text is more often proven than decoded.
    if engine.decode(ids.tolist()) == text and not (table.prefix and "<" in text):
        assert is_proven
    if "▁" in text:
        assert not is_proven
    elif form in ("prepend", "never", "split"):
        assert is_proven


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=100)
@given(texts=st.lists(TEXTS, max_size=5))
def test_texts_that_lie_end_to_end_are_each_a_text(form: str, models: Path, texts: list[str]) -> None:
    engine, table = made(form, models)
    alone = [table.written(encoded(engine, [text])) for text in texts]
    found, bounds = table.written(encoded(engine, texts))
    assert found.to_pybytes() == b"".join(own.to_pybytes() for own, _ in alone)
    assert np.array_equal(np.diff(bounds), np.concatenate([np.zeros(0), *(np.diff(own) for _, own in alone)]))


def test_a_tokenizer_that_decodes_in_another_way_has_no_bytes(models: Path) -> None:
    made("never", models)
    model = load_model(str(models / "never"))
    assert token_table(model) is not None
    for old, new in (
        ('"ByteFallback"', '"Fuse"'),
        ('"content": " "}, {', '"content": "-"}, {'),
        ('"type": "BPE"', '"type": "WordPiece"'),
    ):
        assert old in model.tokenizer_json
        assert token_table(replace(model, tokenizer_json=model.tokenizer_json.replace(old, new))) is None


@pytest.fixture(scope="module", params=["phi-3", "mistral-v3"])
def real(request: pytest.FixtureRequest, corpus: Path) -> tuple[ReferenceEngine, TokenTable]:
    model = load_model(str(corpus / "models" / request.param))
    table = token_table(model)
    assert table is not None
    return ReferenceEngine(model.tokenizer_json), table


@pytest.mark.corpus
def test_the_bytes_of_each_id_are_what_the_models_own_decoder_writes_behind_others(
    real: tuple[ReferenceEngine, TokenTable],
) -> None:
    engine, table = real
    anchor = encoded(engine, ["anchor"]).ids.tolist()
    before = engine.decode(anchor)
    for number, piece in enumerate(table.pieces.to_pylist()):
        if len(piece) > 1 or piece[:1] < b"\x80":
            assert engine.decode([*anchor, number]) == before + piece.decode(), number


@pytest.mark.corpus
def test_characters_beyond_the_vocabulary_are_their_bytes(real: tuple[ReferenceEngine, TokenTable]) -> None:
    engine, table = real
    rare = [chr(point) for point in range(0x80, 0x20000, 97) if not 0xD800 <= point < 0xE000 and point != ord("▁")]
    found = encoded(engine, rare)
    assert table.written(found)[0].to_pybytes() == "".join(rare).encode()
    assert len(found.ids) > 2 * len(rare)
