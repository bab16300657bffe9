"""`--keep-best`: the model that a run leaves is that of its best step, whole, and it says which step that is."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedModel

from sftprep.config.train import TrainConfig
from sftprep.errors import StoppedError
from sftprep.train import measure, run
from sftprep.train.run import train
from sftprep.train.samples import Sample, Watcher
from tests.train.runs import stopping_after

ShardSetFactory = Callable[..., Path]
SCORES = [0.1, 0.5, 0.4, 0.5, 0.3]
BEST = 2
"""The first of two steps that are equally good."""


def scripted(scores: list[float]) -> Watcher:
    told = iter(scores)

    def ask(model: PreTrainedModel) -> Sample:
        return Sample({"pass-rate": next(told)}, ())

    return Watcher(frozenset({"pass-rate"}), ask)


def start(data: Path, model: Path, out: Path, *, scores: list[float] | None = None, **options: Any) -> str:
    shown = io.StringIO()
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1, "eval_every": 1}
    settings |= {"keep_best": "pass-rate"} if scores else {}
    config = TrainConfig(data=data, model=str(model), out=out, **{**settings, **options})
    train(config, console=Console(file=shown, width=200), watcher=scripted(scores) if scores else None)
    return shown.getvalue()


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def model_step(directory: Path) -> int:
    return int(json.loads((directory / "train.json").read_bytes())["model_step"])


def at_each_step(data: Path, model: Path, place: Path, **options: Any) -> list[bytes]:
    """The weights after each step of a run that nobody watches."""
    start(data, model, place, save_every=1, keep_last=9, **options)
    return [*map(weights, sorted((place / "checkpoints").iterdir())), weights(place)]


def test_the_output_is_the_model_of_the_best_step_and_says_so(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data, out = shard_set(), tmp_path / "out"
    steps = at_each_step(data, toy_model, tmp_path / "plain")
    assert len(set(steps)) == len(SCORES)
    shown = start(data, toy_model, out, scores=SCORES)
    assert weights(out) == steps[BEST - 1]
    assert model_step(out) == BEST
    assert f"best by pass-rate: step {BEST}, in {out}\n" in shown
    assert f"the best step kept: {BEST}" in (out / "loss.html").read_text(encoding="utf-8")
    plain = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {path.name for path in out.iterdir()} == plain, "what a resumption needs is no part of the model"
    AutoModelForCausalLM.from_pretrained(out)


def test_where_the_last_step_is_the_best_its_model_is_the_output(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data, out = shard_set(), tmp_path / "out"
    steps = at_each_step(data, toy_model, tmp_path / "plain")
    start(data, toy_model, out, scores=[0.1, 0.2, 0.3, 0.4, 0.5])
    assert (weights(out), model_step(out)) == (steps[-1], 5)


def test_a_resumed_run_leaves_the_best_step_from_before_it_was_stopped(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = shard_set(), tmp_path / "out"
    steps = at_each_step(data, toy_model, tmp_path / "plain")
    with monkeypatch.context() as patched:
        patched.setattr(run, "run_steps", stopping_after(3))
        with pytest.raises(StoppedError):
            start(data, toy_model, out, scores=SCORES)
    start(data, toy_model, out, scores=SCORES[3:], resume=True)
    assert (weights(out), model_step(out)) == (steps[BEST - 1], BEST)


def test_without_keep_best_the_output_is_the_last_model_and_the_best_stays_beside_it(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out, losses = shard_set(), tmp_path / "out", iter([3.0, 1.0, 2.0, 2.0, 2.0])
    steps = at_each_step(data, toy_model, tmp_path / "plain")
    monkeypatch.setattr(measure, "held_out_nll", lambda *_, **__: next(losses))
    shown = start(data, toy_model, out, eval_shards=shard_set("held", num_rows=3), keep_last=1)
    assert (weights(out), model_step(out)) == (steps[-1], 5)
    (best,) = (out / "checkpoints").iterdir()
    assert weights(best) == steps[BEST - 1]
    assert f"best by nll: step {BEST}, in {best}" in shown


def test_the_adapters_are_those_of_the_best_step_too(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data, out = shard_set(), tmp_path / "out"
    options = {"lora_rank": 4, "lr": 0.05}
    steps = at_each_step(data, toy_model, tmp_path / "plain", **options)
    start(data, toy_model, out, scores=SCORES, **options)
    assert weights(out) == steps[BEST - 1] != steps[-1]
    base = AutoModelForCausalLM.from_pretrained(toy_model)
    adapted = logits(PeftModel.from_pretrained(base, str(out / "adapter")))
    best, last = (logits(AutoModelForCausalLM.from_pretrained(place)) for place in (out, tmp_path / "plain"))
    assert torch.allclose(adapted, best, atol=1e-5)
    assert not torch.allclose(adapted, last, atol=1e-3)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(torch.tensor([[5, 6, 7, 8]])).logits
    return found
