"""A run that is told to stop, or killed at any moment, goes on to the same bytes (J1, J3, J4)."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from sftprep.config.train import TrainConfig
from sftprep.errors import ShardError, StoppedError
from sftprep.train import measure, run
from sftprep.train.run import TrainResult, train
from tests.train.runs import metrics_of, stopping_after

ShardSetFactory = Callable[..., Path]


def _run(data: Path, model: Path, **options: Any) -> TrainResult:
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1} | options
    return train(TrainConfig(data=data, model=str(model), **settings), console=Console(quiet=True))


def _parameters(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("stops", [(1, 2, 3), (4, 7)], ids=["three times", "mid-epoch"])
def test_a_run_stopped_by_sigterm_and_resumed_ends_in_the_same_bytes_j1_j4(
    shard_set: ShardSetFactory,
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stops: tuple[int, ...],
) -> None:
    data = shard_set(num_rows=9)
    _run(data, toy_model, out=tmp_path / "whole", epochs=2)
    for number, step in enumerate(stops):
        with monkeypatch.context() as patched:
            patched.setattr(run, "run_steps", stopping_after(step))
            with pytest.raises(StoppedError) as raised:
                _run(data, toy_model, out=tmp_path / "parts", epochs=2, resume=number > 0)
        assert raised.value.exit_code == 143
        assert (tmp_path / "parts.running" / "checkpoints" / f"step-{step:08d}").is_dir()
    _run(data, toy_model, out=tmp_path / "parts", epochs=2, resume=True)
    assert _parameters(tmp_path / "parts") == _parameters(tmp_path / "whole")
    whole, parts = metrics_of(tmp_path / "whole" / "metrics.jsonl"), metrics_of(tmp_path / "parts" / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in parts] == [(line["step"], line["loss"]) for line in whole]
    assert len(parts) == 10


def test_a_stop_in_the_last_step_ends_the_run_as_usual(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_steps", stopping_after(2))
    _run(shard_set(), toy_model, out=tmp_path / "out", max_steps=2)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def _command(data: Path, model: Path, out: Path, *options: str) -> list[str]:
    arguments = [str(data), "--model", str(model), "--out", str(out), "--grad-accum", "2", "--threads", "1", *options]
    return [sys.executable, "-m", "sftprep", "train", *arguments]


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no {path.name} in time"
        time.sleep(0.02)


def test_sigterm_finishes_the_step_saves_and_exits_143(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    command = _command(shard_set(), toy_model, tmp_path / "out", "--epochs", "100000")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    _wait_for(tmp_path / "out.running" / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate()
    assert process.returncode == 143
    assert "terminated" in shown
    done = len(metrics_of(tmp_path / "out.running" / "metrics.jsonl"))
    assert (tmp_path / "out.running" / "checkpoints" / f"step-{done:08d}" / "position.json").is_file()


# The clock of the kill starts in the process itself: it stands still where the process does.
KILLED_AFTER_STEPS = """
import os, signal, sys, threading
from sftprep.cli.app import main
from sftprep.train import run

steps, seconds = int(sys.argv[1]), float(sys.argv[2])
del sys.argv[1:3]
real = run.run_steps

def counted(*arguments, **options):
    for number, item in enumerate(real(*arguments, **options), 1):
        if number == steps:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        yield item

run.run_steps = counted
main()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_any_moment_leaves_a_checkpoint_that_goes_on(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    # Kills at chosen calls inside a save are in test_saving.py.
    data = shard_set(num_rows=9)
    moments, resume = random.Random(5), []
    _run(data, toy_model, out=tmp_path / "whole", epochs=30, lr=2e-5)
    for _ in range(4):
        options = ["--epochs", "30", "--save-every", "1", *resume]
        words = _command(data, toy_model, tmp_path / "out", *options)
        words[1:3] = ["-c", KILLED_AFTER_STEPS, "3", str(moments.random() * 0.2)]
        killed = subprocess.run(words, capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        latest = max((tmp_path / "out.running" / "checkpoints").glob("step-*"))
        assert isinstance(AutoModelForCausalLM.from_pretrained(latest), torch.nn.Module)
        resume = ["--resume"]
    _run(data, toy_model, out=tmp_path / "out", epochs=30, lr=2e-5, resume=True)
    assert _parameters(tmp_path / "out") == _parameters(tmp_path / "whole")
    assert len(metrics_of(tmp_path / "out" / "metrics.jsonl")) == 150


def test_a_damaged_checkpoint_is_named(shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    data = shard_set()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "_publish", stopped)
        with pytest.raises(KeyboardInterrupt):
            _run(data, toy_model, out=tmp_path / "out", save_every=2)
    (tmp_path / "out.running" / "checkpoints" / "step-00000004" / "position.json").write_text("{")
    with pytest.raises(ShardError) as raised:
        _run(data, toy_model, out=tmp_path / "out", save_every=2, resume=True)
    assert raised.value.code == "damaged-checkpoint"


def test_the_last_checkpoints_and_the_best_are_kept(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 1.0, 1.5, 2.5])
    monkeypatch.setattr(measure, "held_out_nll", lambda *_, **__: next(losses))
    held = shard_set("held", num_rows=3)
    options: dict[str, Any] = {"epochs": 2, "save_every": 1, "eval_shards": held, "eval_every": 2}
    data = shard_set(num_rows=10)
    with monkeypatch.context() as patched:
        patched.setattr(run, "run_steps", stopping_after(7))
        with pytest.raises(StoppedError):
            _run(data, toy_model, out=tmp_path / "out", **options)
    _run(data, toy_model, out=tmp_path / "out", resume=True, **options)
    lines = metrics_of(tmp_path / "out" / "metrics.jsonl")
    assert [line["eval_nll"] for line in lines] == [None, 3.0, None, 2.0, None, 1.0, None, 1.5, None, 2.5]
    kept = sorted(int(path.name[5:]) for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert kept == [6, 8, 9]


def test_the_held_out_loss_is_a_sum_over_a_sum_whatever_the_batch_i4(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    held, data = shard_set("held", num_rows=5), shard_set()
    loose = shard_set("loose", num_rows=5, packing=False)
    for eval_set in (held, loose):
        found = []
        for size, attention in ((1, "segments"), (2, "segments"), (3, "unpack")):
            out = tmp_path / f"{eval_set.name}-{size}"
            options: dict[str, Any] = {"max_steps": 1, "batch_size": size, "grad_accum": 12 // size}
            _run(data, toy_model, out=out, eval_shards=eval_set, attention=attention, **options)
            found.append(metrics_of(out / "metrics.jsonl")[0]["eval_nll"])
        assert found == pytest.approx([found[0]] * 3, rel=1e-5)
        assert 1 < found[0] < 10


def test_a_held_out_set_for_another_template_is_refused(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    held = shard_set("held")
    manifest = json.loads((held / "manifest.json").read_text())
    manifest["model"]["template_sha256"] = "1"
    (held / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError) as raised:
        _run(shard_set(), toy_model, out=tmp_path / "out", eval_shards=held)
    assert raised.value.code == "eval-differs"
