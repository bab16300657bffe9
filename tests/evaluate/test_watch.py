"""`sftprep train --eval`: a model in training answers as the finished one does, and is trained as if nobody asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.config.evaluate import EvaluateConfig
from sftprep.config.pack import PackConfig
from sftprep.config.train import TrainConfig
from sftprep.errors import StoppedError, UsageError
from sftprep.evaluate.run import evaluate
from sftprep.evaluate.watch import watcher
from sftprep.prepare.pack import pack
from sftprep.train import run
from sftprep.train.run import train
from tests.train.runs import metrics_of, stopping_after

WriteSuite = Callable[..., str]
QUESTIONS = ["Is the pier open?", "When does the last boat leave for Skarv on Sunday?", "Who lights the lamp?"]


def cases(count: int = 3) -> list[dict[str, Any]]:
    asked = QUESTIONS[:count]
    return [
        {
            "id": text[:9],
            "tags": ["harbour"],
            "messages": [{"role": "user", "content": text}],
            "scorers": [{"kind": "stops"}],
        }
        for text in asked
    ]


@pytest.fixture(scope="session")
def packed(samples: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("watched") / "set"
    files = (samples / "good" / "openai.jsonl",)
    pack(PackConfig(files=files, model=str(tiny_model), out=out, max_length=512))
    return out


def options(packed: Path, model: Path, out: Path, suite: str | None) -> list[str]:
    command = ["train", str(packed), "--model", str(model), "--out", str(out), "--max-steps", "4", "--lr", "3e-3"]
    own = ["--epochs", "4", "--grad-accum", "2", "--device", "cpu", "--threads", "1"]
    return [*command, *own, *(["--eval", suite, "--eval-every", "2"] if suite else [])]


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def test_answers_in_training_are_those_of_the_finished_model_and_change_nothing_of_it(
    packed: Path, tiny_model: Path, write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite, out = write_suite(cases()), tmp_path / "out"
    done = CliRunner().invoke(app, options(packed, tiny_model, out, suite))
    assert done.exit_code == 0, done.output
    lines = metrics_of(out / "metrics.jsonl")
    assert [line["eval_scores"] is not None for line in lines] == [False, True, False, True]
    report = evaluate(EvaluateConfig(model=str(out), suite=(suite,), threads=1, device="cpu"))
    shown = lines[-1]["eval_answers"]
    assert [answer["text"] for answer in shown] == [case.answer.text for case in report.cases]
    assert [answer["passed"] for answer in shown] == [case.answer.passed for case in report.cases]
    assert lines[-1]["eval_scores"]["stops"] == lines[-1]["eval_scores"]["stops.harbour"] == report.suites[0].stops
    assert [answer["text"] for answer in lines[1]["eval_answers"]] != [answer["text"] for answer in shown]
    assert "Answers by step" in (out / "loss.html").read_text(encoding="utf-8")
    CliRunner().invoke(app, options(packed, tiny_model, tmp_path / "plain", None))
    assert weights(out) == weights(tmp_path / "plain")


def test_a_watched_run_that_was_stopped_goes_on_to_the_same_bytes_and_answers(
    packed: Path, tiny_model: Path, write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"model": str(tiny_model), "max_steps": 4, "epochs": 4, "grad_accum": 2, "threads": 1}
    settings |= {"eval_suites": (write_suite(cases()),), "eval_every": 1, "keep_best": "value", "device": "cpu"}

    def go(name: str, *, resume: bool = False) -> None:
        config = TrainConfig(data=packed, out=tmp_path / name, resume=resume, **settings)
        train(config, watcher=watcher(config))

    go("whole")
    with monkeypatch.context() as patched:
        patched.setattr(run, "run_steps", stopping_after(2))
        with pytest.raises(StoppedError):
            go("parts")
    go("parts", resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    whole, parts = (metrics_of(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    for line in (*whole, *parts):
        for name in ("seconds", "mfu", "peak_bytes"):
            del line[name]
    assert parts == whole


@pytest.mark.slow
def test_processes_that_share_a_model_answer_as_one_does(
    packed: Path, tiny_model: Path, write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite = write_suite([*cases(), *({**case, "id": f"again-{case['id']}"} for case in cases())])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    for name, processes in (("one", 1), ("two", 2)):
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
        command = [*(launch if processes > 1 else []), "sftprep", *options(packed, tiny_model, tmp_path / name, suite)]
        settings = ["--stop-early", "value", "--patience", "1", "--keep-best", "value"]
        done = subprocess.run(
            [sys.executable, "-m", *command, *settings], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (metrics_of(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["eval_answers"] for line in two] == [line["eval_answers"] for line in one]
    assert two[-1]["eval_answers"] is not None
    for name in ("one", "two"):
        kept = json.loads((tmp_path / name / "train.json").read_bytes())["model_step"]
        assert kept < len(one), "the last step was the best: nothing is seen of it"
        assert weights(tmp_path / name) == weights(tmp_path / name / "checkpoints" / f"step-{kept:08d}")


def test_the_sample_is_drawn_by_the_seed_from_every_suite(
    packed: Path, tiny_model: Path, write_suite: WriteSuite
) -> None:
    many = [{**case, "id": f"{number}-{case['id']}"} for number in range(9) for case in cases(1)]
    suites = (write_suite(many), write_suite(cases(2), name="pier"))

    def drawn(seed: int) -> list[str]:
        config = TrainConfig(data=packed, model="m", out=Path("o"), eval_suites=suites, eval_cases=3, seed=seed)
        asked = watcher(config)
        assert {"pass-rate", "value.pier", "repetition.harbour"} <= asked.metrics
        return [answer.case for answer in asked.ask(network(tiny_model)).answers]

    first = drawn(0)
    assert len(first) == 5
    assert first == drawn(0) != drawn(1)
    assert [case.partition("/")[0] for case in first] == ["harbour"] * 3 + ["pier"] * 2


def network(model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model).eval()


def test_a_suite_that_cannot_be_used_ends_the_call_before_the_first_step(
    packed: Path, tiny_model: Path, write_suite: WriteSuite, tmp_path: Path
) -> None:
    config = TrainConfig(data=packed, model=str(tiny_model), out=tmp_path / "out", eval_suites=("no-such",))
    with pytest.raises(UsageError, match="no such file"):
        watcher(config)
    twice = config.model_copy(update={"eval_suites": (write_suite(cases()),) * 2})
    with pytest.raises(UsageError, match="twice"):
        watcher(twice)
    failed = CliRunner().invoke(app, options(packed, tiny_model, tmp_path / "out", "no-such"))
    assert getattr(failed.exception, "code", "") == "missing-file"
    assert not list(tmp_path.glob("out*"))


def test_what_a_model_s_files_say_of_penalties_does_not_reach_its_answers(
    tiny_model: Path, write_suite: WriteSuite, tmp_path: Path
) -> None:
    strict = tmp_path / "strict"
    strict.mkdir()
    for path in tiny_model.iterdir():
        (strict / path.name).write_bytes(path.read_bytes())
    settings = json.loads((strict / "generation_config.json").read_bytes())
    settings |= {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_new_tokens": 6}
    (strict / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    suite = write_suite(cases(), max_new_tokens=24)
    plain, other = (
        evaluate(EvaluateConfig(model=str(model), suite=(suite,), threads=1)).cases for model in (tiny_model, strict)
    )
    assert [case.answer.text for case in other] == [case.answer.text for case in plain]
