"""The tour runs from end to end through the public calls, and ends with where to look."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sftprep.config.demo import DemoConfig
from sftprep.demo import run_demo
from sftprep.errors import OutputError


def tour(out: Path, *, steps: int) -> str:
    console = Console(file=StringIO(), width=120)
    result = run_demo(DemoConfig(out=out, steps=steps), console=console)
    assert result.audit_page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert result.loss_curve.is_file()
    assert len(result.replies) == 3
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def test_the_four_commands_run_in_a_row_and_are_shown_as_one_types_them(tmp_path: Path) -> None:
    told = tour(tmp_path / "demo", steps=6)
    commands = [line.split()[2] for line in told.splitlines() if line.startswith("$ sftprep ")]
    assert commands == ["validate", "pack", "audit", "train"]
    assert "every row keeps what the set promises" in told
    saved = json.loads((tmp_path / "demo" / "trained" / "generation_config.json").read_text())
    packed = json.loads((tmp_path / "demo" / "shards" / "manifest.json").read_text())
    assert saved["eos_token_id"] in (packed["model"]["stop_ids"], *packed["model"]["stop_ids"]), "B5"


def test_a_full_directory_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError) as caught:
        run_demo(DemoConfig(out=tmp_path))
    assert caught.value.code == "output-not-empty"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_trained_model_answers_and_stops_by_itself(tmp_path: Path) -> None:
    told = tour(tmp_path / "demo", steps=DemoConfig().steps)
    assert told.count("(stopped by itself)") >= 2, told[-1500:]
