"""`--harness`: a task of our own run by lm-evaluation-harness, into the report, its JSON, its page and the gates."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.config.evaluate import EvaluateConfig
from sftprep.errors import DataError, UsageError
from sftprep.evaluate import harness
from sftprep.evaluate.run import evaluate

pytest.importorskip("lm_eval", reason="the extra harness is not installed")

CHOICES = ["A", "B", "C"]
"""A token each: of longer ones the shortest would always be the most probable."""
NUM = 24
WriteTask = Callable[..., str]


@pytest.fixture
def write_task(tmp_path: Path) -> WriteTask:
    """Writes a multiple-choice task of 24 questions; returns its YAML file."""

    def write(labels: list[int], name: str = "pier", **settings: Any) -> str:
        rows = [{"question": f"Is pier {number} open?", "label": label} for number, label in enumerate(labels)]
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": CHOICES,
            "doc_to_target": "{{label}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 3},
        }
        place = tmp_path / f"{name}.yaml"
        place.write_text(yaml.safe_dump(task | settings), encoding="utf-8")
        return str(place)

    return write


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def chosen(model: Path, *, plain: bool) -> list[int]:
    """The choice that the model finds most probable for each question, computed here."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = []
    for number in range(NUM):
        question = f"Is pier {number} open?"
        talk = [{"role": "user", "content": question}]
        text = question if plain else tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        found.append(max(range(len(CHOICES)), key=lambda i, text=text: _score(network, tokenizer, text, i, plain)))
    return found


def _score(network: Any, tokenizer: Any, text: str, choice: int, plain: bool) -> float:
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    ids = tokenizer(text + " " * plain + CHOICES[choice], add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = network(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[at - 1, ids[at]]) for at in range(len(prompt), len(ids)))


@pytest.mark.parametrize("plain", [False, True])
def test_a_task_scores_what_the_model_finds_most_probable_behind_its_own_template(
    tiny_model: Path, write_task: WriteTask, *, plain: bool
) -> None:
    own = chosen(tiny_model, plain=plain)
    labels = [choice if number % 4 else (choice + 1) % 3 for number, choice in enumerate(own)]
    config = EvaluateConfig(model=str(tiny_model), harness=(write_task(labels),), harness_plain=plain, threads=1)
    (score,) = evaluate(config).harness
    assert (score.task, score.metric, score.num_documents, score.version) == ("pier", "acc", NUM, "3")
    assert score.value == pytest.approx(0.75)
    assert score.chat_template is not plain


@pytest.fixture
def other_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The same files, and logits of the opposite sign."""
    place = tmp_path / "other"
    place.mkdir()
    for path in tiny_model.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    network = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        network.model.norm.weight.mul_(-1)
    network.save_pretrained(place)
    return place


def test_tasks_reach_the_report_the_page_and_the_gates_by_document(
    tiny_model: Path, other_model: Path, write_task: WriteTask, tmp_path: Path
) -> None:
    task = write_task(chosen(tiny_model, plain=False))
    base = ["evaluate", "--harness", task, "--threads", "1", "--json", str(tmp_path / "r.json")]
    good = CliRunner().invoke(
        app, [*base, "--model", str(tiny_model), "--baseline", str(other_model), "--fail-on", "harness.pier=1"]
    )
    assert good.exit_code == 0, good.output
    score = json.loads((tmp_path / "r.json").read_bytes())["harness"][0]
    assert (score["value"], score["against_baseline"]["verdict"]) == (1.0, "better")
    assert score["against_baseline"]["gained"] == NUM - round(score["baseline"] * NUM)
    page = tmp_path / "page.html"
    swapped = [*base, "--model", str(other_model), "--baseline", str(tiny_model), "--html", str(page)]
    bad = CliRunner().invoke(app, [*swapped, "--fail-on", "harness.pier/acc=0.99"])
    assert bad.exit_code == 1
    assert "FAILED  harness-regression" in bad.output
    assert "FAILED  harness.pier/acc=0.99" in bad.output
    assert "Tasks of lm-evaluation-harness" in page.read_text(encoding="utf-8")
    unknown = CliRunner().invoke(app, [*swapped, "--fail-on", "harness.mole=0.5"])
    assert getattr(unknown.exception, "exit_code", 0) == 2
    assert "pier/acc" in str(unknown.exception)


def test_the_limit_takes_the_first_documents(tiny_model: Path, write_task: WriteTask) -> None:
    own = chosen(tiny_model, plain=False)
    labels = [choice if number < 8 else (choice + 1) % 3 for number, choice in enumerate(own)]
    config = EvaluateConfig(model=str(tiny_model), harness=(write_task(labels),), harness_limit=8, threads=1)
    (score,) = evaluate(config).harness
    assert (score.value, score.num_documents) == (1.0, 8)


def test_a_tokenizer_that_transformers_reads_otherwise_is_refused_before_a_task_runs(
    tiny_model: Path, write_task: WriteTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Otherwise:
        """What transformers would make of files that do not agree."""

        def __init__(self, tokenizer: Any) -> None:
            self.tokenizer = tokenizer

        def __call__(self, text: str, **options: Any) -> Any:
            return self.tokenizer(text.replace("玻", "璃"), **options)

    other = Otherwise(AutoTokenizer.from_pretrained(tiny_model))
    monkeypatch.setattr(harness.AutoTokenizer, "from_pretrained", lambda *_, **__: other)
    with pytest.raises(DataError) as caught:
        evaluate(EvaluateConfig(model=str(tiny_model), harness=(write_task([0] * NUM),), threads=1))
    assert (caught.value.code, caught.value.place) == ("prompt-differs", str(tiny_model))
    assert "other ids for the text '" in str(caught.value)


def test_what_cannot_be_run_is_named(
    tiny_model: Path, write_task: WriteTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no task called") as unknown:
        evaluate(EvaluateConfig(model="nowhere", harness=("no-such-task",)))
    assert unknown.value.code == "no-such-task"
    gone = write_task([0] * NUM, name="gone")
    (tmp_path / "gone.jsonl").unlink()
    with pytest.raises(DataError) as failed:
        evaluate(EvaluateConfig(model=str(tiny_model), harness=(gone,), threads=1))
    assert failed.value.code == "harness-failed"
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else real(name))
    with pytest.raises(UsageError, match="lm-eval") as missing:
        evaluate(EvaluateConfig(model="nowhere", harness=(gone,)))
    assert (missing.value.code, missing.value.exit_code) == ("missing-extra", 2)
    assert "sftprep[harness]" in missing.value.hint
