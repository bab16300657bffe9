"""A pack whose files nobody has touched reads none of them; one whose files may have changed reads them again (H5)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sftprep.config.pack import PackConfig
from sftprep.errors import SftprepError, SourceError
from sftprep.prepare import inputs, pack, unchanged
from sftprep.prepare.unchanged import PackResult, find_unchanged
from sftprep.sources import state

ROWS = [
    {"messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Answer {n}."}]}
    for n in range(8)
]


def settled_call(tmp_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a pack whose files are known by their times as soon as they are written."""
    monkeypatch.setattr(state, "SETTLED_NS", -(10**9))
    shutil.copytree(samples / "model", tmp_path / "model")
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return {"files": (path,), "model": str(tmp_path / "model"), "out": tmp_path / "out", "max_length": 128}


call = pytest.fixture(settled_call, name="call")


def run(call: dict[str, Any], **options: Any) -> PackResult:
    return pack.pack(PackConfig(**{**call, **options}))


def known(call: dict[str, Any], **options: Any) -> PackResult | None:
    return find_unchanged(PackConfig(**{**call, **options}))


def test_a_second_run_reads_neither_inputs_nor_tokenizer_h5(
    call: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(call)
    for name in ("load_model", "input_files"):
        monkeypatch.delattr(pack, name)
    second = run(call, workers=2, tokenizer_engine="reference")
    assert (second.unchanged, second.shards.manifest, second.report) == (True, first.shards.manifest, first.report)


def test_a_run_that_finds_nothing_to_do_does_not_wait_for_what_packs(call: dict[str, Any], tmp_path: Path) -> None:
    run(call)
    words = ["pack", str(call["files"][0]), "--model", call["model"], "--out", str(call["out"]), "--max-length", "128"]
    program = (
        "import sys\nfrom sftprep.sources import state\nstate.SETTLED_NS = -(10**9)\n"
        "from sftprep.cli.app import app\ntry:\n    app(sys.argv[1:])\nfinally:\n    print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert "unchanged" in done.stdout
    for module in ("huggingface_hub", "jinja2", "gigatoken", "sftprep.engines.load", "sftprep.prepare.pack"):
        assert f"'{module}'" not in done.stdout, module


def appended(path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(ROWS[0]) + "\n")


def overwritten(path: Path) -> None:
    """Other bytes of the same number, and the time of writing set back."""
    times = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Answer 3.", b"Answer 4."))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replaced(path: Path) -> None:
    """Another file of the same size and times has the name."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes().replace(b"Answer 3.", b"Answer 4."))
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [appended, overwritten, replaced])
def test_an_input_that_was_touched_is_read_again(call: dict[str, Any], change: Callable[[Path], None]) -> None:
    first = run(call)
    change(call["files"][0])
    assert known(call) is None
    with pytest.raises(SftprepError) as caught:
        run(call)
    assert caught.value.code == "output-other-shards"
    assert run(call, overwrite=True).shards.manifest.fingerprint != first.shards.manifest.fingerprint


def test_every_file_of_the_model_is_known_and_a_new_one_is_seen(call: dict[str, Any]) -> None:
    run(call)
    for path in sorted(Path(call["model"]).iterdir()):
        assert known(call) is not None
        path.touch()
        assert known(call) is None, path.name
        assert run(call).unchanged, "the bytes are the same, and now that is known"
    (Path(call["model"]) / "special_tokens_map.json").write_text("{}", encoding="utf-8")
    assert known(call) is None


@pytest.mark.parametrize("option", [{"seed": 1}, {"max_length": 127}, {"now": "2026-01-02"}, {"rehash": True}])
def test_another_call_is_not_known(call: dict[str, Any], option: dict[str, Any]) -> None:
    run(call)
    assert known(call) is not None
    assert known(call, **option) is None


def test_a_new_file_of_a_pattern_is_seen(call: dict[str, Any]) -> None:
    (path,) = call["files"]
    pattern = {**call, "files": (path.with_name("chats*.jsonl"),)}
    run(pattern)
    assert known(pattern) is not None
    path.with_name("chats2.jsonl").write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    assert known(pattern) is None


def test_rehash_reads_everything_and_finds_the_same(call: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run(call)
    read: list[Path] = []
    sha256 = inputs.file_sha256
    monkeypatch.setattr(inputs, "file_sha256", lambda path: read.append(path) or sha256(path))
    assert run(call).unchanged
    assert read == []
    assert run(call, rehash=True).unchanged
    assert read == [call["files"][0]]


def test_times_that_are_too_new_are_not_believed(call: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "SETTLED_NS", 10**17)  # three years, however slow a machine is
    run(call)
    assert known(call) is None, "written twice within one tick of the clock, a file would look the same"


def test_a_file_that_changes_while_it_is_packed_is_not_noted(
    call: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    remember = pack.remember

    def late(*arguments: Any, **options: Any) -> None:
        appended(call["files"][0])
        remember(*arguments, **options)

    monkeypatch.setattr(pack, "remember", late)
    run(call)
    assert known(call) is None


def test_a_file_that_changes_while_its_sum_is_taken_is_named(
    call: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = inputs.file_sha256

    def written_meanwhile(path: Path) -> str:
        digest = sha256(path)
        appended(path)
        return digest

    monkeypatch.setattr(inputs, "file_sha256", written_meanwhile)
    with pytest.raises(SourceError) as caught:
        run(call)
    assert (caught.value.code, caught.value.place) == ("source-changed", str(call["files"][0]))
    assert not call["out"].exists()


def test_a_set_that_is_damaged_or_gone_or_another_is_not_taken_for_the_one_that_is_known(call: dict[str, Any]) -> None:
    run(call)
    (call["out"] / "shards" / "part-00000.parquet").unlink()
    with pytest.raises(SftprepError) as caught:
        known(call)
    assert caught.value.code == "missing-shard"
    assert not run(call, overwrite=True).unchanged
    assert known(call) is not None
    run(call, seed=1, overwrite=True)
    assert known(call) is None
    shutil.rmtree(call["out"])
    assert known(call) is None


def test_what_a_known_set_leaves_out_is_still_judged(call: dict[str, Any]) -> None:
    with call["files"][0].open("a", encoding="utf-8") as file:
        file.write('{"messages": []}\n')
    run(call, max_drop="1")
    with pytest.raises(SftprepError) as caught:
        known(call)
    assert caught.value.code == "rows-left-out"


def test_more_sources_are_known_too_once_they_are_added(call: dict[str, Any]) -> None:
    run(call)
    more = call["files"][0].with_name("more.jsonl")
    more.write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    added = {**call, "files": (more,), "append": True}
    assert not run(added).unchanged
    assert known(added) is not None
    assert known(call) is None


@pytest.mark.parametrize("note", ["", "[]", '{"call": 1}', '{"call": "", "fingerprint": "", "states": {"a": {}}}'])
def test_a_note_that_cannot_be_read_is_no_note(call: dict[str, Any], note: str) -> None:
    run(call)
    unchanged._note_of(call["out"]).write_text(note, encoding="ascii")
    assert known(call) is None
    assert run(call).unchanged


def test_where_nothing_can_be_noted_the_run_is_the_same(call: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(call["files"][0]))
    assert not run(call).unchanged
    assert known(call) is None
    assert run(call).unchanged
