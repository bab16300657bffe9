"""Texts that are cut before control tokens, each piece encoded once, have the ids of the whole texts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from sftprep.engines.fast import EngineChoice
from sftprep.engines.load import load_model
from sftprep.engines.pieces import Cutter, borders
from sftprep.engines.reference import ReferenceEngine

OWN = str(Path(__file__).parents[2] / "data_samples" / "model")
LETTERS = ["a", " b", "\n", "12", "<", "|>", "[", "文", " the", "e\u0301", "  ", "don't", "<|"]


def check_equal(engine: ReferenceEngine, texts: list[str]) -> int:
    """Compare with whole texts; how many bytes needed no encoding."""
    encoded = [text.encode() for text in texts]
    cutter = Cutter(engine.added, engine.cutting)
    cut = cutter.cut(encoded)
    own, whole = cut.joined(engine.encode_batch(cut.pieces)), engine.encode_batch(encoded)
    assert own.ids.dtype == whole.ids.dtype
    assert own.ids.tolist() == whole.ids.tolist()
    assert own.offsets.tolist() == whole.offsets.tolist()
    assert own.offsets.dtype == whole.offsets.dtype
    assert len(set(cut.pieces)) == len(cut.pieces)
    for text in encoded:
        beginning = text[: len(text) // 2]
        assert beginning[cutter.last_piece(text, len(beginning)) :] == [*cutter._pieces(beginning)][-1]
    return sum(map(len, encoded)) - cut.num_bytes


def beginnings(tokens: list[str], *, tries: int) -> list[str]:
    """Texts at random, each with some of its beginnings."""
    drawn, texts = random.Random(0), ["", tokens[0]]
    for _ in range(tries):
        pieces = drawn.choices([*LETTERS, *drawn.sample(tokens, min(5, len(tokens)))], k=12)
        texts += ["".join(pieces[:stop]) for stop in (4, 8, 12)]
    return texts


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["deepseek-v4", "mistral-v3", "phi-3", "qwen3", "smollm2-135m-instruct"])
def test_pieces_of_texts_of_real_tokenizers_have_the_ids_of_the_whole(name: str, corpus: Path) -> None:
    text = (corpus / "models" / name / "tokenizer.json").read_text(encoding="utf-8")
    engine = ReferenceEngine(text)
    assert len(borders(engine.added, engine.cutting)) > 10
    assert check_equal(engine, beginnings(sorted(engine.added), tries=200)) > 1000


NORMALIZERS: list[Any] = [None, None, normalizers.Lowercase(), normalizers.Prepend("_"), normalizers.Replace(" ", "_")]
PRE_TOKENIZERS: list[Any] = [None, pre_tokenizers.Metaspace("_", "first"), pre_tokenizers.Metaspace("_", "always")]


def drawn_engine(drawn: random.Random) -> ReferenceEngine:
    """A tokenizer of few characters, whose added tokens hold and overlap each other and take white space along."""
    vocab = {piece: number for number, piece in enumerate([*"<>a _A", "<a", "a>", " a", "_a"])}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[("<", "a"), ("a", ">"), (" ", "a"), ("_", "a")]))
    strips = drawn.choice(["lstrip", "rstrip"])  # the library panics where two tokens take the same white space
    for _ in range(drawn.randint(1, 4)):
        content = "".join(drawn.choices("<>a", k=drawn.randint(1, 3)))
        token = AddedToken(content, **{flag: drawn.random() < 0.3 for flag in ("single_word", "normalized", strips)})
        (tokenizer.add_special_tokens if drawn.random() < 0.5 else tokenizer.add_tokens)([token])
    normalizer, pre_tokenizer = drawn.choice(NORMALIZERS), drawn.choice(PRE_TOKENIZERS)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return ReferenceEngine(tokenizer.to_str(), tokenizer)


def test_whatever_tokens_are_added_pieces_have_the_ids_of_the_whole() -> None:
    drawn, cut = random.Random(1), 0
    for _ in range(1500):
        engine = drawn_engine(drawn)
        cut += bool(borders(engine.added, engine.cutting))
        check_equal(engine, ["".join(drawn.choices("<>a _A", k=drawn.randint(0, 14))) for _ in range(6)])
    assert cut > 200


def test_no_token_cuts_that_another_one_holds_overlaps_or_takes_along() -> None:
    assert borders(["<a>", "x<a>", "<b>"], ["<a>", "<b>"]) == ["<b>"]
    assert borders(["<a>", "b<", "[c]"], ["<a>", "[c]"]) == ["[c]"]
    assert borders(["b", "<ab>", "<c>"], ["<ab>", "<c>"]) == ["<c>"]
    assert borders([">e", "<ab>", "<c|"], ["<ab>", "<c|"]) == ["<c|"]
    assert borders(["<<"], ["<<"]) == []
    assert borders(["ab", "_b", " <b>", "<c> ", "<d>"], ["ab", "_b", " <b>", "<c> ", "<d>"]) == ["<d>"]


def test_the_reference_of_a_run_encodes_what_texts_share_once() -> None:
    model = load_model(OWN)
    reference = ReferenceEngine(model.tokenizer_json)
    given_bytes: list[int] = []
    plainly = reference.encode_batch

    def encode_batch(texts: Any) -> Any:
        given_bytes.append(sum(map(len, texts)))
        return plainly(texts)

    reference.encode_batch = encode_batch  # type: ignore[method-assign]
    turns = [f"<|im_start|>user\n{number} is a number.<|im_end|>\n" for number in range(30)]
    texts = ["".join(turns[: stop + 1]).encode() for stop in range(30)]
    encoded = EngineChoice(model, reference, fast=False).encode_batch(texts)
    assert sum(given_bytes) < sum(map(len, turns)) + 100
    assert np.array_equal(encoded.ids, plainly(texts).ids)
    assert np.array_equal(encoded.offsets, plainly(texts).offsets)
    assert EngineChoice(model, reference, fast=False).encode_batch([]).offsets.tolist() == [0]
