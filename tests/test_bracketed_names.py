"""A name with brackets is a name, to every command: what a terminal library would take for its markup (M1)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sftprep.cli.app import app


def run(*argv: object) -> str:
    done = CliRunner().invoke(app, [str(arg) for arg in argv])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_names_with_brackets_are_shown_as_they_are(
    tmp_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("x[").mkdir()
    files = [Path("x[/y].jsonl"), Path("w[red].jsonl")]
    for path, sample in zip(files, ("openai", "tools"), strict=True):
        shutil.copyfile(samples / "good" / f"{sample}.jsonl", path)
    model = samples / "model"
    assert "x[/y].jsonl:43" in run("validate", *files)
    assert "w[red].jsonl" in run("pack", *files, "--model", model, "--max-length", 512, "--out", "o[red]")
    assert "o[red]: 55 documents" in run("audit", "o[red]")
    short = ("--init", "random", "--max-steps", 1, "--threads", 1)
    assert "the model is in t[/x]" in run("train", "o[red]", "--model", model, "--out", "t[/x]", *short)
    shown = run("evaluate", "--model", "t[/x]", "--held-out", "o[red]", "--device", "cpu")
    assert "t[/x] reads o[red]" in shown
    assert all(f"source:{path}" in "".join(shown.split()) for path in files)
