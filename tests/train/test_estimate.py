"""A dry run counts the work as torch's own counter does, and leaves nothing behind."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from sftprep.config.train import TrainConfig
from sftprep.errors import ShardError
from sftprep.shards.read import open_shard_set
from sftprep.train.estimate import rehearse
from sftprep.train.flops import cost_of
from sftprep.train.run import train

ShardSetFactory = Callable[..., Path]


def _config(data: Path, model: Path, out: Path, **options: Any) -> TrainConfig:
    settings: dict[str, Any] = {"grad_accum": 2, "device": "cpu", "threads": 1} | options
    return TrainConfig(data=data, model=str(model), out=out, **settings)


def test_a_dry_run_says_what_the_run_then_does_f8_a3(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    config = _config(shard_set(num_rows=9), toy_model, tmp_path / "out", epochs=1.4)
    shown = io.StringIO()
    found = rehearse(config, console=Console(file=shown, width=200))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "set"]
    done = train(config, console=Console(quiet=True))
    assert (found.num_steps, found.num_tokens, found.num_trained) == (
        done.num_steps,
        done.num_tokens,
        done.num_trained,
    )
    parameters = sum(p.numel() for p in LlamaForCausalLM.from_pretrained(toy_model).parameters())
    assert found.weight_bytes == found.gradient_bytes == 4 * parameters
    assert found.optimizer_bytes == 8 * parameters
    assert found.peak_bytes > 2**26
    assert f"{found.num_steps} steps" in shown.getvalue()
    assert 0 < found.seconds < 100


@pytest.mark.parametrize("tied", [True, False])
def test_the_work_is_what_torch_counts_for_one_document(*, tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    length = 48
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, length, dtype=torch.int64), use_cache=False).logits.sum().backward()
    cost = cost_of(model)
    assert cost is not None
    # The counter's attention is the whole square, and backward to the embedding's lookup costs it nothing.
    ours = cost.step(num_tokens=length, num_trained=length, sum_len2=2 * length**2)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_dry_run_refuses_what_the_run_would_refuse(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set()
    shard = open_shard_set(data).directory / open_shard_set(data).manifest.shards[0].file
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(ShardError):
        rehearse(_config(data, toy_model, tmp_path / "out"), console=Console(quiet=True))
