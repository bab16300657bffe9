"""`sftprep pack` as a command: exit codes, what is printed where, and an end at any moment."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sftprep.shards.read import open_shard_set
from tests.held import Pause

INJECTED = {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "No."}]}


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"Tell me {n}"}, {"role": "assistant", "content": "So it is. " * 5}]}
        for n in range(count)
    ]


@pytest.fixture
def words(tmp_path: Path, samples: Path) -> list[str]:
    """A command that packs `chats.jsonl` into `out`."""
    write(tmp_path, rows(20))
    return command(tmp_path, samples)


def write(folder: Path, content: list[dict[str, Any]]) -> None:
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


def command(folder: Path, samples: Path) -> list[str]:
    options = ["--model", str(samples / "model"), "--out", str(folder / "out"), "--max-length", "200"]
    return [sys.executable, "-m", "sftprep", "pack", str(folder / "chats.jsonl"), *options]


def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)


def test_a_set_is_published_and_told_on_stdout(words: list[str], tmp_path: Path) -> None:
    done = run(words, env={**os.environ, "COLUMNS": "100"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "20 conversations, 20 documents, 20 trained turns" in done.stdout
    assert "positions wasted on padding" in done.stdout
    assert "passed" in done.stdout
    assert open_shard_set(tmp_path / "out").manifest.counts.num_documents == 20
    again = run(words)
    assert (again.returncode, "unchanged, nothing was done" in again.stdout) == (0, True)


def test_rows_that_cannot_be_exact_are_all_listed_on_stderr_and_the_exit_code_is_1(
    words: list[str], tmp_path: Path
) -> None:
    write(tmp_path, [*rows(3), INJECTED, *rows(3), INJECTED])
    done = run(words)
    assert (done.returncode, done.stdout) == (1, "")
    listed = [line for line in done.stderr.splitlines() if "[control-token]" in line]
    assert [line.partition("chats.jsonl:")[2].partition(":")[0] for line in listed] == ["4", "8"]
    assert "[rows-left-out]" in done.stderr
    assert "control-token 2" in done.stderr
    assert os.listdir(tmp_path) == ["chats.jsonl"]
    allowed = run([*words, "--max-drop", "25%"])
    assert (allowed.returncode, "left out when packing: 2 of 8 (25.0%): control-token 2" in allowed.stdout) == (0, True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--max-drop", "some"], "--max-drop"),
        (["--source", "no-file"], "--source: not NAME=FILE"),
        (["--source", "x=chats.jsonl:0"], "weight"),
        (["--source", "x=a.jsonl", "--source", "x=b.jsonl"], "two sources have the name 'x'"),
        (["--template-kwargs", "[1]"], "--template-kwargs"),
        (["--template-kwargs", "{"], "not JSON"),
        (["--over-length", "cut"], "cut"),
        (["--max-length", "0"], "--max-length"),
        (["--max-length", "9" * 20], "--max-length"),
        (["--num-rows", "9" * 20], "--num-rows"),
        (["--shard-tokens", "9" * 20], "--shard-tokens"),
    ],
)
def test_a_wrong_option_is_named_and_the_exit_code_is_2(words: list[str], wrong: list[str], said: str) -> None:
    done = run([*words, *wrong])
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["pack", "validate"])
def test_a_closed_standard_input_is_named(words: list[str], name: str) -> None:
    words = [*words[:4], *words[5:]] if name == "pack" else [*words[:3], "validate"]
    done = run(["sh", "-c", 'exec "$@" - <&-', "sh", *words])
    assert (done.returncode, "standard input is closed [unreadable-file]" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_links_that_lead_to_each_other_are_no_place_for_a_set(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "out")
    (tmp_path / "out").symlink_to(tmp_path / "one")
    done = run(words)
    assert (done.returncode, "[output-not-writable]" in done.stderr, "Traceback" in done.stderr) == (2, True, False)
    assert sorted(os.listdir(tmp_path)) == ["chats.jsonl", "one", "out"]


def test_an_expression_that_no_row_matches_is_told(words: list[str], tmp_path: Path) -> None:
    assert run(words).returncode == 0
    audit = [*words[:3], "audit", str(tmp_path / "out"), "--where"]
    assert "no row matches --where 'length < 0'" in run([*audit, "length < 0"]).stdout
    assert "no row matches" not in run([*audit, "length > 0"]).stdout


def test_packing_asks_for_the_length_of_a_row(words: list[str]) -> None:
    # G1: there is no default that cuts or drops.
    done = run(words[:-2])
    assert (done.returncode, "--max-length is required" in done.stderr) == (2, True)
    assert run([*words[:-2], "--no-packing"]).returncode == 0


def test_a_terminal_that_knows_no_unicode_is_no_obstacle(words: list[str]) -> None:
    done = run(words, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})  # M1
    assert (done.returncode, "20 conversations" in done.stdout) == (0, True)


@pytest.mark.parametrize("limit", [100, 5_000, 40_000])
def test_a_full_disk_is_an_error_and_no_set_is_left(words: list[str], tmp_path: Path, limit: int) -> None:
    # No file may grow beyond the limit; the spool, the shard or a model file hits it first.
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    write(tmp_path, rows(200))
    done = run(words, preexec_fn=limited, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 2
    assert "[disk-full]" in done.stderr
    assert "Traceback" not in done.stderr
    assert nothing_or_what_is_told(tmp_path, done.stderr)


def nothing_or_what_is_told(folder: Path, said: str) -> bool:
    """Whether nothing is beside the input but finished chunks, and those are told."""
    left = [name for name in os.listdir(folder) if name != "chats.jsonl"]
    told = "are finished and kept in" in said
    return all(f"{folder}/{name}: the same command goes on" in said for name in left) and told == bool(left)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(("at", "has_finished"), [("import", False), ("chunk", True), ("shard", True)])
def test_ctrl_c_leaves_nothing_behind_but_finished_chunks_that_it_tells_of(
    tmp_path: Path, samples: Path, *, workers: str, at: str, has_finished: bool
) -> None:
    place = tmp_path / "work"
    place.mkdir()
    write(place, rows(300))
    pause = Pause(tmp_path / "held", at=at)
    words = pause.command([*command(place, samples), "--workers", workers])
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert pause.reached(process), process.communicate()
    # As a terminal does: the whole group is told, children too.
    os.killpg(process.pid, signal.SIGINT)
    if at == "import":  # there it is heeded behind the import
        pause.end()
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "nothing was published" in said
    assert nothing_or_what_is_told(place, said), said
    assert ("are finished and kept in" in said) == has_finished
