"""The fast engine where digits are cut off: the ids are those of the reference, whichever digits they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sftprep.engines.digits import at_other_digits
from sftprep.engines.fast import FastokensBatch, fast_engine
from sftprep.engines.load import load_model
from sftprep.engines.reference import ReferenceEngine
from sftprep.engines.token_bytes import bytes_of_characters

pytest.importorskip("fastokens")

SAMPLES = Path(__file__).parents[2] / "data_samples" / "model"
SAMPLE = (SAMPLES / "tokenizer.json").read_text(encoding="utf-8")
LETTERS = "ab'sdmtlvre0195 ٣१½²Ⅷ①〇一\U0001d7d8\U00010d40\U0001e950\u0378 \n\t\r\u00a0\u3000.,!?é中\x00\x04"
TEXTS = st.lists(
    st.sampled_from([*LETTERS, "<|im_end|>", "<think>", "<|im_end|> 1", "12 ", " 1's"]) | st.characters(codec="utf-8"),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def engines() -> tuple[FastokensBatch, ReferenceEngine]:
    return FastokensBatch(SAMPLE), ReferenceEngine(SAMPLE)


def assert_equal(engine: FastokensBatch, reference: ReferenceEngine, texts: list[str]) -> None:
    given_texts = [text.encode() for text in texts]
    found, expected = engine.encode_batch(given_texts), reference.encode_batch(given_texts)
    assert np.array_equal(found.offsets, expected.offsets)
    assert np.array_equal(found.ids, expected.ids)


@settings(deadline=None, max_examples=300)
@given(st.lists(TEXTS, max_size=4))
@example(["1 ½ cup", "½", "", "no digit", "a½b٣"])
@example([f"a  {digit} {digit}\n\n{digit}" for digit in "0123456789½①"])
@example(["½" * 5, "\U0001e950", "x\u0378y"])
def test_any_texts_have_the_ids_of_the_reference(
    engines: tuple[FastokensBatch, ReferenceEngine], texts: list[str]
) -> None:
    assert_equal(*engines, texts)


def test_other_digits_are_cut_off_and_nothing_is_lost() -> None:
    assert at_other_digits("½") == ["½"]
    assert at_other_digits("a½٣b 1 ½") == ["a", "½", "٣", "b 1 ", "½"]
    assert at_other_digits("一 is no digit") == ["一 is no digit"]


def with_token(content: str, **flags: bool) -> str:
    parts: dict[str, Any] = json.loads(SAMPLE)
    fresh = {"id": 1024, "content": content, "single_word": False, "lstrip": False, "rstrip": False}
    parts["added_tokens"].append({**fresh, "normalized": False, "special": True, **flags})
    return json.dumps(parts)


@pytest.mark.parametrize(
    "tokenizer_json",
    [
        with_token("1x"),
        with_token("<½>"),
        with_token("<pad>", lstrip=True),
        with_token("<pad>", rstrip=True),
        with_token("word", single_word=True),
        with_token("<r1>"),
        json.dumps({**json.loads(SAMPLE), "normalizer": {"type": "NFC"}}),
    ],
)
def test_a_tokenizer_whose_own_tokens_meet_digits_keeps_its_ids(tokenizer_json: str) -> None:
    texts = ["1x 21x <½> ½", "a <pad> 1 <pad>2", "word words 1word word1", "<r1> 1<r1>1 r1>", "e\u0301 1"]
    assert_equal(FastokensBatch(tokenizer_json), ReferenceEngine(tokenizer_json), texts)


def without_bytes(tokenizer_json: str, lacking: bytes) -> str:
    """Without these bytes, and with no id between those of the vocabulary."""
    parts: dict[str, Any] = json.loads(tokenizer_json)
    gone = {character for character, byte in bytes_of_characters().items() if byte in lacking}
    kept = [piece for piece in parts["model"]["vocab"] if gone.isdisjoint(piece)]
    assert len(kept) < len(parts["model"]["vocab"])
    parts["model"]["vocab"] = {piece: number for number, piece in enumerate(kept)}
    parts["model"]["merges"] = [merge for merge in parts["model"]["merges"] if gone.isdisjoint("".join(merge))]
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] in kept]
    return json.dumps(parts)


def test_what_holds_a_byte_that_the_vocabulary_lacks_has_the_ids_of_the_reference() -> None:
    tokenizer_json = without_bytes(SAMPLE, b"\x00\x04\xc3")
    engine, reference = FastokensBatch(tokenizer_json), ReferenceEngine(tokenizer_json)
    texts = ["a", "é", "1 \x04 2", "\x00\x04", "", "ä 1 ½", "b 2"]
    assert_equal(engine, reference, texts)
    assert_equal(FastokensBatch(tokenizer_json, reference, num_ids=reference.count_ids()), reference, texts)


def test_what_loads_an_engine_gives_it_the_reference_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe has a byte that this vocabulary lacks: a second reference would cost as much as the engine itself."""
    model = load_model(str(SAMPLES))
    tokenizer_json = without_bytes(model.tokenizer_json, b"\x00\x04")
    reference = ReferenceEngine(tokenizer_json)
    model = replace(model, tokenizer_json=tokenizer_json, vocab_size=reference.count_ids())
    monkeypatch.setattr("sftprep.engines.fast.ReferenceEngine", None)
    engine = fast_engine(model, reference)
    assert engine is not None
    texts = [b"no such byte: \x04", b"1 \x00"]
    assert np.array_equal(engine.encode_batch(texts).ids, reference.encode_batch(texts).ids)
