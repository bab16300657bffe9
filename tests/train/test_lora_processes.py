"""Adapters that several processes train are those that one trains, and every file that they write is whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sftprep.config.train import TrainConfig
from sftprep.errors import StoppedError
from sftprep.train import run
from sftprep.train.run import train
from tests.train.runs import metrics_of, stopping_after

ShardSetFactory = Callable[..., Path]


def test_a_run_of_one_process_goes_on_in_two_to_the_adapters_of_one(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set(num_rows=10)
    options: dict[str, Any] = {"grad_accum": 4, "lr": 3e-3, "device": "cpu", "threads": 1, "lora_rank": 4, "epochs": 2}
    config = TrainConfig(data=data, model=str(toy_model), out=tmp_path / "whole", lora_dropout=0.3, **options)
    train(config, console=Console(quiet=True))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "run_steps", stopping_after(2))
        with pytest.raises(StoppedError):
            train(config.model_copy(update={"out": tmp_path / "out"}), console=Console(quiet=True))
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    words += ["--lora-dropout=0.3", "--save-every=2", "--keep-last=9", "--resume", f"--out={tmp_path / 'out'}"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "sftprep", "train", str(data), f"--model={toy_model}", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, out = tmp_path / "whole", tmp_path / "out"
    losses = [[line["loss"] for line in metrics_of(place / "metrics.jsonl")] for place in (out, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name in ("adapter/adapter_model.safetensors", "model.safetensors"):
        ours, theirs = load_file(out / name), load_file(whole / name)
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-5)
    saved = load_file(out / "checkpoints" / "step-00000004" / "trainable.safetensors")
    assert {".lora_A." in key or ".lora_B." in key for key in saved} == {True}
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(toy_model), out / "adapter").eval()
    merged, ids = AutoModelForCausalLM.from_pretrained(out).eval(), torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-5, atol=1e-5)
