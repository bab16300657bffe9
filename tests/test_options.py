"""What is wrong with an option is said by its name, with the value, before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.errors import SftprepError

PACK = ["pack", "chats.jsonl", "--model", "m", "--out", "o", "--max-length", "64"]
TRAIN = ["train", "packed", "--model", "m", "--out", "o"]


def refused(words: list[str]) -> SftprepError:
    """The error that a command ends in."""
    found: Any = CliRunner().invoke(app, words).exception
    assert isinstance(found, SftprepError), (words, found)
    assert found.exit_code == 2
    return found


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            [*PACK, "--max-drop", "101%"],
            "--max-drop: must be a count such as 25, or a percentage up to 100%, is '101%'",
        ),
        ([*PACK, "--max-drop", "1.5"], "--max-drop: must be a count such as 25, or a percentage up to 100%, is '1.5'"),
        ([*PACK, "--runner", "ray", "--ray-address", "head"], "--ray-address: must be HOST:PORT, is 'head'"),
        ([*TRAIN, "--epochs", "0"], "--epochs: must be greater than 0, is 0.0"),
        ([*TRAIN, "--batch-size", "-3"], "--batch-size: must be greater than or equal to 1, is -3"),
        ([*TRAIN, "--log-to", "paper"], "--log-to: must be 'tensorboard' or 'wandb', is 'paper'"),
        (["split", "a.jsonl", "--out", "o", "--eval", "100%"], "below 100 such as 5%, is '100%'"),
        (["audit", "packed", "--fail-on", "left-out=150%"], "nothing can lie within 'left-out=150%': 0 to 100"),
        (["audit", "packed", "--fail-on", "left-out=x%"], "the limit is no number: 'left-out=x%'"),
        (
            ["audit", "packed", "--fail-on", "trained-share=.1..7"],
            "nothing can lie within 'trained-share=.1..7': 0 to 1",
        ),
        (["audit", "packed", "--fail-on", "trained-lost=-1"], "nothing can lie within 'trained-lost=-1': 0 or more"),
        (
            ["evaluate", "--model", "m", "--suite", "tone", "--fail-on", "better"],
            "no gate is 'better': contamination, ",
        ),
    ],
)
def test_a_wrong_value_is_told_with_what_may_stand_there(words: list[str], told: str) -> None:
    found = refused(words)
    assert found.code == "bad-option"
    assert told in found.message
    assert found.hint == f"see sftprep {words[0]} --help"


@pytest.mark.parametrize("value", ["0", "25", "1%", "0.5%", "100%"])
def test_what_may_be_dropped_is_a_count_or_a_share(value: str) -> None:
    assert refused([*PACK, "--max-drop", value]).code == "not-found"  # the model, which is looked for next


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["validate", "s3:/a.jsonl"], "FILE"),
        (["audit", "s3:/a"], "DIR_OR_URL"),
        ([*TRAIN[:1], "s3:/a", *TRAIN[2:]], "DIR_OR_URL"),
    ],
)
def test_what_is_named_by_its_place_is_told_by_the_name_that_the_help_gives_it(words: list[str], name: str) -> None:
    assert refused(words).message.startswith(f"{name}: s3:/a")
    assert f"{name}" in CliRunner().invoke(app, [words[0], "--help"], env={"COLUMNS": "200"}).output


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["audit", "SET", "--html", "SET/audit.html"], "--html"),
        (["audit", "SET", "--json", "SET/shards/audit.json"], "--json"),
        (["audit", "other", "--diff", "SET", "--json", "SET/../SET/diff.json"], "--json"),
        (["train", "SET", "--model", "m", "--out", "SET/tuned"], "--out"),
        (["train", "SET", "--model", "m", "--out", "SET", "--overwrite"], "--out"),
        (["train", "other", "--eval-shards", "SET", "--model", "m", "--out", "link/tuned"], "--out"),
        (["evaluate", "--model", "m", "--held-out", "SET", "--json", "SET/e.json"], "--json"),
        (["evaluate", "--model", "m", "--suite", "tone", "--trained-on", "SET", "--html", "SET/e.html"], "--html"),
        (
            ["evaluate", "--model", "m", "--suite", "tone", "--trained-on", "SET", "--answers", "SET/a.jsonl"],
            "--answers",
        ),
    ],
)
@pytest.mark.usefixtures("packed")
def test_nothing_is_written_into_a_set_that_is_read(words: list[str], option: str) -> None:
    before = sorted(Path("SET").rglob("*"))
    found = refused(words)
    assert found.code == "output-in-use"
    assert found.message.startswith(f"{option} lies inside what ")
    assert sorted(Path("SET").rglob("*")) == before


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory and a link to it; neither is opened."""
    (tmp_path / "SET" / "shards").mkdir(parents=True)
    (tmp_path / "link").symlink_to("SET")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("packed")
def test_a_name_that_begins_as_the_set_does_is_another_place() -> None:
    words = ["evaluate", "--model", "gone", "--held-out", "SET", "--json", "SET.json"]
    assert refused([*words, "--html", "SET-2/page.html"]).code == "no-such-directory"


@pytest.mark.parametrize("option", ["--json", "--html", "--good", "--bad", "--fix-to", "--quality-json"])
@pytest.mark.parametrize("place", ["s3://bucket/reports/", "reports/"])
def test_a_file_to_be_written_is_not_named_as_a_directory(option: str, place: str) -> None:
    found = refused(["validate", "a.jsonl", option, place])
    assert found.message == f"{option}: {place} names a directory: name a file in it"


@pytest.mark.parametrize(
    "words",
    [
        ["validate", "s3://bucket/chats/"],
        ["split", "s3://bucket/chats/", "--out", "o"],
        ["pack", "s3://bucket/chats/", *PACK[2:]],
        ["pack", "--source", "a=s3://bucket/chats/:2", *PACK[2:]],
        ["validate", "a.jsonl", "--against", "s3://bucket/chats/"],
        ["evaluate", "--model", "m", "--suite", "tone", "--against", "s3://bucket/chats/"],
    ],
)
def test_a_folder_of_a_store_is_no_file_and_a_pattern_is_named(words: list[str]) -> None:
    found = refused(words)
    assert "s3://bucket/chats/ names a folder: name its files, as in s3://bucket/chats/*.jsonl" in found.message
