"""`sftprep train` as a command: options, exit codes, an interrupt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.cli.train import train
from sftprep.config.train import TrainConfig
from sftprep.reports.loss_curve import running_mean, write_loss_curve

RENAMED = {"eval_suites": "--eval", "compile_layers": "--compile"}


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "sftprep", "train", *map(str, arguments)]


def test_every_field_of_the_config_is_an_option_with_its_description_as_help() -> None:
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "400", "TERM": "dumb"}).stdout
    for name, field in TrainConfig.model_fields.items():
        assert name in train.__annotations__
        if name != "data":
            assert f"{RENAMED.get(name, '--' + name.replace('_', '-'))} " in shown
        assert (field.description or "").split(".")[0].replace("`", "")[:30] in shown.replace("`", "")


def test_a_wrong_value_is_a_usage_error(tmp_path: Path) -> None:
    done = subprocess.run(
        _command(tmp_path, "--model", "m", "--out", tmp_path / "o", "--lr", "-1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--lr" in done.stderr
    assert "bad-option" in done.stderr


def test_a_directory_without_a_manifest_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    done = subprocess.run(
        _command(tmp_path / "d", "--model", "m", "--out", tmp_path / "o"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no-manifest" in done.stderr


def test_an_interrupt_leaves_no_output_and_says_so(
    shard_set: Callable[..., Path], toy_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = _command(shard_set(), "--model", toy_model, "--out", out, "--epochs", "100000", "--threads", "1")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "out.running" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no step in time"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, shown = process.communicate()
    assert process.returncode == 130
    assert "interrupted" in shown
    assert not out.exists()
    assert not metrics.parent.exists()


def test_the_loss_page_stands_alone_and_leaves_skipped_steps_out(tmp_path: Path) -> None:
    record = {"lr": 0.1, "grad_norm": 1.0, "num_tokens": 10, "num_trained": 4, "seconds": 1.0, "skipped": False}
    lines = [record | {"step": step, "nll": 3.0 - step} for step in (1, 2)]
    lines.append(record | {"step": 3, "nll": 0.0, "skipped": True})
    metrics, page = tmp_path / "metrics.jsonl", tmp_path / "loss.html"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_loss_curve(metrics, page, title="a <run>")
    text = page.read_text()
    assert "a &lt;run&gt;" in text
    assert "2 steps, 20 tokens, 8 of them trained" in text
    assert "from 2.0000 to 1.0000" in text
    assert "http" not in text
    assert "<script" not in text


def test_the_running_mean_of_a_constant_is_the_constant() -> None:
    assert running_mean([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])


def test_the_directory_where_one_stands_is_an_output_and_the_root_of_a_file_system_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert TrainConfig(data="d", model="m", out=".").out == tmp_path
    shown = CliRunner().invoke(app, ["train", "d", "--model", "m", "--out", "/"])
    assert getattr(shown.exception, "code", "") == "bad-option"
    assert "--out" in str(shown.exception)


@pytest.mark.parametrize("option", ["--epochs", "--lr", "--warmup", "--weight-decay", "--lora-alpha"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_numbers_without_an_end_are_usage_errors(option: str, value: str) -> None:
    shown = CliRunner().invoke(app, ["train", "d", "--model", "m", "--out", "o", option, value])
    assert getattr(shown.exception, "code", "") == "bad-option"
    assert option in str(shown.exception)
