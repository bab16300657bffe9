"""What people expect of any trainer: the length of a run, its loss by name, no skipping, one template call for all."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from rich.console import Console
from transformers import AutoModelForCausalLM

from sftprep.cli.app import app
from sftprep.config.pack import PackConfig
from sftprep.config.train import TrainConfig
from sftprep.errors import ShardError, StoppedError
from sftprep.prepare.pack import pack
from sftprep.shards.read import open_shard_set
from sftprep.train import run
from sftprep.train.rows import RowReader
from sftprep.train.run import train
from sftprep.train.stream import Schedule
from tests.train.runs import metrics_of, stopping_after

ShardSetFactory = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


def _run(data: Path, model: Path, **options: Any) -> str:
    shown = io.StringIO()
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1} | options
    train(TrainConfig(data=data, model=str(model), **settings), console=Console(file=shown, width=200))
    return shown.getvalue()


@pytest.mark.parametrize(
    ("loss", "unit"), [("token", "trained tokens"), ("sample", "documents"), ("turn", "trained messages")]
)
def test_the_run_says_what_its_loss_is_a_mean_over_i5(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, *, loss: str, unit: str
) -> None:
    shown = _run(shard_set(), toy_model, out=tmp_path / "out", max_steps=1, loss=loss)
    assert f"loss: mean over {unit}\n" in shown
    assert json.loads((tmp_path / "out" / "train.json").read_text())["config"]["loss"] == loss


def test_the_length_of_a_run_and_its_learning_rates_follow_from_the_manifest_alone_j5_f8(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set(num_rows=11)
    counts = json.loads((data / "manifest.json").read_text())["counts"]
    epoch = math.ceil(counts["num_packs"] / 2)
    shown = _run(data, toy_model, out=tmp_path / "out", epochs=2, min_lr_ratio=0.25)
    assert f"{2 * epoch} steps of 2 rows ({epoch} an epoch)" in shown
    lines = metrics_of(tmp_path / "out" / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == pytest.approx([(n + 1) / epoch for n in range(2 * epoch)])
    assert lines[-1]["lr"] == pytest.approx(0.25 * 3e-3)
    assert all(line["lr"] > 1.01 * lines[-1]["lr"] for line in lines[:-1])


def test_a_resumed_run_reads_no_row_of_the_steps_before_it_j3(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shard_set(num_rows=40)
    with monkeypatch.context() as patched:
        patched.setattr(run, "run_steps", stopping_after(33))
        with pytest.raises(StoppedError):
            _run(data, toy_model, out=tmp_path / "out", epochs=2)
    read: list[int] = []
    real = RowReader.row

    def noting(reader: RowReader, index: int) -> Any:
        read.append(index)
        return real(reader, index)

    monkeypatch.setattr(RowReader, "row", noting)
    _run(data, toy_model, out=tmp_path / "out", epochs=2, resume=True)
    schedule = Schedule(num_rows=40, rows_per_step=2, seed=0)
    left = [int(number) for step in range(33, 40) for number in schedule.rows(step)]
    # What comes before them is the self-test's few rows, the first of the set.
    assert read[-len(left) :] == left
    assert read[: -len(left)] == sorted(set(read[: -len(left)]))
    assert len(read) <= len(left) + 8


def test_packed_and_unpacked_sets_of_the_same_rows_have_the_same_held_out_loss_i6(
    shard_set: ShardSetFactory, samples: Path, tmp_path: Path
) -> None:
    rows: dict[str, Any] = {"files": (samples / "good" / "openai.jsonl",), "model": str(samples / "model")}
    for name, packing in (("packed", True), ("loose", False)):
        pack(PackConfig(out=tmp_path / name, packing=packing, max_length=512, **rows))
    assert open_shard_set(tmp_path / "packed").num_rows < open_shard_set(tmp_path / "loose").num_rows
    trained = {**rows, "files": (samples / "good" / "tools.jsonl",)}
    pack(PackConfig(out=tmp_path / "trained", max_length=512, **trained))
    found = []
    for name, size in (("packed", 1), ("loose", 1), ("loose", 4)):
        out = tmp_path / f"{name}-{size}"
        options: dict[str, Any] = {"init": "random", "max_steps": 1, "lr": 1e-9, "batch_size": size}
        _run(tmp_path / "trained", samples / "model", out=out, eval_shards=tmp_path / name, **options)
        found.append(metrics_of(out / "metrics.jsonl")[0]["eval_nll"])
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)
    assert found[0] > 1


def test_a_set_that_holds_rows_which_are_trained_is_no_held_out_set(samples: Path, tmp_path: Path) -> None:
    # Another name, another set, and one file more: what is trained is known by its bytes.
    own = shutil.copy(samples / "good" / "openai.jsonl", tmp_path / "own.jsonl")
    files = {"data": (Path(own),), "held": (samples / "good" / "tools.jsonl", samples / "good" / "openai.jsonl")}
    for name, rows in files.items():
        pack(PackConfig(files=rows, model=str(samples / "model"), out=tmp_path / name, max_length=512))
    with pytest.raises(ShardError, match=r"openai\.jsonl") as raised:
        _run(tmp_path / "data", samples / "model", out=tmp_path / "out", init="random", eval_shards=tmp_path / "held")
    assert raised.value.code == "eval-trained"
    assert "tools.jsonl" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def sources() -> Iterator[str]:
    """The text of every module of the package."""
    return (path.read_text(encoding="utf-8") for path in sorted((ROOT / "sftprep").rglob("*.py")))


def test_the_form_of_what_a_template_gives_is_asked_for_and_never_the_version_s_own_choice_n3() -> None:
    calls = [
        node
        for text in sources()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr == "apply_chat_template"
    ]
    asked = [{keyword.arg for keyword in call.keywords} for call in calls]
    assert len(asked) >= 2
    assert [names for names in asked if "return_dict" not in names] == []


def test_a_step_s_loss_is_what_transformers_own_gives_for_its_documents_one_by_one_i3(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set(num_rows=2)
    _run(data, toy_model, out=tmp_path / "out", max_steps=1, lr=1e-9)
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    nats = tokens = 0.0
    for index in (0, 1):
        for document in RowReader(open_shard_set(data)).row(index).documents():
            ids = torch.from_numpy(document.ids.astype("int64"))[None]
            labels = torch.where(torch.from_numpy(document.trained.copy()), ids, -100)
            count = int(document.trained.sum())
            with torch.no_grad():
                nats += float(model(input_ids=ids, labels=labels).loss) * count
            tokens += count
    assert metrics_of(tmp_path / "out" / "metrics.jsonl")[0]["nll"] == pytest.approx(nats / tokens, rel=1e-6)


def test_the_readme_names_every_option_of_train_and_its_default() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Train\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`--[^|]*) \|", section, re.MULTILINE)
    told = {word.split()[0]: word.split()[1:] for cell in cells for word in re.findall(r"`([^`]+)`", cell)}
    command = typer.main.get_command(app).commands["train"]
    options = {parameter.opts[0]: parameter.default for parameter in command.params if parameter.opts[0] != "data"}
    assert set(told) == set(options) - {"--model", "--out"}
    for name, words in told.items():
        default = getattr(options[name], "value", options[name])
        wanted = [] if default is None or default is False else [default]
        assert [type(default)(word) for word in words] == wanted, name
