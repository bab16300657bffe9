"""A real fine-tune gets better on held-out real questions, beyond noise, and every gate holds.

The task is the form of an answer, which a model of 135 million parameters can learn from a few rows: working, then
the result after '####'. What the sums come to is not asked of it.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
import zstandard
from rich.console import Console
from transformers import AutoModelForCausalLM

from sftprep.config.evaluate import EvaluateConfig
from sftprep.config.pack import PackConfig
from sftprep.config.train import TrainConfig
from sftprep.evaluate.run import evaluate
from sftprep.prepare.pack import pack
from sftprep.train.run import train

NUM_TRAINED, NUM_ASKED = 32, 16
Row = dict[str, Any]


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chat model as a directory of safetensors with its own tokenizer and template."""
    package = os.environ.get("SFTPREP_SMOLLM2")
    found = next(Path(package).glob("*.gguf"), None) if package else None
    if package is None or (found is None and not (Path(package) / "model.safetensors").is_file()):
        pytest.skip("SFTPREP_SMOLLM2 names no directory with the weights")
    if found is None:
        return Path(package)
    place = tmp_path_factory.mktemp("base") / "model"
    AutoModelForCausalLM.from_pretrained(package, gguf_file=found.name).save_pretrained(place)
    for path in (corpus / "models" / "smollm2-135m-instruct").iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


@pytest.fixture(scope="module")
def rows(corpus: Path) -> list[Row]:
    with (corpus / "chat" / "gsm8k_train.jsonl.zst").open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8", newline="\n")
        found = [json.loads(line) for line in lines]
    short = [row for row in found if sum(len(m["content"]) for m in row["messages"]) < 220]
    return short[: NUM_TRAINED + NUM_ASKED]


@pytest.fixture(scope="module")
def suite(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("suite")
    cases = [
        {"id": f"q{number}", "messages": row["messages"][:-1], "tags": ["form"]}
        for number, row in enumerate(rows[NUM_TRAINED:])
    ]
    (place / "form.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    scorers = [{"kind": "regex", "pattern": r"^#### -?[\d,.]+\s*\Z"}]
    head = {"name": "form", "description": "Ends in '#### result'.", "cases": "form.jsonl", "scorers": scorers}
    (place / "form.yaml").write_text(yaml.safe_dump(head | {"max_new_tokens": 64}), encoding="utf-8")
    return str(place / "form.yaml")


@pytest.fixture(scope="module")
def packed(rows: list[Row], base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("packed")
    file = place / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:NUM_TRAINED]), encoding="utf-8")
    pack(PackConfig(files=(file,), model=str(base), out=place / "set", max_length=512))
    return place / "set"


def tuned(packed: Path, base: Path, out: Path) -> Path:
    settings: dict[str, Any] = {"epochs": 3, "grad_accum": 1, "lr": 2e-4, "device": "cpu", "threads": 1}
    train(TrainConfig(data=packed, model=str(base), out=out, **settings), console=Console(file=io.StringIO()))
    return out


@pytest.fixture(scope="module")
def good(packed: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned(packed, base, tmp_path_factory.mktemp("good") / "model")


def failed(report: Any) -> set[str]:
    return {gate.gate for gate in report.gates if not gate.passed}


@pytest.mark.slow
@pytest.mark.corpus
@pytest.mark.timeout(1800)
def test_a_fine_tune_gets_better_on_held_out_questions(suite: str, base: Path, packed: Path, good: Path) -> None:
    report = evaluate(
        EvaluateConfig(
            model=str(good), baseline=str(base), suite=(suite,), trained_on=packed, fail_on=("stops=0.8",), threads=1
        )
    )
    found = report.suites[0].against_baseline
    assert found is not None
    print(f"passed {report.suites[0].num_passed} of {NUM_ASKED}, before {found.pass_rate:.0%}; {found}")
    assert found.low > 0
    assert found.verdict == "better"
    assert report.passed, failed(report)
