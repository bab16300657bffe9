"""README's excerpt of an audit is what the command prints, and the counts beside it are those of the same set."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sftprep.config.pack import PackConfig
from sftprep.prepare.pack import pack

README = (Path(__file__).resolve().parent.parent.parent / "README.md").read_text(encoding="utf-8")
WIDTH = 118
"""At which the excerpts are cut."""


def excerpt(opening: str) -> list[str]:
    """The lines of the text block that begins so, but for the mark that it is cut short."""
    blocks = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    (found,) = (block for block in blocks if block.startswith(opening))
    assert found.endswith("\n…\n")
    return list(found.splitlines()[:-1])


@pytest.fixture(scope="module")
def place(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which README's tour was begun."""
    folder = tmp_path_factory.mktemp("tour")
    (folder / "data_samples").symlink_to(samples)
    before = Path.cwd()
    os.chdir(folder)
    try:
        files = tuple(sorted(Path("data_samples/good").glob("*.jsonl")))
        pack(PackConfig(files=files, model="data_samples/model", out=Path("packed"), max_length=512))
    finally:
        os.chdir(before)
    return folder


def audited(place: Path, *words: str) -> str:
    command = [sys.executable, "-m", "sftprep", "audit", "packed", *words]
    environment = {"COLUMNS": "90", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, cwd=place, env=environment)
    return done.stdout


def test_the_excerpt_in_readme_is_what_the_command_prints(place: Path) -> None:
    expected = excerpt("packed: ")
    printed = [line[:WIDTH].rstrip() for line in audited(place, "--sample", "2").splitlines()]
    assert printed[: len(expected)] == expected
    assert len(expected) > 30
    assert any("⟧⟦<|im_end|>⟧" in line for line in expected), "a trained turn and its stop token are shown"


def test_readmes_counts_before_training_are_those_of_the_audit(place: Path) -> None:
    audited(place, "--sample", "0", "--json", "report.json")
    report = json.loads((place / "report.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^ *([0-9,]+) +[0-9.]+% +([0-9,]+)  (\w+)$", "\n".join(excerpt("self-test: ")), re.MULTILINE)
    told = {kind: (int(tokens.replace(",", "")), int(trained.replace(",", ""))) for tokens, trained, kind in rows}
    assert told == {kind["kind"]: (kind["num_tokens"], kind["num_trained"]) for kind in report["kinds"]}
