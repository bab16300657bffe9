"""What a terminal shows of names and texts is what they are."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sftprep
from sftprep.reports.console import terminal_console

ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.mark.parametrize("markup", [False, True])
@pytest.mark.parametrize("stderr", [False, True])
def test_the_address_of_a_row_never_becomes_a_picture(
    *, markup: bool, stderr: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal_console(stderr=stderr, markup=markup).print("chats.jsonl:100:/messages/1 chats.jsonl:1234: :smile:")
    written = capsys.readouterr()
    assert (written.err if stderr else written.out) == "chats.jsonl:100:/messages/1 chats.jsonl:1234: :smile:\n"


def test_no_module_makes_a_console_of_its_own_that_shows_anything() -> None:
    made = []
    package = Path(sftprep.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_console = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console"
            if is_console and ast.unparse(node) != "Console(quiet=True)":
                made.append(str(path.relative_to(package)))
    assert made == ["reports/console.py"]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_terminal_that_lacks_a_character_is_shown_its_escape(tmp_path: Path, samples: Path, more: list[str]) -> None:
    file = tmp_path / "h\u00e9:100:.jsonl"
    file.write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    words = [
        "pack",
        str(file),
        "--model",
        str(samples / "model"),
        "--out",
        str(tmp_path / "\u00e9"),
        "--max-length",
        "64",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "300"}
    done = subprocess.run(
        [sys.executable, "-m", "sftprep", *words, *more], capture_output=True, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert more or b"h\\xe9:100:.jsonl" in done.stdout
