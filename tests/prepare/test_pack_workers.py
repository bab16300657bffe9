"""Children compile chunks in any order; what comes out is in the rows' order, and a child that dies is told."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sftprep.config.pack import PackConfig
from sftprep.config.places import place_of
from sftprep.engines.load import load_model
from sftprep.errors import DataError, TemplateLimitError
from sftprep.prepare import child_process, workers
from sftprep.prepare.chunk_record import Finished
from sftprep.prepare.document_files import read_documents
from sftprep.prepare.inputs import InputChunk
from sftprep.prepare.workers import compile_chunks
from sftprep.sources.blocks import LineBlock

COMPILE = workers._compile_in_child


def _die(directory: str, chunk: InputChunk) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def thresholds(_: int) -> tuple[int, int, int]:
    return gc.get_threshold()


def lines_of(compiled: Iterable[Finished], directory: Path) -> list[list[int]]:
    """The lines of each chunk, as its documents have them on the disk."""
    places = [done.documents for done in compiled]
    assert all(place.is_whole(directory) for place in places)
    data = {path.name: path.read_bytes() for path in directory.iterdir()}
    kept = [data[place.file][place.start : place.start + place.length] for place in places]
    return [read_documents(pa.py_buffer(part))["doc_line"].to_pylist() for part in kept]


def _hold_the_first(directory: str, chunk: InputChunk) -> Finished:
    """The first chunk waits until the others that were given away with it are done."""
    done = Path(os.environ["DONE"])
    for _ in range(2000):  # looks, not seconds: a machine that stands still meanwhile takes none away
        if chunk.block.first != 1 or len(os.listdir(done)) >= 4:
            break
        time.sleep(0.05)
    compiled = COMPILE(directory, chunk)
    (done / f"{len(os.listdir(done))} {chunk.block.first}").touch()
    return compiled


def chunks(count: int) -> Iterator[InputChunk]:
    """Chunks of one row; the first ones are the slowest to compile."""
    for line in range(1, count + 1):
        answer = "and so on " * (400 // line)
        messages = [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": answer}]
        yield InputChunk(0, "chats", LineBlock(json.dumps({"messages": messages}).encode(), line, 0), 1)


@pytest.fixture
def job(samples: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    model = str(samples / "model")
    config = PackConfig(files=(Path("chats"),), model=model, out=tmp_path / "out", max_length=4096, workers=2)
    directory = tmp_path / "spool"
    directory.mkdir()
    with workers.Crew(config) as crew:
        yield {"model": load_model(model), "crew": crew, "directory": directory}
    assert multiprocessing.active_children() == []


def test_chunks_come_out_in_the_order_of_the_rows(job: dict[str, Any]) -> None:
    # More chunks than are ever in flight, so that the window of waiting ones is filled and emptied.
    lines = lines_of(compile_chunks(chunks(17), **job), job["directory"])
    assert lines == [[line] for line in range(1, 18)]


def test_children_look_for_cycles_as_seldom_as_their_parent(job: dict[str, Any]) -> None:
    before = gc.get_threshold()
    gc.set_threshold(12_345, 6, 7)
    try:
        assert list(job["crew"].ordered(thresholds, [0], named=str)) == [(12_345, 6, 7)]
    finally:
        gc.set_threshold(*before)


def about_its_origin(_: int) -> tuple[int, int, dict[str, str]]:
    """Of a child: what it was forked from, how many threads that has, and the environment."""
    parent = os.getppid()
    return parent, len(os.listdir(f"/proc/{parent}/task")), dict(os.environ)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list a process's threads")
def test_children_are_forked_from_a_process_of_one_thread_and_have_their_parents_environment(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of several threads a fork copies the locks, in whatever state they are.
    (first,) = job["crew"].ordered(about_its_origin, [0], named=str)
    monkeypatch.setenv("SFTPREP_TEST", "told later")
    with workers.Crew(job["crew"].config) as later:
        (second,) = later.ordered(about_its_origin, [0], named=str)
    assert first[0] == second[0] != os.getpid(), "what is imported serves all"
    assert (first[1], second[1]) == (1, 1)
    assert "SFTPREP_TEST" not in first[2]
    assert second[2] == dict(os.environ)


def test_children_are_started_ahead_only_where_there_is_nothing_that_might_be_the_set(
    job: dict[str, Any], tmp_path: Path
) -> None:
    config = job["crew"].config
    assert child_process.will_be_asked(config)
    others: list[dict[str, Any]] = [
        {"workers": 1},
        {"workers": None},
        {"runner": "ray"},
        {"out": tmp_path},
        {"out": place_of("s3://bucket/set")},
        {"out": tmp_path / ("x" * 300)},
    ]
    for other in others:
        assert not child_process.will_be_asked(config.model_copy(update=other)), other


@pytest.mark.slow
def test_children_have_the_code_of_their_parent_whatever_lies_in_the_working_directory(
    tmp_path: Path, samples: Path
) -> None:
    other, program = tmp_path / "here" / "sftprep", tmp_path / "program.py"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise SystemExit('this is another sftprep')\n", encoding="utf-8")
    program.write_text("from sftprep.__main__ import main\nif __name__ == '__main__':\n    main()\n", encoding="utf-8")
    words = ["pack", *map(str, (samples / "good").glob("*.jsonl")), "--model", str(samples / "model")]
    options = ["--out", str(tmp_path / "out"), "--max-length", "512", "--workers", "2"]
    place = os.pathsep.join([str(samples.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(program), *words, *options],
        cwd=tmp_path / "here",
        env={**os.environ, "PYTHONPATH": place},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_where_no_process_can_be_forked_children_are_started_anew(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "_can_fork", lambda: False)
    assert lines_of(compile_chunks(chunks(5), **job), job["directory"]) == [[line] for line in range(1, 6)]
    assert child_process.children_context().get_start_method() == "spawn"


def with_murders(count: int, *, before: set[int]) -> Iterator[InputChunk]:
    """The children are killed before these chunks are given to them."""
    for number, chunk in enumerate(chunks(count)):
        if number in before:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
        yield chunk


def test_a_slow_chunk_holds_up_no_other_child(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # H1: who is free takes the next chunk. Given out in turn, every other one would wait behind the first.
    (tmp_path / "done").mkdir()
    monkeypatch.setenv("DONE", str(tmp_path / "done"))
    monkeypatch.setattr(workers, "_compile_in_child", _hold_the_first)
    found = lines_of(compile_chunks(chunks(8), **job), job["directory"])
    assert found == [[line] for line in range(1, 9)]
    assert (tmp_path / "done" / "4 1").exists(), "four others were done before the first"


def test_chunks_of_a_child_that_dies_are_compiled_by_another(job: dict[str, Any]) -> None:
    # H4: nothing lost, nothing twice.
    lines = lines_of(compile_chunks(with_murders(40, before={8}), **job), job["directory"])
    assert lines == [[line] for line in range(1, 41)]


def test_several_chunks_that_are_given_at_once_come_out_in_order_also_after_a_death(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_chunks_at_once", lambda crew: 3)
    lines = lines_of(compile_chunks(with_murders(40, before={16}), **job), job["directory"])
    assert lines == [[line] for line in range(1, 41)]


@pytest.mark.parametrize(("megabytes", "expected"), [(0, 1), (20, 1), (40, 2), (1000, 4)])
def test_children_are_given_several_chunks_at_once_where_there_are_many(
    job: dict[str, Any], tmp_path: Path, megabytes: int, expected: int
) -> None:
    path = tmp_path / "chats.jsonl"
    path.touch()
    os.truncate(path, megabytes << 20)
    crew = workers.Crew(job["crew"].config.model_copy(update={"files": (path,)}))
    assert workers._chunks_at_once(crew) == expected


def test_chunks_that_end_their_child_twice_are_an_error_that_names_its_rows(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel kills what takes too much memory, and would do so again.
    monkeypatch.setattr(workers, "_compile_in_child", _die)
    with pytest.raises(DataError) as caught:  # H4: no hang
        list(compile_chunks(chunks(40), **job))
    assert caught.value.code == "worker-died"
    assert caught.value.place.startswith("chats:1,")


@pytest.mark.parametrize("count", [1, 2])
def test_a_hostile_template_ends_the_run_at_the_first_row(job: dict[str, Any], count: int) -> None:
    hostile = replace(job["model"], template="{{ messages[0].content * 10000000000 }}")
    config = job["crew"].config.model_copy(update={"workers": count})
    with workers.Crew(config) as crew, pytest.raises(TemplateLimitError):
        list(compile_chunks(chunks(3), model=hostile, crew=crew, directory=job["directory"]))
