"""A dry run counts the work as torch's own counter does, and leaves nothing behind."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
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
from sftprep.train import estimate
from sftprep.train.estimate import rehearse
from sftprep.train.flops import cost_of
from sftprep.train.run import train
from sftprep.train.stream import Schedule
from tests.train.runs import metrics_of

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
    assert 0 < found.seconds < math.inf


def test_what_is_measured_is_the_step_with_the_longest_forward_pass(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shard_set(num_rows=23, packing=False)
    measured: list[int] = []
    real = estimate.accumulate

    def noting(*arguments: Any, step: int, **keywords: Any) -> Any:
        measured.append(step)
        return real(*arguments, step=step, **keywords)

    monkeypatch.setattr(estimate, "accumulate", noting)
    config = _config(data, toy_model, tmp_path / "out", batch_size=2, grad_accum=3, epochs=3)
    rehearse(config, console=Console(quiet=True))
    lengths, schedule = open_shard_set(data).scalars().num_tokens, Schedule(num_rows=23, rows_per_step=6, seed=0)

    def longest(step: int) -> int:
        rows = schedule.rows(step)
        return max(int(lengths[rows[start : start + 2]].sum()) for start in range(0, len(rows), 2))

    sizes = [longest(step) for step in range(schedule.steps_per_epoch)]
    assert sizes[0] < max(sizes) == sizes[measured[0]]


REHEARSED = """
import sys
from pathlib import Path
from rich.console import Console
from sftprep.config.train import TrainConfig
from sftprep.train.estimate import rehearse
settings = {"batch_size": 16, "grad_accum": 1, "device": "cpu", "threads": 1, "lora_rank": int(sys.argv[4])}
config = TrainConfig(data=sys.argv[1], model=sys.argv[2], out=sys.argv[3], init="random", **settings)
print(rehearse(config, console=Console(quiet=True)).peak_bytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 8])
def test_the_memory_that_is_foretold_is_within_a_tenth_of_what_the_run_takes(
    shard_set: ShardSetFactory, tmp_path: Path, lora_rank: int
) -> None:
    LlamaConfig(
        vocab_size=16_000,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    ).save_pretrained(tmp_path / "model")
    data, environment = shard_set(num_rows=40), {**os.environ, "OMP_NUM_THREADS": "1"}
    places = [str(data), str(tmp_path / "model"), str(tmp_path / "out")]
    foretold = subprocess.run(
        [sys.executable, "-c", REHEARSED, *places, str(lora_rank)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    command = [sys.executable, "-m", "sftprep", "train", places[0], "--model", places[1], "--out", places[2]]
    options = ["--init", "random", "--batch-size", "16", "--grad-accum", "1", "--device", "cpu", "--threads", "1"]
    subprocess.run(
        [*command, *options, "--lora-rank", str(lora_rank)], env=environment, capture_output=True, check=True
    )
    taken = metrics_of(tmp_path / "out" / "metrics.jsonl")[-1]["peak_bytes"]
    assert taken > 500e6
    assert 0.9 * taken < int(foretold) < 1.1 * taken, f"{int(foretold) / taken:.3f} of {taken:,} bytes"


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
