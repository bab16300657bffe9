"""Rows of SentencePiece-style tokenizers are replayed as they are compiled one by one, whatever their texts."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.config.pack import PackConfig
from sftprep.data import Conversation, RowAddress
from sftprep.engines.fast import EngineChoice
from sftprep.engines.load import load_model
from sftprep.errors import EngineDiffersError
from sftprep.prepare.batch import BatchCompiler
from sftprep.prepare.compile import Compiler, batch_compiler
from sftprep.prepare.compile_chunk import compile_chunk
from sftprep.stages.encode_batch import EncodedTexts, flat_offsets
from tests.engines.spaced import CLOSE, FORMS, INST, PHI, write_model
from tests.prepare.test_plans import both, config, conversation, rows_of, same

WORDS = st.sampled_from(
    ["", " ", "  ", "the", " a", "an", "\n", "\n\n", "▁", "▁a", "é", "日本", "🏳️‍🌈", "[in]", "[/in]", "<s>", "<|end|>"]
)
TEXTS = st.lists(WORDS, max_size=4).map("".join)
CHATS = st.lists(
    st.lists(TEXTS, min_size=4, max_size=4) | st.lists(TEXTS, min_size=2, max_size=2), min_size=1, max_size=5
)
TEMPLATES = {"phi": PHI, "inst": INST, "close": CLOSE}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@functools.cache
def made(form: str, template: str, directory: Path) -> tuple[Compiler, PackConfig]:
    path = write_model(directory / f"{form}-{template}", form, TEMPLATES[template])
    options = config(path)
    return batch_compiler(load_model(str(path)), options), options


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=12)
@given(chats=CHATS)
def test_texts_of_any_kind_are_replayed_as_they_are_compiled_alone(
    form: str, template: str, directory: Path, chats: list[list[str]]
) -> None:
    compile_rows, options = made(form, template, directory)
    rows = rows_of([conversation(n + 1, texts) for n, texts in enumerate(chats)])
    assert same(*both(compile_rows, rows, options))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("form", FORMS)
def test_plain_words_are_replayed(form: str, template: str, directory: Path) -> None:
    compile_rows, options = made(form, template, directory)
    texts = [[f"the {n}", f"an inn {n}", "a line", "日本 e\u0301."] for n in range(20)]
    rows = rows_of([conversation(n + 1, own) for n, own in enumerate(texts)])
    fast, slow = both(compile_rows, rows, options)
    assert same(fast, slow)
    assert not slow.left_out
    assert fast.rendering["replayed"] == 20
    # A space that is put right before an answer is none that the model writes: each answer has a document of its own.
    is_apart = template == "close" and form in ("prepend", "always")
    assert fast.documents.num_rows == (40 if is_apart else 20)
    assert fast.remarks == ({"border-straddled": 20} if is_apart else {})


class Cut:
    """An engine that cuts a text after its first character."""

    name = "cut"

    def __init__(self, choice: EngineChoice) -> None:
        self._choice = choice

    def encode_batch(self, texts: Sequence[bytes]) -> EncodedTexts:
        """As the other."""
        found = [
            np.concatenate([self._choice.reference.encode_batch([part]).ids for part in (text[:1], text[1:])])
            for text in texts
        ]
        return EncodedTexts(np.concatenate(found), flat_offsets([len(own) for own in found]))


def test_an_answer_that_is_encoded_apart_is_checked_apart(directory: Path) -> None:
    compile_rows, options = made("prepend", "close", directory)
    assert compile_rows.batch is not None
    rows = rows_of([conversation(n, ["an inn", "the line"]) for n in range(1, 1000)])
    assert compile_chunk(rows, compile_row=compile_rows, config=options).rendering["checked"] > 1
    choice = EngineChoice(compile_rows.batch.choice._model, compile_rows.batch.choice.reference, fast=False)
    choice.__dict__["middle"] = Cut(choice.middle)
    batch = BatchCompiler(compile_rows.batch._book, choice=choice, table=compile_rows.batch.table)
    with pytest.raises(EngineDiffersError, match="gives other ids"):
        compile_chunk(rows, compile_row=Compiler(compile_rows.compile_row, batch), config=options)


HOSTILE = ["▁", "▁x", "<0x41>", "<0x0A>", "\u00a0x", "\u2028", "\ufeff", "x\r\n", " x ", "  ", "[INST]", "[/INST] x"]
HOSTILE += ["</s", "<unk>x", "\x00", "ﬁ", "e\u0301", "🏳️‍🌈 ok", "日本", "]", "'s", "\t"]
OTHERS = {"mistral-v1": "chujiezheng__mistral-instruct.jinja", "llama-2": "chujiezheng__llama-2-chat.jinja"}


@pytest.fixture(scope="module", params=["phi-3", "mistral-v3", *OTHERS])
def served(request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model, or another one's template on Mistral's vocabulary without its newer tokens."""
    if request.param not in OTHERS:
        return corpus / "models" / request.param
    path = tmp_path_factory.mktemp("other") / request.param
    shutil.copytree(corpus / "models" / "mistral-v3", path)
    parts = json.loads((path / "tokenizer.json").read_text())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] in ("<unk>", "<s>", "</s>")]
    (path / "tokenizer.json").write_text(json.dumps(parts))
    options = json.loads((path / "tokenizer_config.json").read_text())
    kept = {key: value for key, value in options.items() if key.endswith("_token")}
    (path / "tokenizer_config.json").write_text(json.dumps(kept))
    shutil.copy(corpus / "templates" / OTHERS[request.param], path / "chat_template.jinja")
    return path


@pytest.mark.corpus
def test_real_and_hostile_rows_are_replayed_as_they_are_compiled_alone(served: Path, corpus: Path) -> None:
    options = config(served)
    compile_rows = batch_compiler(load_model(str(served)), options)
    with zstandard.open(corpus / "bench" / "chat_10k.jsonl.zst", "rt", encoding="utf-8") as lines:
        real = [json.loads(line) for line in islice(lines, 30)]
    chats = [
        Conversation(RowAddress("chats", n + 1), row["messages"], [1.0] * len(row["messages"]), tools=row.get("tools"))
        for n, row in enumerate(real)
    ]
    draw = np.random.default_rng(0)
    words = [*HOSTILE, "hi", "a word", " there", "."]
    for n in range(30):
        texts = ["".join(draw.choice(words, size=draw.integers(1, 4))) for _ in range(2 * draw.integers(1, 4))]
        chats.append(conversation(1000 + n, texts, system="Be brief." if n % 5 == 0 else None))
    fast, slow = both(compile_rows, rows_of(chats), options)
    assert same(fast, slow)
    # With a system prompt, Llama 2's template strips a text that is a field in part, and Mistral 3's splices.
    assert fast.rendering["replayed"] > {"phi-3": 35, "mistral-v1": 35, "llama-2": 25, "mistral-v3": 25}[served.name]
