"""A real chat model on real rows: a good fine-tune passes every gate, and each of three damaged ones fails its own.

The task is brevity: real questions whose answers are a few words. A model of 135 million parameters talks on; eight
steps teach it to answer and to end, and say nothing of whether what it answers is right.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
import zstandard
from rich.console import Console
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.config.pack import PackConfig
from sftprep.config.train import TrainConfig
from sftprep.prepare.pack import pack
from sftprep.train.model import locate, pretrained
from sftprep.train.run import train
from tests.evaluate.damage import Row, remasked, with_prompts, without_stops

NUM_TRAINED = NUM_ASKED = 32
MAX_WORDS = 8

pytestmark = [pytest.mark.slow, pytest.mark.corpus, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chat model as a directory of safetensors with its own tokenizer and template."""
    package = os.environ.get("SFTPREP_SMOLLM2")
    if package is None or not Path(package).is_dir():
        pytest.skip("SFTPREP_SMOLLM2 names no directory with the weights")
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("base") / "model"
    pretrained(locate(package), dtype=torch.float32).save_pretrained(place)
    for path in (corpus / "models" / "smollm2-135m-instruct").iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


@pytest.fixture(scope="module")
def rows(corpus: Path) -> list[Row]:
    """Real questions with real answers of a few words, in an order drawn once."""
    with (corpus / "chat" / "llamafactory_alpaca_en_demo.jsonl.zst").open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8", newline="\n")
        found = [json.loads(line)["messages"] for line in lines]
    short = [
        talk for talk in found if len(talk) == 2 and len(talk[0]["content"]) < 130 and len(talk[1]["content"]) < 45
    ]
    random.Random(1).shuffle(short)
    return [{"messages": talk} for talk in short[: NUM_TRAINED + NUM_ASKED]]


@pytest.fixture(scope="module")
def suite(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("suite")
    cases = [
        {
            "id": f"q{number}",
            "tags": ["plain"],
            "messages": row["messages"][:-1],
            "reference": row["messages"][-1]["content"],
        }
        for number, row in enumerate(rows[NUM_TRAINED:])
    ]
    (place / "brief.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    brief = {"kind": "instructions", "checks": [{"check": "max-words", "value": MAX_WORDS}]}
    head = {"name": "brief", "description": "A few words, and an end.", "cases": "brief.jsonl", "max_new_tokens": 32}
    (place / "brief.yaml").write_text(yaml.safe_dump(head | {"scorers": [{"kind": "stops"}, brief]}), encoding="utf-8")
    return str(place / "brief.yaml")


@pytest.fixture(scope="module")
def packed(rows: list[Row], base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("packed")
    file = place / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:NUM_TRAINED]), encoding="utf-8")
    pack(PackConfig(files=(file,), model=str(base), out=place / "set", max_length=512))
    return place / "set"


def tuned(packed: Path, base: Path, out: Path, **options: Any) -> Path:
    settings: dict[str, Any] = {"epochs": 2, "grad_accum": 1, "lr": 2e-4, "device": "cpu", "threads": 1, **options}
    train(TrainConfig(data=packed, model=str(base), out=out, **settings), console=Console(file=io.StringIO()))
    return out


@pytest.fixture(scope="module")
def good(packed: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned(packed, base, tmp_path_factory.mktemp("good") / "model")


Judge = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def judge(suite: str, tmp_path: Path) -> Judge:
    """Exit code and report of the command."""

    def run(model: Path, *options: str | Path) -> tuple[int, dict[str, Any]]:
        place = tmp_path / "report.json"
        fixed = ["--suite", suite, "--batch-size", "16", "--threads", "1", "--device", "cpu", "--json", str(place)]
        found = CliRunner().invoke(app, ["evaluate", "--model", str(model), *fixed, *map(str, options)])
        assert place.is_file(), found.output
        return found.exit_code, json.loads(place.read_bytes())

    return run


def failed(report: dict[str, Any]) -> dict[str, str]:
    """The gates that failed, and what each says."""
    return {gate["gate"]: gate["what"] for gate in report["gates"] if not gate["passed"]}


def test_a_fine_tune_is_better_on_held_out_questions_and_passes_every_gate(
    judge: Judge, base: Path, packed: Path, good: Path
) -> None:
    gates = ("--fail-on", "improvement", "--fail-on", "stops=0.8", "--fail-on", "pass-rate=0.7")
    code, report = judge(good, "--baseline", base, "--trained-on", packed, *gates)
    (group,) = report["suites"]
    found = group["against_baseline"]
    print(f"passed {group['pass_rate']:.0%}, before {found['pass_rate']:.0%}; stops {group['stops']:.0%}; {found}")
    assert (code, failed(report)) == (0, {})
    assert {gate["gate"] for gate in report["gates"]} >= {"parity", "provenance", "contamination", "regression"}
    assert found["low"] > 0
    assert found["confidence"] == 0.95
    assert found["pass_rate"] < 0.7, "the base model would have passed the gate too"


def test_a_stop_token_that_is_not_trained_is_seen_in_answers_that_do_not_end(
    judge: Judge, base: Path, packed: Path, tmp_path: Path
) -> None:
    damaged = tuned(remasked(packed, tmp_path / "set", without_stops), base, tmp_path / "model")
    code, report = judge(damaged, "--fail-on", "stops=0.8")
    print(f"stops {report['suites'][0]['stops']:.0%}")
    assert (code, set(failed(report))) == (1, {"stops=0.8"})
    assert report["suites"][0]["stops"] < 0.5


def test_another_template_than_the_one_trained_with_fails_parity(
    judge: Judge, packed: Path, good: Path, tmp_path: Path
) -> None:
    served = Path(shutil.copytree(good, tmp_path / "served", copy_function=os.link))
    template = served / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    template.unlink()
    template.write_text(text.replace("You are a helpful AI assistant", "You are an assistant"), encoding="utf-8")
    assert template.read_text(encoding="utf-8") != text
    code, report = judge(served, "--trained-on", packed, "--max-new-tokens", "1")
    assert (code, set(failed(report))) == (1, {"parity"})
    assert "chat template" in failed(report)["parity"]


def test_a_model_that_was_trained_on_prompts_fails_by_the_audit_of_its_set(
    judge: Judge, base: Path, packed: Path, tmp_path: Path
) -> None:
    damaged_set = remasked(packed, tmp_path / "set", with_prompts)
    damaged = tuned(damaged_set, base, tmp_path / "model", max_steps=2)
    code, report = judge(damaged, "--trained-on", damaged_set, "--max-new-tokens", "1")
    assert (code, set(failed(report))) == (1, {"provenance"})
    assert "other-role-trained" in failed(report)["provenance"]
