"""A file whose name is not UTF-8 is a file like any other: each command reads it and writes what can be read (M1)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.config.places import shown
from sftprep.shards.read import open_shard_set

FOLDER = b"\xff"
NAME = b"\xff.jsonl"
SHOWN = "\\udcff.jsonl"


@pytest.fixture
def chats(tmp_path: Path, samples: Path) -> Path:
    path = tmp_path / os.fsdecode(NAME)
    shutil.copyfile(samples / "good" / "openai.jsonl", path)
    return path


def run(*argv: object) -> str:
    done = CliRunner().invoke(app, [str(arg) for arg in argv])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def read(path: Path) -> Any:
    """As a reader does that takes nothing but UTF-8."""
    return json.loads(path.read_bytes().decode("utf-8"))


def test_a_name_that_is_no_text_is_validated_and_split(tmp_path: Path, chats: Path) -> None:
    run("validate", chats, "--json", tmp_path / "v", "--html", tmp_path / "h", "--quality-json", tmp_path / "q")
    run("split", chats, "--out", tmp_path / "split")
    for files in (
        [file["file"] for file in read(tmp_path / "v")["files"]],
        read(tmp_path / "q")["files"],
        read(tmp_path / "split" / "split.json")["files"],
    ):
        assert [os.fsencode(Path(file).name) for file in files] == [NAME]
    assert SHOWN in (tmp_path / "h").read_text(encoding="utf-8")


def test_a_name_that_is_no_text_is_packed_and_audited(tmp_path: Path, chats: Path, samples: Path) -> None:
    with chats.open("ab") as file:
        file.write(b'{"messages": [{"role": "user", "content": "Tide?"}]}\n')
    out = tmp_path / "packed"
    run("pack", chats, "--model", samples / "model", "--out", out, "--max-length", 512, "--max-drop", 1)
    run("audit", out, "--json", tmp_path / "a", "--html", tmp_path / "h", "--prove")
    shards = open_shard_set(out)
    assert [Path(source.path).name for source in shards.manifest.sources] == [SHOWN]
    reports = (read(out / "report.json")["audit"], read(tmp_path / "a"))
    shown = {Path(report["sources"][0]["name"]).name for report in reports}
    left_out = [json.loads(line)["file"] for line in (out / "left_out.jsonl").read_text("utf-8").splitlines()]
    assert shown == {Path(file).name for file in left_out} == {SHOWN}
    assert SHOWN in (tmp_path / "h").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory whose name is no text."""
    path = tmp_path / os.fsdecode(FOLDER)
    path.mkdir()
    return path


def test_a_set_in_a_directory_whose_name_is_no_text_is_audited_and_compared(folder: Path, samples: Path) -> None:
    out = folder / "set"
    run("pack", samples / "good" / "openai.jsonl", "--model", samples / "model", "--out", out, "--max-length", 512)
    found = run("audit", out, "--json", folder / "a", "--html", folder / "h", "--prove", "--where", "length > 9")
    assert "<|im_end|>" in found
    assert read(folder / "a")["directory"] == shown(out)
    assert f"{shown(folder)}/set" in (folder / "h").read_text(encoding="utf-8")
    assert "identical" in run("audit", out, "--diff", out, "--json", folder / "d")
    assert read(folder / "d")["same"] is True


@pytest.mark.slow
def test_a_set_in_a_directory_whose_name_is_no_text_is_trained_and_asked(folder: Path, samples: Path) -> None:
    out, model = folder / "set", samples / "model"
    run("pack", samples / "good" / "openai.jsonl", "--model", model, "--out", out, "--max-length", 512)
    asked = ["--eval", "tone", "--eval-cases", 1, "--max-steps", 1, "--threads", 1]
    run("train", out, "--model", model, "--init", "random", "--out", folder / "tuned", *asked)
    step = json.loads((folder / "tuned" / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert "pass-rate" in json.dumps(step)


@pytest.mark.parametrize("command", ["validate", "pack", "train", "evaluate", "demo"])
def test_a_model_whose_path_is_no_text_is_refused_by_name(folder: Path, samples: Path, command: str) -> None:
    chats, model = samples / "good" / "openai.jsonl", folder / "model"
    shutil.copytree(samples / "model", model)
    words = {
        "validate": [chats, "--model", model],
        "pack": [chats, "--model", model, "--out", folder / "out", "--max-length", 512],
        "train": [folder, "--model", model, "--out", folder / "out"],
        "evaluate": ["--model", model, "--suite", "tone"],
        "demo": ["--out", folder / "out"],
    }[command]
    found: Any = CliRunner().invoke(app, [command, *map(str, words)]).exception
    assert (getattr(found, "code", found), found.exit_code) == ("bad-option", 2)
    assert "is not UTF-8" in str(found)
    assert shown(folder) in str(found)
    assert [path.name for path in folder.iterdir()] == ["model"]
