"""What is counted agrees with its number, in every report that a terminal shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.reports.wording import counted, sized

_ONE_OF_MANY = re.compile(
    r"(?<![\d.,])1 (?:[a-z]+ )?(?:rows|errors|warnings|documents|conversations|tokens|turns|answers|clusters|cases)\b"
)


def one_row(folder: Path, answer: str = "Yes.") -> Path:
    file = folder / "chats.jsonl"
    row = {"messages": [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": answer}]}
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("number", "told"),
    [(0, "0 rows are"), (1, "1 row is"), (2, "2 rows are"), (1_001, "1,001 rows are")],
)
def test_what_is_counted_agrees_with_the_number(number: int, told: str) -> None:
    assert counted(number, "row is", "rows are") == told
    assert counted(number, "row") == told.rpartition(" ")[0]


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1_023, "1,023 bytes"),
        (1_536, "1.50 KiB"),
        (270_336, "264.00 KiB"),
        (20_000_000, "19.07 MiB"),
        (3 << 30, "3.00 GiB"),
    ],
)
def test_a_size_is_told_in_the_largest_unit_of_which_there_is_one(number: int, told: str) -> None:
    assert sized(number) == told


def test_no_command_says_one_rows(tmp_path: Path, samples: Path) -> None:
    good, out = str(one_row(tmp_path)), str(tmp_path / "packed")
    model = ["--model", str(samples / "model")]
    commands = [
        ["validate", good, *model, "--max-length", "64"],
        ["validate", good, *model, "--max-length", "4"],
        ["pack", good, *model, "--out", out, "--max-length", "4"],
        ["pack", good, *model, "--out", out, "--max-length", "64", "--dry-run"],
        ["pack", good, *model, "--out", out, "--max-length", "64"],
        ["audit", out, "--sample", "1", "--fail-on", "stop-untrained", "--fail-on", "border-trained"],
        ["audit", out, "--diff", out],
    ]
    for words in commands:
        done = CliRunner().invoke(app, words)
        said = " ".join(f"{done.output} {done.exception or ''}".split())
        assert re.search(r"\b1 (?:row|document|token|error)\b", said), said
        assert not _ONE_OF_MANY.findall(said), (words, said)


def test_one_error_is_one_error(tmp_path: Path) -> None:
    bad = one_row(tmp_path, answer="")
    done = CliRunner().invoke(app, ["validate", str(bad)])
    assert done.exit_code == 1
    assert done.output.endswith("1 row: 0 good, 1 bad; 1 error, 0 warnings\n")
