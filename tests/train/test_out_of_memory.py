"""Memory that ends, wherever it does, is an error that says what to turn; a run goes on once that is turned."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from sftprep.config.train import TrainConfig
from sftprep.errors import TrainError
from sftprep.train import heldout, loop, model, optim, selftest
from sftprep.train.run import train
from tests.train.runs import metrics_of

ShardSetFactory = Callable[..., Path]
TURNS = ("--batch-size", "--grad-accum", "--gradient-checkpointing", "--keep-products", "--max-length", "--lora-rank")


def _run(data: Path, model_dir: Path, **options: Any) -> None:
    settings: dict[str, Any] = {"batch_size": 2, "grad_accum": 1, "lr": 3e-3, "device": "cpu", "threads": 1} | options
    train(TrainConfig(data=data, model=str(model_dir), **settings), console=Console(quiet=True))


def ending_at(call: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, with no memory left at one of its calls, counted from 1."""
    calls = 0

    def failing(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(*arguments, **keywords)

    return failing


@pytest.mark.parametrize(
    ("owner", "name", "place"),
    [
        (model.AutoModelForCausalLM, "from_pretrained", "before the first step"),
        (LlamaForCausalLM, "to", "before the first step"),
        (selftest, "_packed", "before the first step"),
        (loop, "token_loss", "step 1, rows"),
        (optim.ClippingAdamW, "step", "step 1, rows"),
        (heldout, "token_loss", "held-out"),
    ],
    ids=["weights", "move", "self-test", "forward pass", "optimizer", "held-out set"],
)
def test_wherever_memory_ends_the_error_says_where_and_what_to_turn(
    shard_set: ShardSetFactory,
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    owner: Any,
    name: str,
    place: str,
) -> None:
    data = shard_set()
    monkeypatch.setattr(owner, name, ending_at(1, getattr(owner, name)))
    with pytest.raises(TrainError) as raised:
        _run(data, toy_model, out=tmp_path / "out", eval_shards=data, eval_every=1)
    assert raised.value.code == "out-of-memory"
    assert place in (raised.value.place or "")
    assert [turn for turn in TURNS if turn not in (raised.value.hint or "")] == []
    assert not (tmp_path / "out").exists()


def test_a_run_that_ran_out_goes_on_with_smaller_batches_to_the_same_losses(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shard_set()
    _run(data, toy_model, out=tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "token_loss", ending_at(4, loop.token_loss))
        with pytest.raises(TrainError, match="not enough memory"):
            _run(data, toy_model, out=tmp_path / "out", save_every=1)
    _run(data, toy_model, out=tmp_path / "out", batch_size=1, grad_accum=2, resume=True)
    whole, found = (metrics_of(tmp_path / name / "metrics.jsonl") for name in ("whole", "out"))
    assert [line["nll"] for line in found] == pytest.approx([line["nll"] for line in whole], rel=1e-5)


def test_another_failure_keeps_its_own_name(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a kernel has a fault")

    monkeypatch.setattr(loop, "token_loss", broken)
    with pytest.raises(RuntimeError, match="a kernel has a fault"):
        _run(shard_set(), toy_model, out=tmp_path / "out")


LIMITED = """
import resource, sys
from sftprep.__main__ import main
from sftprep.train import run

real = run.run_steps
def limited(*arguments, **keywords):
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**26, resource.RLIM_INFINITY))
    return real(*arguments, **keywords)
run.run_steps = limited
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how much memory a process has")
def test_a_process_that_may_have_no_more_memory_ends_with_the_advice_and_exit_code_1(
    shard_set: ShardSetFactory, tmp_path: Path
) -> None:
    LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
    ).save_pretrained(tmp_path / "model")
    places = [str(shard_set(num_rows=40)), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    options = ["--init", "random", "--batch-size", "32", "--grad-accum", "1", "--device", "cpu", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "train", *places, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    assert "[out-of-memory]" in done.stderr
    assert "lower --batch-size and raise --grad-accum" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
