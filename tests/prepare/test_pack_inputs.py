"""`pack` reads what `validate` reads: patterns, standard input, arrays, tables, other formats, each by its address."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import ValidationError

from sftprep.config.pack import PackConfig
from sftprep.config.validate import ValidateConfig
from sftprep.errors import UsageError
from sftprep.prepare.pack import PackResult, pack
from sftprep.prepare.validate import validate_files
from sftprep.sources import lines

ROWS = [
    {"messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Answer {n}."}]}
    for n in range(7)
]
BAD = {"messages": [{"role": "user", "content": "And?"}]}
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


class StandardInput:
    """What `sys.stdin` is where bytes are piped in."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


@pytest.fixture
def call(tmp_path: Path, samples: Path) -> dict[str, Any]:
    return {"model": str(samples / "model"), "out": tmp_path / "out", "max_length": 128}


def run(call: dict[str, Any], *files: Path | str, **options: Any) -> PackResult:
    return pack(PackConfig(**{**call, "files": files, "overwrite": True, **options}))


def tokens(result: PackResult) -> list[list[int]]:
    """All rows' ids."""
    return [ids for batch in result.shards.iter_batches(["input_ids"]) for ids in batch["input_ids"].to_pylist()]


def write_as(kind: str, path: Path) -> Path:
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "arrow":
        with pa.ipc.new_file(str(path), pa.Table.from_pylist(ROWS).schema) as sink:
            sink.write_table(pa.Table.from_pylist(ROWS), max_chunksize=2)
    else:
        writers = {"array": lambda _: json.dumps(ROWS).encode(), "gzip": gzip.compress, "zstd": zstandard.compress}
        path.write_bytes(writers[kind](JSONL))
    return path


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["parquet", "arrow", "array", "gzip", "zstd"])
def test_every_kind_of_file_gives_the_rows_of_the_lines(
    call: dict[str, Any], tmp_path: Path, kind: str, workers: int
) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(JSONL)
    expected = tokens(run(call, plain))
    found = run(call, write_as(kind, tmp_path / "other"), workers=workers)
    assert tokens(found) == expected
    assert found.shards.manifest.sources[0].num_rows == len(ROWS)


def test_standard_input_is_packed_and_its_set_is_found_again(
    call: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(JSONL)
    expected = run(call, plain).shards.manifest
    monkeypatch.setattr(sys, "stdin", StandardInput(JSONL))
    found = run(call, "-", out=tmp_path / "piped").shards
    assert found.manifest.fingerprint == expected.fingerprint
    assert [shard.num_tokens for shard in found.manifest.shards] == [shard.num_tokens for shard in expected.shards]
    assert [source.path for source in found.manifest.sources] == ["-"]
    monkeypatch.setattr(sys, "stdin", StandardInput(JSONL))
    assert run(call, "-", out=tmp_path / "piped", overwrite=False).unchanged


def test_a_pattern_and_a_saved_dataset_are_their_files_each_row_by_its_own_address(
    call: dict[str, Any], tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_bytes(JSONL + json.dumps(BAD).encode())
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=2)
    result = run(call, tmp_path / "*.jsonl", tmp_path / "saved", max_drop="2")
    names = [Path(source.path).name for source in result.shards.manifest.sources]
    assert names[:2] == ["a.jsonl", "b.jsonl"]
    assert [source.num_rows for source in result.shards.manifest.sources[:2]] == [8, 8]
    assert sum(source.num_rows for source in result.shards.manifest.sources[2:]) == len(ROWS)
    left_out = (result.shards.directory / "left_out.jsonl").read_text(encoding="utf-8").splitlines()
    places = [(Path(row["file"]).name, row["line"]) for row in map(json.loads, left_out)]
    assert places == [("a.jsonl", 8), ("b.jsonl", 8)]


def test_a_fraction_of_a_source_of_several_files_is_drawn_from_all_of_them(
    call: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(JSONL)
    sources = run(call, sources=(f"mix={tmp_path}/*.jsonl:0.5",)).shards.manifest.sources
    assert [source.name for source in sources] == ["mix", "mix"]
    assert sum(source.num_taken for source in sources) == len(ROWS)


def test_a_file_that_two_patterns_name_is_refused(call: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    with pytest.raises(UsageError) as caught:
        run(call, tmp_path / "*.jsonl", tmp_path / "a.*")
    assert (caught.value.code, caught.value.place) == ("repeated-file", str(tmp_path / "a.jsonl"))


def test_other_formats_are_packed_by_name(call: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "alpaca.jsonl"
    path.write_text('{"instruction": "Question 1?", "output": "Answer 1."}\n', encoding="utf-8")
    lone = tmp_path / "lone.jsonl"
    lone.write_text(json.dumps(ROWS[1]) + "\n", encoding="utf-8")
    assert tokens(run(call, path, format="alpaca")) == tokens(run(call, lone))


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_said_once_a_file_is_counted_once_in_however_many_chunks(
    call: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 300)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in files:
        path.write_text("".join(json.dumps({**row, "note": n}) + "\n" for n, row in enumerate(ROWS)), encoding="utf-8")
    assert sum(1 for _ in lines.read_blocks(files[0], name="a")) >= 3
    checked = validate_files(ValidateConfig(files=tuple(files)))
    warnings = run(call, *files, workers=workers).report.warnings
    assert warnings == {"unknown-row-key": 2}
    assert warnings == checked.by_code


@pytest.mark.parametrize("out", ["s3://bucket/set", "hf://datasets/owner/set"])
def test_a_set_is_not_written_to_a_directory_that_looks_like_a_url(out: str) -> None:
    with pytest.raises(ValidationError, match="rest of a URL"):
        PackConfig(files=(Path("chats.jsonl"),), model="model", out=Path(out), max_length=64)
