"""Tokenizers that are put together are those that the library reads: the same parts, the same ids of any text."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from sftprep.engines import tokenizer as made
from sftprep.engines.reference import ReferenceEngine, _without_prefix
from sftprep.engines.tokenizer import tokenizer_of

OWN = Path(__file__).parents[2] / "data_samples" / "model" / "tokenizer.json"
MODELS = ("deepseek-v3", "gpt-2", "mistral-v3", "phi-3", "qwen3", "smollm2-135m-instruct")
LARGE = ("deepseek-v4", "falcon", "gpt-oss", "mistral-tekken", "qwen3.6")
REAL = [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
PREFIXED = {"mistral-v3", "phi-3"}
"""They put a space before a text."""
RENAMED = {"mistral-tekken"}
"""A text that is a word of the vocabulary is that word there, and control tokens are words of it."""


def text_of(name: str, corpus: Path) -> str:
    return (corpus / "models" / name / "tokenizer.json").read_text(encoding="utf-8")


def small(written: str, *tokens: str, **model: Any) -> dict[str, Any]:
    """A tokenizer.json: pieces by their order, control tokens behind them or among them, options of the model."""
    pieces = {piece: number for number, piece in enumerate(written.split("|"))}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = []
    for token in tokens:
        known = {**pieces, **{entry["content"]: entry["id"] for entry in added}}
        added.append({"id": known.get(token, max(known.values()) + 1), "content": token, **flags})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": pieces, "merges": [], **model},
    }


HOLED = {"a": 0, "b": 4, "<": 1, "<s>": 5}
HANDMADE: dict[str, dict[str, Any]] = {
    "behind the vocabulary": small("a|b|<|>|s|ab", "<s>", "</s>", merges=["a b"]),
    "in it": small("a|b|<|>|s|<s>|ab", "<s>", "<a>", merges=[["a", "b"]]),
    "one is made by joining": small("a|b|<|>|s|<s|<s>|ab", "<s>", merges=[["<", "s"], ["<s", ">"]]),
    "one may be a whole word": small("a|b|<|>|s|<s>|ab", "<s>", merges=["a b"], ignore_merges=True),
    "one is a byte": small("a|b|<0x0A>|<0x73>", "<0x0A>", byte_fallback=True),
    "one is a character": small("a|b|<|>|s", "s", "<b>"),
    "one is what is unknown": small("<unk>|a|b|ab|<", "<unk>", merges=["a b"], unk_token="<unk>", fuse_unk=True),
    "with marks of words": small(
        "a|b|<|>|##a|##b|##<|##s|##>|##s>|<s>",
        "<s>",
        merges=[["##s", "##>"], ["<", "##s>"]],
        continuing_subword_prefix="##",
    ),
    "with marks of ends": small("a|b|<|>|s|ax|bx|<x|>x|sx", "sx", end_of_word_suffix="x"),
    "ids with a hole": {**small("a|b|<|>|s|<s>", "<s>"), "model": {"type": "BPE", "vocab": HOLED, "merges": []}},
}
HANDMADE["not bytes but pieces with scores"] = {
    **small("a", "<s>"),
    "added_tokens": small("a|b|<|>|s|ab|<s>|▁", "<s>")["added_tokens"],
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    "model": {
        "type": "Unigram",
        "unk_id": 0,
        "vocab": [[piece, -float(number)] for number, piece in enumerate([*"ab<>s", "ab", "<s>", "▁"])],
        "byte_fallback": False,
    },
}


def slow_hidden(text: str) -> tuple[dict[str, str], ReferenceEngine]:
    """As it was written first: the JSON, in which every control token has another name."""
    parts = json.loads(text)
    special = [token for token in parts["added_tokens"] if token["special"]]
    names = {token["content"]: chr(0x100000 + number) for number, token in enumerate(special)}
    for token in special:
        token["content"] = names[token["content"]]
    model = parts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    # A merge of such a name was an error then.
    mark = model.get("continuing_subword_prefix") or ""
    if any("".join(pair).replace(mark, "") in names for pair in model.get("merges", ())):
        model["merges"] = [pair for pair in model["merges"] if "".join(pair).replace(mark, "") not in names]
    changed = json.dumps(parts)
    return names, ReferenceEngine(changed, Tokenizer.from_str(changed))


def slow_middle(text: str) -> str:
    """As it was written first: the JSON without what is put before a text, read and written by the library."""
    parts = json.loads(text)
    for key in ("normalizer", "pre_tokenizer"):
        parts[key] = _without_prefix(parts[key])
    parts["padding"] = parts["truncation"] = None
    return str(Tokenizer.from_str(json.dumps(parts)).to_str())


def drawn_text(drawn: random.Random, tokens: list[str], letters: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """A text, and the places in it at which a control token was written; others were typed."""
    text, written = "", []
    for _ in range(drawn.randint(0, 9)):
        piece = drawn.choice([*letters, *drawn.sample(tokens, min(4, len(tokens)))])
        if piece in tokens and drawn.random() < 0.6:
            written.append((len(text), len(text) + len(piece)))
        text += piece
    return text, written


def check_hidden(text: str, letters: list[str], *, tries: int) -> None:
    engine, (names, slow) = ReferenceEngine(text), slow_hidden(text)
    drawn, tokens = random.Random(0), list(names)
    for _ in range(tries):
        typed, written = drawn_text(drawn, tokens, letters)
        hiding, hidden_text = engine.as_written(typed, written)
        expected = "".join(
            names[typed[start:stop]] if (start, stop) in written else typed[start:stop]
            for start, stop in cut_at(written, len(typed))
        )
        # The characters that stand for the tokens may be numbered otherwise.
        back = {private: token for token, private in engine._hiding.hidden.names.items()}
        assert "".join(names[back[c]] if c in back else c for c in hidden_text) == expected
        (own,), (other,) = hiding.encode([hidden_text]), slow.encode([expected])
        assert own.ids.dtype == other.ids.dtype
        assert own.ids.tolist() == other.ids.tolist(), typed
        assert own.offsets.tolist() == other.offsets.tolist(), typed
        decoded = "".join(names[back[c]] if c in back else c for c in hiding.decode(own.ids.tolist()))
        assert decoded == slow.decode(own.ids.tolist())
        assert hiding.encode_middle(hidden_text).ids.tolist() == slow.encode_middle(expected).ids.tolist()
    stand_for = {names[token] for token in names}
    assert {names[back[c]] for c in hiding.cutting if c in back} == stand_for & slow.cutting
    assert {c for c in hiding.cutting if c not in back} == slow.cutting - stand_for


def cut_at(written: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    borders = [0, *(border for span in written for border in span), length]
    return list(itertools.pairwise(borders))


@pytest.mark.corpus
@pytest.mark.parametrize("name", REAL)
def test_a_real_tokenizer_and_that_of_the_middle_are_those_that_the_library_reads(name: str, corpus: Path) -> None:
    text = text_of(name, corpus)
    expected, own = Tokenizer.from_str(text), made._of_parts(json.loads(text))
    assert own is not None, "it is not read a second time"
    assert own.to_str() == expected.to_str()
    assert own.get_added_tokens_decoder() == expected.get_added_tokens_decoder()
    engine = ReferenceEngine(text, own)
    assert engine._middle.to_str() == slow_middle(text)
    assert (engine._middle is own) == (name not in PREFIXED)


@pytest.mark.corpus
@pytest.mark.parametrize("name", REAL)
def test_control_tokens_of_real_tokenizers_are_hidden_as_by_other_names(name: str, corpus: Path) -> None:
    text = text_of(name, corpus)
    letters = ["a", " b", "\n", "12", "<", "|>", "[", "]", "<|", "文", " the", "e\u0301", "<s", "begin", "\u0100"]
    check_hidden(text, letters, tries=150)
    engine = ReferenceEngine(text)
    assert engine._hiding.hidden.names
    shares = not any(map(engine._hiding._tokenizer.model.token_to_id, engine._hiding.hidden.names.values()))
    assert shares == (name not in RENAMED)


@pytest.mark.parametrize("name", HANDMADE)
def test_any_tokenizer_is_the_one_that_the_library_reads_and_hides_its_tokens(name: str) -> None:
    text = json.dumps(HANDMADE[name])
    expected = Tokenizer.from_str(text)
    assert tokenizer_of(json.loads(text), text).to_str() == expected.to_str()
    assert tokenizer_of(json.loads(text)).to_str() == expected.to_str()
    middle = ReferenceEngine(text)._middle
    assert middle.to_str() == slow_middle(text)
    check_hidden(text, [*"ab<>s", "ab", "<s", "s>", " ", "\n", "?"], tries=400)


def test_our_own_tokenizer_is_put_together_in_both_forms_of_its_merges() -> None:
    parts = json.loads(OWN.read_text(encoding="utf-8"))
    expected = Tokenizer.from_file(str(OWN)).to_str()
    for written in (parts["model"]["merges"], [" ".join(pair) for pair in parts["model"]["merges"]]):
        parts["model"]["merges"] = written
        own = made._of_parts(parts)
        assert own is not None
        assert own.to_str() == expected


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"merges": ["a  b"]}},
        {"model": {"merges": [["a", "nowhere"]]}},
        {"model": {"vocab": {"a": -1}}},
        {"model": {"vocab": {"\ud800": 0}}},
        {"model": {"type": "BPE2"}},
        {"version": "9"},
        {"normalizer": {"type": "Nothing"}},
        {"added_tokens": [{"id": 0}]},
    ],
    ids=str,
)
def test_what_the_library_does_not_read_is_not_put_together_either(change: dict[str, Any]) -> None:
    parts = small("a|b|ab", "<s>")
    model = {**parts["model"], **change.get("model", {})}
    text = json.dumps({**parts, **change, "model": model})
    with pytest.raises(Exception, match=r".") as theirs:
        Tokenizer.from_str(text)
    with pytest.raises(Exception, match=r".") as ours:
        tokenizer_of(json.loads(text), text)
    assert str(ours.value) == str(theirs.value)


def test_a_token_whose_id_is_another_than_it_says_is_left_to_the_library() -> None:
    parts = small("a|b|ab", "<s>", "</s>")
    parts["added_tokens"].reverse()
    assert made._of_parts(parts) is None
    assert tokenizer_of(parts).to_str() == Tokenizer.from_str(json.dumps(parts)).to_str()
