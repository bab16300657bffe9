"""A token that is known to cut every encode does so: what stands before it and what follows it are encoded alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers

from sftprep.engines.reference import ReferenceEngine

SAMPLES = Path(__file__).parents[2] / "data_samples"
PARTS = ("a", " b", "\n", "\n\n x", " ", "12", "<", "<｜", "｜>", "e\u0301", "文", " ?", "  1", "don't")


def split_encodes(engine: ReferenceEngine, tokens: list[str], *, tries: int) -> list[bool]:
    """For texts at random: whether the encode of the whole is that of its halves, the second beginning with a token."""
    drawn = random.Random(0)
    same = []
    for _ in range(tries):
        before, after = ("".join(drawn.choices([*PARTS, *tokens], k=drawn.randint(0, 6))) for _ in range(2))
        second = drawn.choice(tokens) + after
        whole, *halves = (encoded.ids.tolist() for encoded in engine.encode([before + second, before, second]))
        same.append(whole == halves[0] + halves[1])
    return same


def engine_with(token: AddedToken, normalizer: Any) -> ReferenceEngine:
    tokenizer = Tokenizer.from_file(str(SAMPLES / "model" / "tokenizer.json"))
    tokenizer.add_tokens([token])
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return ReferenceEngine(tokenizer.to_str())


@pytest.mark.parametrize("normalizer", [None, normalizers.Sequence([])], ids=["none", "empty"])
def test_a_token_matched_after_normalising_cuts_where_nothing_is_normalised(normalizer: Any) -> None:
    engine = engine_with(AddedToken("<turn>", normalized=True), normalizer)
    assert engine.cuts("<turn>")
    assert all(split_encodes(engine, ["<turn>"], tries=200))


@pytest.mark.parametrize("normalizer", [normalizers.NFC(), normalizers.Sequence([normalizers.Lowercase()])], ids=str)
def test_it_is_not_known_to_cut_where_something_is(normalizer: Any) -> None:
    assert not engine_with(AddedToken("<turn>", normalized=True), normalizer).cuts("<turn>")
    assert engine_with(AddedToken("<turn>", normalized=False), normalizer).cuts("<turn>")


@pytest.mark.parametrize("kind", [{"lstrip": True}, {"single_word": True}], ids=str)
def test_a_token_that_takes_white_space_before_it_or_wants_a_word_is_none(kind: dict[str, bool]) -> None:
    assert not engine_with(AddedToken("<turn>", normalized=True, **kind), None).cuts("<turn>")


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v4", "gpt-oss"])
def test_the_tokens_of_real_tokenizers_cut(name: str, corpus: Path) -> None:
    text = (corpus / "models" / name / "tokenizer.json").read_text(encoding="utf-8")
    engine = ReferenceEngine(text)
    added = json.loads(text)["added_tokens"]
    tokens = [token["content"] for token in added if engine.cuts(token["content"])]
    normalized = [token["content"] for token in added if token["normalized"]]
    assert set(normalized) <= set(tokens)
    assert all(split_encodes(engine, (normalized or tokens)[:40], tries=500))
