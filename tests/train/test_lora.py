"""Adapters: merged exactly, exported as peft reads them, resumed bit for bit, refused on untrained tokens (N2)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

from sftprep.config.train import TrainConfig
from sftprep.errors import TrainError
from sftprep.train import lora, run
from sftprep.train.run import TrainResult, train
from tests.train.runs import interrupted_after

ShardSetFactory = Callable[..., Path]
IDS = torch.arange(5, 25)[None]


def _run(data: Path, model: Path, **options: Any) -> TrainResult:
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-2, "device": "cpu", "threads": 1, "lora_rank": 4} | options
    return train(TrainConfig(data=data, model=str(model), **settings), console=Console(file=io.StringIO()))


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=IDS).logits
    return logits


def _model(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory)


def test_the_merged_model_opens_in_transformers_and_equals_base_and_adapter_c2_b5(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set(num_rows=20)
    result = _run(data, toy_model, out=tmp_path / "out", epochs=10)
    assert sum(result.nll[-5:]) < 0.995 * sum(result.nll[:5])
    merged, base = _model(tmp_path / "out"), _model(toy_model)
    adapted = PeftModel.from_pretrained(_model(toy_model), tmp_path / "out" / "adapter")
    torch.testing.assert_close(_logits(merged), _logits(adapted), rtol=1e-5, atol=1e-5)
    assert (_logits(merged) - _logits(base)).abs().max() > 0.1
    assert torch.equal(merged.get_input_embeddings().weight, base.get_input_embeddings().weight)
    assert not any("lora" in name or "base_layer" in name for name in merged.state_dict())
    assert merged.generation_config.eos_token_id == 2
    template = (data / "model" / "chat_template.jinja").read_bytes()
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == template


def test_every_linear_layer_but_the_head_is_adapted_and_nothing_else_is_trained(toy_model: Path) -> None:
    model = _model(toy_model)
    lora.adapt(model, TrainConfig(data=Path("d"), model="m", out=Path("o"), lora_rank=2))
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "base_layer")}
    assert linear == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all(("lora_" in name) == p.requires_grad for name, p in model.named_parameters())


def test_a_resumed_run_with_dropout_ends_in_the_same_bytes_j1(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shard_set(num_rows=9)
    _run(data, toy_model, out=tmp_path / "whole", epochs=2, lora_dropout=0.3)
    real = run.run_steps
    monkeypatch.setattr(run, "run_steps", interrupted_after(5))
    with pytest.raises(KeyboardInterrupt):
        _run(data, toy_model, out=tmp_path / "parts", epochs=2, lora_dropout=0.3, save_every=3)
    assert isinstance(_model(tmp_path / "parts.running" / "checkpoints" / "step-00000003"), torch.nn.Module)
    monkeypatch.setattr(run, "run_steps", real)
    with pytest.raises(TrainError) as differs:
        _run(data, toy_model, out=tmp_path / "parts", epochs=2, lora_rank=2, resume=True)
    assert differs.value.code == "resume-differs"
    _run(data, toy_model, out=tmp_path / "parts", epochs=2, lora_dropout=0.3, resume=True)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        digests = {hashlib.sha256((tmp_path / run / name).read_bytes()).hexdigest() for run in ("whole", "parts")}
        assert len(digests) == 1


def _with_untrained_stop(directory: Path) -> Path:
    model = _model(directory)
    with torch.no_grad():
        model.get_input_embeddings().weight[2] = 1e-6
    model.save_pretrained(directory)
    return directory


def test_untrained_tokens_of_the_set_are_refused_unless_embeddings_are_trained_n2(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data, model = shard_set(), _with_untrained_stop(toy_model)
    with pytest.raises(TrainError, match="first: 2") as raised:
        _run(data, model, out=tmp_path / "out")
    assert raised.value.code == "untrained-tokens"
    _run(data, model, out=tmp_path / "out", lora_embeddings=True)
    moved = _model(tmp_path / "out").get_input_embeddings().weight[2] - _model(model).get_input_embeddings().weight[2]
    assert moved.abs().max() > 0
    assert not (tmp_path / "out" / "adapter").exists()
    _run(data, model, out=tmp_path / "full", lora_rank=0, max_steps=1)


def test_only_used_ids_count_as_untrained() -> None:
    weight = torch.ones(6, 4)
    weight[[2, 4]] = 0.0
    assert lora.untrained_ids(weight, np.array([0, 2, 3])) == [2]


def test_adapters_train_on_a_bfloat16_base(shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path) -> None:
    result = _run(shard_set(num_rows=20), toy_model, out=tmp_path / "out", epochs=10, dtype="bfloat16")
    assert sum(result.nll[-5:]) < 0.995 * sum(result.nll[:5])
    assert result.layout == "segments"
    weights = _model(tmp_path / "out").state_dict()
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
