"""A pack that ends before its time is gone on with by the same command: the bytes are those of a run without a stop."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sftprep.config.pack import PackConfig
from sftprep.errors import DataError, OutputError, SftprepError, ShardError
from sftprep.prepare import pack as pack_module
from sftprep.prepare import spool as spool_module
from sftprep.prepare import workers as workers_module
from sftprep.prepare.chunk_account import ChunkAccount
from sftprep.prepare.chunk_record import Finished, dump, read
from sftprep.prepare.document_files import DocumentsFile, Place
from sftprep.prepare.inputs import InputChunk
from sftprep.prepare.pack import pack
from sftprep.shards.claim import OutputClaim
from sftprep.shards.read import open_shard_set
from sftprep.sources import lines
from tests.held import PATIENCE, Pause

COMPILE = pack_module.compile_chunks
COMPILE_IN_CHILD = workers_module._compile_in_child
INJECTED = {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "No."}]}


def rows(count: int, *, words: int = 9) -> list[dict[str, Any]]:
    draw = random.Random(0)
    said = [
        {
            "messages": [
                {"role": "user", "content": f"Tell me {n}"},
                {"role": "assistant", "content": "So it is. " * draw.randint(1, words), "weight": 1 + n % 2},
            ]
        }
        for n in range(count)
    ]
    return [INJECTED if n % 97 == 5 else row for n, row in enumerate(said)]


def options(path: Path, out: Path, content: list[dict[str, Any]]) -> dict[str, Any]:
    """Options of a pack with rows that are left out, weights and fractions."""
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    model = Path(__file__).resolve().parents[2] / "data_samples" / "model"
    limits = {"max_length": 2048, "max_drop": "10%"}
    return {"sources": (f"chats={path}:1.5",), "model": str(model), "out": out, **limits}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chats") / "chats.jsonl"


@pytest.fixture
def call(tmp_path: Path, chats: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Few rows, and chunks so small that there are several."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 13)
    return options(chats, tmp_path / "out", rows(400))


@pytest.fixture
def long_call(tmp_path: Path) -> dict[str, Any]:
    """Rows for several chunks as they are, for processes of their own."""
    return options(tmp_path / "chats.jsonl", tmp_path / "out", rows(1200, words=400))


def bytes_of(out: Path) -> dict[str, bytes]:
    """Of all files but the one that is of the run, which tells how it came to them."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "run.json")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def spool_of(folder: Path) -> Path:
    (found,) = [path for path in folder.iterdir() if path.name.startswith(".out.spool-")]
    return found / "chunks.bin"


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


class Stops:
    """Stands in for compile_chunks: counts the chunks that it is asked for, and raises where a number is reached."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, at: int | None = None, error: BaseException | None = None):
        self.at, self.error, self.num_asked = at, error, 0
        monkeypatch.setattr(pack_module, "compile_chunks", self)

    def __call__(self, unread: Iterator[Any], **job: Any) -> Iterator[Finished]:
        for chunk in COMPILE(self._counted(unread), **job):
            if self.num_asked - 1 == self.at and self.error is not None:
                raise self.error
            yield chunk

    def _counted(self, unread: Iterator[Any]) -> Iterator[Any]:
        for chunk in unread:
            self.num_asked += 1
            yield chunk


def uninterrupted(call: dict[str, Any], patch: pytest.MonkeyPatch) -> tuple[dict[str, bytes], int]:
    """What an uninterrupted run publishes, and how many chunks it compiles."""
    stops = Stops(patch)
    pack(PackConfig(**call))
    published = bytes_of(call["out"])
    shutil.rmtree(call["out"])
    return published, stops.num_asked


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, chats: Path) -> tuple[dict[str, bytes], int]:
    """The same of the few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", 1 << 13)
        published, num_chunks = uninterrupted(
            options(chats, tmp_path_factory.mktemp("whole") / "out", rows(400)), patch
        )
    assert num_chunks >= 5, "a run of several chunks"
    return published, num_chunks


HARM = ("cut", "flipped", "appended")
FAULTS: list[Callable[[], BaseException]] = [
    KeyboardInterrupt,
    MemoryError,
    lambda: OutputError("cannot write", code="disk-full"),
    lambda: DataError("a worker died", code="worker-died"),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_finished_is_kept_and_only_the_rest_is_compiled(
    call: dict[str, Any],
    whole: tuple[dict[str, bytes], int],
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[], BaseException],
) -> None:
    published, num_chunks = whole
    error = fault()
    Stops(monkeypatch, at=3, error=error)
    with pytest.raises(type(error)) as caught:
        pack(PackConfig(**call))
    assert "the same command goes on" in caught.value.__notes__[0]
    assert hidden(call["out"].parent) == [spool_of(call["out"].parent).parent.name]
    again = Stops(monkeypatch)
    pack(PackConfig(**call))
    assert again.num_asked == num_chunks - 3
    assert bytes_of(call["out"]) == published
    assert hidden(call["out"].parent) == []


def test_what_the_data_is_refused_for_leaves_nothing_behind(
    call: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Stops(monkeypatch, at=3, error=DataError("the file changed", code="source-changed"))
    with pytest.raises(DataError):
        pack(PackConfig(**call))
    assert hidden(call["out"].parent) == []


def test_a_stop_after_the_last_chunk_compiles_nothing_again(
    call: dict[str, Any], whole: tuple[dict[str, bytes], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OutputError) as caught:
            pack(PackConfig(**call))
    assert caught.value.code == "disk-full"
    assert not call["out"].exists()
    again = Stops(monkeypatch)
    pack(PackConfig(**call))
    assert (again.num_asked, bytes_of(call["out"])) == (0, whole[0])


@pytest.mark.parametrize("harm", [f"{file} {how}" for file in ("chunks", "documents-*") for how in HARM])
@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_end_of_the_spool_is_found_and_done_again(
    call: dict[str, Any], whole: tuple[dict[str, bytes], int], monkeypatch: pytest.MonkeyPatch, harm: str, seed: int
) -> None:
    published, num_chunks = whole
    file, damage = harm.split()
    Stops(monkeypatch, at=4, error=MemoryError())
    with pytest.raises(MemoryError):
        pack(PackConfig(**call))
    (path,), draw = spool_of(call["out"].parent).parent.glob(f"{file}.bin"), random.Random(seed)
    content = path.read_bytes()
    at = draw.randrange(len(content) // 2, len(content))
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    path.write_bytes({"cut": content[:at], "flipped": flipped, "appended": content + content[: at // 7]}[damage])
    again = Stops(monkeypatch)
    pack(PackConfig(**call))
    assert bytes_of(call["out"]) == published
    kept = num_chunks - again.num_asked
    assert kept == 4 if damage == "appended" else 1 <= kept < 4


def test_an_input_that_is_cut_otherwise_now_is_done_again_from_there(
    call: dict[str, Any], whole: tuple[dict[str, bytes], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    Stops(monkeypatch, at=4, error=MemoryError())
    with pytest.raises(MemoryError):
        pack(PackConfig(**call))
    is_of = spool_module._is_of
    monkeypatch.setattr(
        spool_module, "_is_of", lambda record, source: source.block.first < 100 and is_of(record, source)
    )
    again = Stops(monkeypatch)
    pack(PackConfig(**call))
    assert whole[1] - 4 < again.num_asked < whole[1]
    assert bytes_of(call["out"]) == whole[0]


def test_a_changed_input_begins_anew_and_removes_what_the_old_one_left(
    call: dict[str, Any], chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stops(monkeypatch, at=3, error=MemoryError())
    with pytest.raises(MemoryError):
        pack(PackConfig(**call))
    left = spool_of(call["out"].parent).parent
    with chats.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rows(1)[0]) + "\n")
    Stops(monkeypatch, at=3, error=MemoryError())
    with pytest.raises(MemoryError):
        pack(PackConfig(**call))
    assert spool_of(call["out"].parent).parent != left
    assert not left.exists()


def test_rows_of_a_file_that_changed_while_it_was_read_are_not_kept(
    call: dict[str, Any], chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(unread: Iterator[Any], **job: Any) -> Iterator[Finished]:
        for number, chunk in enumerate(COMPILE(unread, **job)):
            if number == 2:
                os.utime(chats, ns=(0, 0))
            yield chunk

    kept: list[int] = []
    monkeypatch.setattr(pack_module, "compile_chunks", changing)
    add = spool_module.Spool._add
    monkeypatch.setattr(spool_module.Spool, "_add", lambda self, *a, **k: kept.append(add(self, *a, **k)))
    with pytest.raises(SftprepError) as caught:
        pack(PackConfig(**call))
    assert (caught.value.code, len(kept)) == ("source-changed", 2)


def test_every_field_of_a_chunk_is_the_same_when_it_is_read_again(
    call: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts: list[ChunkAccount] = []
    add = spool_module.Spool._add
    monkeypatch.setattr(spool_module.Spool, "_add", lambda self, done: accounts.append(done.account) or add(self, done))
    pack(PackConfig(**call))
    place = Place("documents-0.bin", 64, 128, 7)
    for number, kept in enumerate(accounts):
        account = replace(kept, left_out=replace(kept.left_out, hints={"half\udc80": "\ud800 \x00\u2028"}))
        found = read(pa.py_buffer(dump(account, place, first=number)), 0)
        assert found is not None
        assert (found.source, found.first, found.num_rows) == (0, number, account.read.num_rows)
        assert found.documents == place
        again = found.account()
        for field in fields(ChunkAccount):
            before, after = getattr(account, field.name), getattr(again, field.name)
            assert type(after) is type(before)
            if isinstance(before, np.ndarray):
                assert (before.tolist(), before.dtype) == (after.tolist(), after.dtype)
            else:
                assert before == after
    assert sum(account.left_out.num_rows for account in accounts)


def test_documents_that_no_account_names_are_removed_and_made_again(
    call: dict[str, Any], whole: tuple[dict[str, bytes], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    published, num_chunks = whole
    Stops(monkeypatch, at=3, error=MemoryError())
    with pytest.raises(MemoryError):
        pack(PackConfig(**call))
    unnamed = spool_of(call["out"].parent).with_name("documents-0123456789abcdef.bin")
    unnamed.write_bytes(b"what a child wrote when its parent was killed")
    there: list[bool] = []
    again = Stops(monkeypatch)
    monkeypatch.setattr(pack_module, "compile_chunks", lambda *a, **k: there.append(unnamed.exists()) or again(*a, **k))
    pack(PackConfig(**call))
    assert (again.num_asked, there) == (num_chunks - 3, [False])
    assert bytes_of(call["out"]) == published


def dying_in_mid_write(told: Path, directory: str, chunk: InputChunk) -> Finished:
    """The child that has the third chunk is killed when half of its documents are on the disk, once."""
    add = DocumentsFile.add

    def half(file: DocumentsFile, documents: pa.Buffer) -> Any:
        add(file, documents.slice(0, documents.size // 2))
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        if chunk.block.first > 100 and not told.exists():
            told.touch()
            patch.setattr(DocumentsFile, "add", half)
        return COMPILE_IN_CHILD(directory, chunk)


def test_documents_that_a_child_wrote_to_half_are_never_read_h4(
    call: dict[str, Any], whole: tuple[dict[str, bytes], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_compile_in_child", partial(dying_in_mid_write, tmp_path / "died"))
    pack(PackConfig(**{**call, "workers": 2}))
    assert (tmp_path / "died").exists()
    assert bytes_of(call["out"]) == whole[0]


def shortened(chats: str, directory: str, chunk: InputChunk) -> Finished:
    """The file loses its end before the first chunk is read, so that nothing before it tells of the change."""
    if chunk.block.first == 1:
        os.truncate(chats, 100)
    return COMPILE_IN_CHILD(directory, chunk)


def test_a_file_that_became_shorter_under_the_children_has_changed(
    call: dict[str, Any], chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_compile_in_child", partial(shortened, str(chats)))
    with pytest.raises(SftprepError) as caught:
        pack(PackConfig(**{**call, "workers": 2}))
    assert (caught.value.code, caught.value.place) == ("source-changed", str(chats))
    assert hidden(call["out"].parent) == []


def test_two_packs_of_one_place_at_once_are_refused_and_the_first_goes_on(call: dict[str, Any]) -> None:
    link = call["out"].with_name("link")
    link.symlink_to(call["out"])
    with OutputClaim(call["out"]), pytest.raises(SftprepError) as caught:
        pack(PackConfig(**{**call, "out": link}))
    assert (caught.value.code, caught.value.exit_code) == ("output-busy", 2)
    assert pack(PackConfig(**call)).shards.num_rows
    assert hidden(call["out"].parent) == []


def test_what_dead_runs_left_is_removed_and_what_is_named_alike_is_not(call: dict[str, Any]) -> None:
    folder, digits = call["out"].parent, "0123456789ab"
    dead = [f".out.spool-{digits}", f".out.partial-{digits}", f".out.partial-{digits}.old"]
    others = [f".out.spool-{digits}.partial-{digits}", ".out.spool-mine", f".about.spool-{digits}", ".out.lock.d"]
    call["out"].mkdir()
    for name in (*dead, *others):
        (folder / name).mkdir()
        (folder / name / "file").write_text("x", encoding="utf-8")
    pack(PackConfig(**call))
    assert sorted(hidden(folder)) == sorted(others)


def test_a_set_that_was_set_aside_when_its_replacer_was_killed_is_put_back(call: dict[str, Any]) -> None:
    pack(PackConfig(**call))
    published = bytes_of(call["out"])
    call["out"].rename(call["out"].with_name(".out.partial-0123456789ab.old"))
    with OutputClaim(call["out"]):
        assert bytes_of(call["out"]) == published
    with pytest.raises(SftprepError) as caught:
        pack(PackConfig(**{**call, "seed": 1}))
    assert caught.value.code == "output-other-shards"


def command(call: dict[str, Any], workers: int) -> list[str]:
    options = ["--source", call["sources"][0], "--model", call["model"], "--out", str(call["out"])]
    limits = ["--max-length", str(call["max_length"]), "--max-drop", call["max_drop"], "--workers", str(workers)]
    return [sys.executable, "-m", "sftprep", "pack", *options, *limits]


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def stopped(call: dict[str, Any], pause: Pause, *, workers: int, number: int = signal.SIGKILL) -> int | None:
    """Run the command and send it a signal where it is held; the exit code, or None where it came to its end before."""
    words = pause.command(command(call, workers))
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True)
    is_held = pause.reached(process)
    process.send_signal(number)
    code = process.wait()
    assert is_held or code == 0
    gone(process.pid)
    return code if is_held else None


def gone(group: int) -> None:
    """The children end with their parent, as soon as they find that it is gone."""
    deadline = time.monotonic() + PATIENCE
    while alive(group):
        assert time.monotonic() < deadline, "the children outlive their parent"
        time.sleep(0.02)


def timed_out(call: dict[str, Any], seconds: float, *, workers: int) -> bool:
    """Run the command and kill it after some time; False where it came to its end before."""
    process = subprocess.Popen(command(call, workers), stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert process.wait(timeout=seconds) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        gone(process.pid)
        return True
    return False


def begin_anew_where_done(call: dict[str, Any]) -> None:
    if call["out"].exists():
        assert (call["out"] / "manifest.json").is_file(), "a set is whole, or not there"
        shutil.rmtree(call["out"])


def kept(call: dict[str, Any]) -> int:
    """Bytes of finished chunks that a dead run left."""
    return sum(path.stat().st_size for path in call["out"].parent.glob(".out.spool-*/chunks.bin"))


def gone_on_with(call: dict[str, Any], *, workers: int) -> dict[str, bytes]:
    """What the same command publishes where a dead run stood."""
    done = subprocess.run(command(call, workers), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert hidden(call["out"].parent) == []
    return bytes_of(call["out"])


@pytest.mark.timeout(600)
def test_the_same_command_goes_on_after_a_kill(
    long_call: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, _ = uninterrupted(long_call, monkeypatch)
    assert stopped(long_call, Pause(tmp_path / "held", at="chunk"), workers=2) == -signal.SIGKILL
    assert kept(long_call)
    assert not long_call["out"].exists()
    assert gone_on_with(long_call, workers=2) == published


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_fifty_kills_at_random_moments_change_no_byte(
    long_call: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, num_chunks = uninterrupted(long_call, monkeypatch)
    started = time.monotonic()
    assert gone_on_with(long_call, workers=1) == published
    longest, draw = time.monotonic() - started, random.Random(8)
    for number in range(10):
        shutil.rmtree(long_call["out"])
        workers = 1 + number % 2
        # The first one finds and leaves finished chunks for sure, whatever the machine; the others come at any moment.
        pause = Pause(tmp_path / "held", at="chunk", number=draw.randint(1, num_chunks))
        assert stopped(long_call, pause, workers=workers) == -signal.SIGKILL
        assert kept(long_call)
        for _ in range(4):
            begin_anew_where_done(long_call)
            timed_out(long_call, draw.uniform(0, longest), workers=workers)
        begin_anew_where_done(long_call)
        assert gone_on_with(long_call, workers=workers) == published


@pytest.mark.parametrize("count", [1, 2])
def test_a_disk_that_is_full_and_then_is_not(
    call: dict[str, Any], whole: tuple[dict[str, bytes], int], count: int
) -> None:
    place = call["out"].parent / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a test mount a small tmpfs")
    try:
        config = PackConfig(**{**call, "out": place / "out", "workers": count})
        with pytest.raises(OutputError) as caught:
            pack(config)
        assert caught.value.code == "disk-full"
        assert not config.out.exists()
        assert "the same command goes on" in caught.value.__notes__[0]
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        pack(config)
        assert bytes_of(config.out) == whole[0]
        assert hidden(place) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_terminated_pack_leaves_a_lock_that_binds_nobody(call: dict[str, Any], tmp_path: Path) -> None:
    pause = Pause(tmp_path / "held", at="chunk")
    assert stopped(call, pause, workers=1, number=signal.SIGTERM) == -signal.SIGTERM
    assert (call["out"].parent / ".out.lock").exists()
    pack(PackConfig(**call))
    assert hidden(call["out"].parent) == []


def test_a_set_that_is_half_removed_when_its_replacer_is_killed_is_no_set_and_is_not_put_back(
    call: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(PackConfig(**call))
    rmtree = shutil.rmtree

    def killed(path: Path, **options: Any) -> None:
        if not path.name.endswith(".old"):
            return rmtree(path, **options)
        (path / "left_out.jsonl").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            pack(PackConfig(**{**call, "seed": 1, "overwrite": True}))
    (aside,) = [path for path in call["out"].parent.iterdir() if path.name.endswith(".old")]
    with pytest.raises(ShardError):
        open_shard_set(aside)
    shutil.rmtree(call["out"])
    assert not pack(PackConfig(**call)).unchanged
    assert hidden(call["out"].parent) == []
