"""What somebody meets who has never used a command: each wrong turn says what was meant and what to do."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sftprep.cli.app import app, main

ROW = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})


def called(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that the command runs in, with one chat."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.jsonl").write_text(f"{ROW}\n", encoding="utf-8")
    return tmp_path


def test_a_fault_of_a_whole_row_or_file_is_at_its_line_without_a_pointer(folder: Path, samples: Path) -> None:
    (folder / "empty.jsonl").write_text("", encoding="utf-8")
    (folder / "text.jsonl").write_text("text\n", encoding="utf-8")
    done = called("validate", "empty.jsonl", "text.jsonl")
    assert done.output.startswith("empty.jsonl:1: holds no rows [empty-file]\n")
    assert "\ntext.jsonl:1: not JSON" in done.output
    packed = called("pack", "text.jsonl", "--model", str(samples / "model"), "--out", "o", "--max-length", "64")
    assert packed.exit_code == 1
    assert "text.jsonl:1: not JSON" in packed.output


@pytest.mark.parametrize("command", ["validate", "pack"])
def test_a_directory_of_files_is_told_with_the_pattern_that_means_them(
    folder: Path, samples: Path, command: str
) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "a.jsonl").write_text(f"{ROW}\n", encoding="utf-8")
    more = ["--model", str(samples / "model"), "--out", "o", "--max-length", "64"] if command == "pack" else []
    found: Any = called(command, "data", *more).exception
    assert (found.code, found.exit_code) == ("is-directory", 2)
    pattern = found.hint.partition("'")[2].rpartition("'")[0]
    assert called(command, pattern, *more).exit_code == 0
    (folder / "data" / "manifest.json").write_text("{}", encoding="utf-8")
    found = called(command, "data", *more).exception
    assert "sftprep audit" in found.hint


def test_a_file_that_cannot_be_measured_takes_no_page_of_what_was_found(folder: Path) -> None:
    pytest.importorskip("rensa", reason="the extra quality is not installed")
    (folder / "empty.jsonl").write_text("", encoding="utf-8")
    done = called("validate", "chats.jsonl", "empty.jsonl", "--quality", "--html", "page.html", "--json", "r.json")
    assert done.exit_code == 1
    assert getattr(done.exception, "code", "") == "empty-file"
    assert json.loads((folder / "r.json").read_bytes())["by_code"] == {"empty-file": 1}
    assert "empty-file" in (folder / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.jsonl.gz", "chats.json"])
def test_rows_as_windows_writes_them_are_read(folder: Path, name: str) -> None:
    content = f"\ufeff{ROW}\r\n{ROW}\r\n".encode()
    if name.endswith(".json"):
        content = f"\ufeff[\r\n{ROW},\r\n{ROW}\r\n]\r\n".encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert called("validate", name).output == "2 rows: 2 good, 0 bad; 0 errors, 0 warnings\n"


BLOCKED = "import sys; sys.modules[{0!r}] = None; sys.argv[0] = 'sftprep'; from sftprep.__main__ import main; main()"


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [
        ("rensa", ["validate", "chats.jsonl", "--quality"], "quality"),
        ("py3langid", ["validate", "chats.jsonl", "--against", "chats.jsonl"], "quality"),
        ("rensa", ["split", "chats.jsonl", "--out", "parts"], "quality"),
        ("torch", ["train", "set", "--model", "MODEL", "--out", "o"], "train"),
        ("transformers", ["train", "set", "--model", "MODEL", "--out", "o"], "train"),
        ("transformers", ["evaluate", "--model", "MODEL", "--suite", "tone"], "train"),
        ("upath", ["validate", "s3://bucket/chats.jsonl"], "remote"),
        (
            "ray",
            ["pack", "chats.jsonl", "--model", "MODEL", "--out", "o", "--max-length", "64", "--runner", "ray"],
            "ray",
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(
    package: str, words: list[str], extra: str, samples: Path
) -> None:
    words = [str(samples / "model") if word == "MODEL" else word for word in words]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(package), *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(samples.parent)},
    )
    assert done.returncode == 2, done.stderr
    assert "[missing-extra]" in done.stderr
    assert f"sftprep[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout, "it is told before the work"


def test_the_list_of_commands_is_in_the_order_in_which_they_are_used_and_says_where_to_begin() -> None:
    shown = called("--help").output
    order = ["validate", "split", "pack", "audit", "train", "evaluate", "demo", "schema"]
    places = [shown.index(f"│ {name} ") for name in order]
    assert places == sorted(places)
    assert "Begin with: sftprep demo" in shown


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["demo", "--out", "chats.jsonl/demo"], "output-not-writable"),
        (["schema", "--out", "chats.jsonl/schemas"], "output-not-writable"),
        (["split", "chats.jsonl", "--out", "parts", "--eval", "7"], "nothing-to-hold-out"),
        (["audit", "nowhere", "--html", "no/page.html"], "no-such-directory"),
        (["audit", "nowhere", "--json", "."], "no-such-directory"),
        (["audit", "nowhere", "--allow", "stop-untrianed"], "no-such-code"),
        (["evaluate", "--model", "nowhere", "--suite", "tone", "--html", "."], "no-such-directory"),
    ],
)
def test_what_cannot_be_is_told_before_the_work(folder: Path, words: list[str], code: str) -> None:
    if words[0] == "split":
        pytest.importorskip("rensa", reason="the extra quality is not installed")
    found: Any = called(*words).exception
    assert getattr(found, "code", found) == code
    assert [path.name for path in folder.iterdir()] == ["chats.jsonl"]


@pytest.fixture(scope="module")
def packed(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of a few chats."""
    out = tmp_path_factory.mktemp("packed") / "set"
    chats, model = samples / "good" / "openai.jsonl", samples / "model"
    done = called("pack", str(chats), "--model", str(model), "--out", str(out), "--max-length", "512")
    assert done.exit_code == 0, (done.output, done.exception)
    return out


@pytest.mark.parametrize("command", ["audit", "audit --diff", "train", "train --eval-shards", "evaluate"])
@pytest.mark.parametrize("name", ["nowhere", "link", "chats.jsonl"])
def test_a_set_that_is_not_there_is_a_wrong_path_and_not_wrong_data(
    folder: Path, packed: Path, samples: Path, command: str, name: str
) -> None:
    (folder / "link").symlink_to("gone")
    model = str(samples / "model")
    words = {
        "audit": ["audit", name],
        "audit --diff": ["audit", str(packed), "--diff", name],
        "train": ["train", name, "--model", model, "--out", "out"],
        "train --eval-shards": ["train", str(packed), "--model", model, "--out", "out", "--eval-shards", name],
        "evaluate": ["evaluate", "--model", model, "--suite", "tone", "--trained-on", name],
    }[command]
    code = "missing-file"
    if name == "chats.jsonl":
        # A file may be what another trainer prepared.
        code = "not-prepared" if command == "audit --diff" else "not-a-directory"
    found: Any = called(*words).exception
    assert (getattr(found, "code", found), found.exit_code, found.place) == (code, 2, name)
    assert not (folder / "out").exists()


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--out", "out"],
        ["schema", "--out", "out"],
        ["validate", "chats.jsonl", "--html", "out"],
        ["validate", "chats.jsonl", "--good", "out"],
        ["audit", "PACKED", "--json", "out"],
    ],
    ids=" ".join,
)
def test_a_full_disk_has_one_name_in_all_commands_and_nothing_is_left_there(
    folder: Path, packed: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    opened = Path.open

    def on_a_full_disk(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        return opened(path if "r" in mode else FULL, mode, *more, **named)

    def copied(_: Path, target: Path) -> None:
        with opened(FULL, "wb") as file:
            file.write(b"x")

    monkeypatch.setattr(Path, "open", on_a_full_disk)
    monkeypatch.setattr("shutil.copyfile", copied)
    found: Any = called(*(str(packed) if word == "PACKED" else word for word in words)).exception
    assert (getattr(found, "code", found), found.exit_code) == ("disk-full", 2)
    assert found.message == "cannot write: No space left on device"
    assert [path.name for path in folder.rglob("*") if not path.is_dir()] == ["chats.jsonl"]


LONG = "x" * 300
"""No file system has such a name: to ask for it is refused, as in a directory that may not be entered."""


@pytest.mark.parametrize(
    "words",
    [
        ["validate", LONG],
        ["validate", "chats.jsonl", "--html", LONG],
        ["pack", "chats.jsonl", "--model", LONG, "--out", "out", "--max-length", "64"],
        ["audit", LONG],
        ["audit", "PACKED", "--diff", LONG],
        ["evaluate", "--model", "nowhere", "--suite", LONG],
    ],
    ids=lambda words: " ".join(words[:-1])[:30],
)
def test_a_path_that_the_system_refuses_is_named_and_no_traceback(
    folder: Path, packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sftprep", *(str(packed) if word == "PACKED" else word for word in words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {LONG}")
    # From Python 3.14 on, to ask whether a file is there is answered no.
    assert "File name too long [unreadable-file]" in said or sys.version_info >= (3, 14)
    assert [path.name for path in folder.iterdir()] == ["chats.jsonl"]


def test_what_is_no_refusal_of_a_path_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for failure in (OSError(errno.EIO, "broken", "disk"), PermissionError(errno.EPERM, "no path")):
        monkeypatch.setattr("sftprep.cli.app.app", lambda failure=failure: (_ for _ in ()).throw(failure))
        with pytest.raises(OSError, match=str(failure.strerror)) as caught:
            main()
        assert caught.value is failure
