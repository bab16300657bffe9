"""A model that cannot be trained is named before the first step, whatever is wrong with it; odd ones are trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sftprep.config.train import TrainConfig
from sftprep.errors import SftprepError
from sftprep.train.run import TrainResult, train

ShardSetFactory = Callable[..., Path]


def _run(data: Path, model: Path, out: Path, **options: Any) -> TrainResult:
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1, "epochs": 2} | options
    return train(TrainConfig(data=data, model=str(model), out=out, **settings), console=Console(quiet=True))


def _with_nan(weights: Path) -> None:
    state = load_file(weights)
    state["model.norm.weight"][3] = float("nan")
    save_file(state, weights, metadata={"format": "pt"})


def _without_a_weight(weights: Path) -> None:
    state = load_file(weights)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, weights, metadata={"format": "pt"})


def _cut(weights: Path) -> None:
    os.truncate(weights, weights.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_cut, "no-weights"),
        (Path.unlink, "no-weights"),
        (_without_a_weight, "missing-weights"),
        (_with_nan, "not-finite"),
    ],
)
@pytest.mark.parametrize("attention", ["auto", "unpack"])
def test_damaged_weights_are_named_before_anything_is_written(
    *,
    shard_set: ShardSetFactory,
    toy_model: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    code: str,
    attention: str,
) -> None:
    damage(toy_model / "model.safetensors")
    with pytest.raises(SftprepError) as raised:
        _run(shard_set(), toy_model, tmp_path / "out", attention=attention)
    assert raised.value.code == code
    assert not list(tmp_path.glob("out*"))


def _model(directory: Path, **changes: Any) -> Path:
    torch.manual_seed(3)
    form = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    LlamaForCausalLM(LlamaConfig(**form | heads | changes)).save_pretrained(directory)
    return directory


def test_a_vocabulary_smaller_than_the_set_s_ids_is_named_before_the_first_step(
    shard_set: ShardSetFactory, tmp_path: Path
) -> None:
    with pytest.raises(SftprepError, match="the model has 50") as raised:
        _run(shard_set(), _model(tmp_path / "small", vocab_size=50), tmp_path / "out")
    assert raised.value.code == "id-out-of-range"
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "form",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"attention_bias": True, "mlp_bias": True},
        {"vocab_size": 128},
    ],
    ids=["tied", "untied", "biases", "padded vocabulary"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_weight_of_a_model_of_any_form_and_type_is_learnt_and_written(
    shard_set: ShardSetFactory, tmp_path: Path, form: dict[str, Any], dtype: torch.dtype
) -> None:
    base = _model(tmp_path / "model", **form)
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(tmp_path / "parts", max_shard_size="10KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 3
    result = _run(shard_set(num_rows=20), tmp_path / "parts", tmp_path / "out", epochs=3)
    assert sum(result.nll[-5:]) < 0.99 * sum(result.nll[:5])
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "parts", dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert after.keys() == before.keys()
    assert {name for name, value in before.items() if torch.equal(after[name], value)} == set()
