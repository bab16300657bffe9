"""The ids that a model is asked with are those that a server would send, or the conversation is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sftprep.config.pack import PINNED_NOW
from sftprep.data import Conversation, RowAddress
from sftprep.engines.load import load_model
from sftprep.engines.reference import ReferenceEngine
from sftprep.errors import MaskError
from sftprep.evaluate.prompts import prompt_ids

MODEL = Path(__file__).parents[2] / "data_samples" / "model"
QUESTION = Conversation(RowAddress("cases.jsonl", 7), [{"role": "user", "content": "How deep is the sea?"}], [1.0])


def test_the_ids_are_those_of_the_models_own_files() -> None:
    model = load_model(str(MODEL))
    (ids,) = prompt_ids(model, MODEL, [QUESTION], now=PINNED_NOW)
    assert "How deep is the sea?" in ReferenceEngine(model.tokenizer_json).decode(ids)


def test_files_from_which_transformers_makes_other_ids_are_refused_with_the_place(tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(MODEL, other)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    with pytest.raises(MaskError) as caught:
        prompt_ids(load_model(str(MODEL)), other, [QUESTION], now=PINNED_NOW)
    assert caught.value.code == "prompt-differs"
    assert caught.value.place == "cases.jsonl:7"
