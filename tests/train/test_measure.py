"""What is measured between steps: the best step by any metric, a run that ends early, training that sees nothing."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import PreTrainedModel

from sftprep.config.train import TrainConfig
from sftprep.errors import StoppedError, TrainError, UsageError
from sftprep.train import run
from sftprep.train.run import train
from sftprep.train.samples import Sample, ShownAnswer, Watcher
from tests.train.runs import metrics_of, stopping_after

ShardSetFactory = Callable[..., Path]
SCORES = [0.1, 0.5, 0.5, 0.4, 0.9]


class Scripted:
    """A watcher whose scores are written down, and which remembers the model that it was given."""

    def __init__(self, scores: list[float], metric: str = "pass-rate") -> None:
        self.scores, self.metric, self.seen = iter(scores), metric, list[dict[str, Any]]()

    def ask(self, model: PreTrainedModel) -> Sample:
        torch.manual_seed(1)
        state = {"training": model.training, "attention": model.config._attn_implementation}
        self.seen.append(state | {"penalty": model.generation_config.repetition_penalty})
        score = next(self.scores)
        answer = ShownAnswer("s/a", "user: Open?", f"Aye {score}.", 3, stopped=True, value=score, passed=score > 0.4)
        return Sample({self.metric: score}, (answer,))

    @property
    def watcher(self) -> Watcher:
        return Watcher(frozenset({self.metric}), self.ask)


def start(data: Path, model: Path, watcher: Watcher | None, **options: Any) -> tuple[run.TrainResult, str]:
    shown = io.StringIO()
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1, "eval_every": 1} | options
    config = TrainConfig(data=data, model=str(model), **settings)
    return train(config, console=Console(file=shown, width=200), watcher=watcher), shown.getvalue()


def test_the_best_step_by_a_watcher_s_metric_is_kept_and_named(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    watcher = Scripted([0.1, 0.5, 0.5, 0.4, 0.3]).watcher
    _, shown = start(shard_set(), toy_model, watcher, out=out, keep_best="pass-rate")
    assert f"best by pass-rate: step 2, in {out}\n" in shown
    assert (out / "checkpoints" / "step-00000002" / "model.safetensors").is_file()
    lines = metrics_of(out / "metrics.jsonl")
    assert [line["eval_scores"]["pass-rate"] for line in lines] == [0.1, 0.5, 0.5, 0.4, 0.3]
    assert lines[1]["eval_answers"][0]["text"] == "Aye 0.5."


@pytest.mark.parametrize(
    ("metric", "scores", "steps"),
    [
        ("pass-rate", [0.5, 0.4, 0.3], 3),
        ("pass-rate", [0.5, 0.4, 0.6], 5),
        ("repetition", [0.1, 0.2, 0.3], 3),
        ("repetition", [0.5, 0.4, 0.3], 5),
        ("value", [0.5, float("nan")], 3),
    ],
)
def test_a_run_ends_early_once_its_metric_is_no_longer_better(
    *, metric: str, scores: list[float], steps: int, shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    options = {"stop_early": metric, "patience": 2, "epochs": 3}
    result, shown = start(
        shard_set(), toy_model, Scripted([*scores, *[scores[-1]] * 9], metric).watcher, out=tmp_path / "out", **options
    )
    assert result.num_steps == steps == len(metrics_of(tmp_path / "out" / "metrics.jsonl"))
    assert f"ended early after step {steps} of 15" in shown
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_resumed_run_remembers_what_was_best_and_for_how_long(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"out": tmp_path / "out", "stop_early": "pass-rate", "patience": 3, "epochs": 3}
    data, scripted = shard_set(), Scripted([0.5, 0.4, 0.4, 0.4])
    with monkeypatch.context() as patched:
        patched.setattr(run, "run_steps", stopping_after(2))
        with pytest.raises(StoppedError):
            start(data, toy_model, scripted.watcher, **options)
    with pytest.raises(TrainError, match="another stop_early") as refused:
        start(data, toy_model, scripted.watcher, resume=True, **{**options, "stop_early": None})
    assert refused.value.code == "resume-differs"
    result, _ = start(data, toy_model, scripted.watcher, resume=True, **options)
    assert result.num_steps == 4


def test_measuring_leaves_no_trace_in_training(shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path) -> None:
    data, scripted = shard_set(), Scripted(SCORES)
    (toy_model / "generation_config.json").write_text('{"eos_token_id": 2, "repetition_penalty": 5.0}')
    options = {"lora_rank": 4, "lora_dropout": 0.3, "lora_embeddings": True}
    start(data, toy_model, None, out=tmp_path / "plain", **options)
    start(data, toy_model, scripted.watcher, out=tmp_path / "watched", **options)
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == (
        tmp_path / "watched" / "model.safetensors"
    ).read_bytes()
    assert scripted.seen == [{"training": False, "attention": "sdpa", "penalty": None}] * len(SCORES)


def test_random_numbers_after_a_measurement_are_those_that_would_have_come(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[torch.Tensor] = []
    real = run.measure

    def noting(*arguments: Any, **keywords: Any) -> Any:
        states.append(torch.get_rng_state())
        found = real(*arguments, **keywords)
        states.append(torch.get_rng_state())
        return found

    monkeypatch.setattr(run, "measure", noting)
    start(shard_set(), toy_model, Scripted(SCORES).watcher, out=tmp_path / "out")
    assert len(states) == 2 * len(SCORES)
    assert all(torch.equal(before, after) for before, after in zip(states[::2], states[1::2], strict=True))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"keep_best": "pass-rate.no-suite"}, "--keep-best pass-rate.no-suite"),
        ({"stop_early": "nll"}, "--stop-early nll"),
    ],
)
def test_a_metric_that_nothing_measures_is_refused_before_anything_is_read(
    options: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=what) as refused:
        start(tmp_path / "nowhere", tmp_path, Scripted(SCORES).watcher, out=tmp_path / "out", **options)
    assert refused.value.code == "bad-option"
    assert "pass-rate" in refused.value.hint


def test_suites_without_somebody_who_asks_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without one"):
        start(tmp_path / "nowhere", tmp_path, None, out=tmp_path / "out", eval_suites=("tone",))


def test_the_page_is_there_while_the_run_goes_on_and_shows_answers_side_by_side(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    scripted, pages = Scripted(SCORES), list[str]()

    def ask(model: PreTrainedModel) -> Sample:
        page = tmp_path / "out.running" / "loss.html"
        pages.append(page.read_text(encoding="utf-8") if page.is_file() else "")
        found = scripted.ask(model)
        return Sample(found.scores, tuple(replace(answer, text=f"<b>{answer.text}") for answer in found.answers))

    start(shard_set(), toy_model, Watcher(frozenset({"pass-rate"}), ask), out=tmp_path / "out")
    assert pages[0] == ""
    assert "&lt;b&gt;Aye 0.1." in pages[1]
    assert "Aye 0.5." not in pages[1]
    last = (tmp_path / "out" / "loss.html").read_text(encoding="utf-8")
    assert all(f"step {step}</b>" in last for step in range(1, 6))
    assert "passed at 3 of 5 steps" in last
    assert "Share of cases passed" in last
    assert "<script" not in last
