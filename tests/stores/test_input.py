"""Chats in an object store are packed as those of a disk, known by what the store calls their bytes."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from sftprep.config.pack import PackConfig
from sftprep.config.places import place_of
from sftprep.errors import SftprepError, SourceError, UsageError
from sftprep.prepare.pack import PackResult, pack
from sftprep.sources.lines import read_rows
from sftprep.stores import access, read

if TYPE_CHECKING:
    from tests.stores.s3 import Server

pytest_plugins = ("tests.stores.s3",)

ROWS = [
    {"messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Answer {n}."}]}
    for n in range(40)
]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def as_parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=7)
    return sink.getvalue()


FILES = {
    "chats.jsonl": lambda: JSONL,
    "chats.jsonl.gz": lambda: gzip.compress(JSONL),
    "chats.jsonl.zst": lambda: zstandard.compress(JSONL),
    "chats.json": lambda: json.dumps(ROWS).encode(),
    "chats.parquet": as_parquet,
}


@pytest.fixture
def call(tmp_path: Path, samples: Path) -> dict[str, Any]:
    return {"model": str(samples / "model"), "out": tmp_path / "out", "max_length": 128}


def run(call: dict[str, Any], *files: str | Path, **options: Any) -> PackResult:
    return pack(PackConfig(**{**call, "files": files, "overwrite": True, **options}))


def tokens(result: PackResult) -> list[list[int]]:
    return [ids for batch in result.shards.iter_batches(["input_ids"]) for ids in batch["input_ids"].to_pylist()]


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_object_gives_the_rows_of_the_file(
    call: dict[str, Any], store: Any, tmp_path: Path, name: str
) -> None:
    content = FILES[name]()
    (tmp_path / name).write_bytes(content)
    expected = run(call, tmp_path / name)
    store.pipe_file(f"bucket/{name}", content)
    found = run(call, f"s3://bucket/{name}")
    assert tokens(found) == tokens(expected)
    source = found.shards.manifest.sources[0]
    assert (source.path, source.num_rows, source.num_bytes) == (f"s3://bucket/{name}", len(ROWS), len(content))
    assert source.identity.startswith("ETag ")
    assert source.sha256 == ""


def test_patterns_find_objects_and_worker_processes_get_their_rows(
    call: dict[str, Any], store: Any, tmp_path: Path
) -> None:
    half = len(JSONL.splitlines(keepends=True)) // 2
    parts = JSONL.splitlines(keepends=True)
    store.pipe_file("bucket/data/a.jsonl", b"".join(parts[:half]))
    store.pipe_file("bucket/data/deep/b.jsonl.gz", gzip.compress(b"".join(parts[half:])))
    (tmp_path / "all.jsonl").write_bytes(JSONL)
    found = run(call, "s3://bucket/data/**/*.jsonl*", workers=2)
    assert tokens(found) == tokens(run(call, tmp_path / "all.jsonl", out=tmp_path / "local"))
    assert [source.num_rows for source in found.shards.manifest.sources] == [half, half]


def test_an_object_that_has_other_bytes_now_is_another_set_and_the_same_one_is_not(
    call: dict[str, Any], store: Any
) -> None:
    # H6: of the same size, and not read: the store's own name for the bytes tells.
    url = "s3://bucket/chats.jsonl"
    store.pipe_file("bucket/chats.jsonl", JSONL)
    first = run(call, url)
    again = run(call, url, overwrite=False)
    assert again.unchanged
    store.pipe_file("bucket/chats.jsonl", JSONL.replace(b"Answer 3.", b"Answer 5."))
    with pytest.raises(UsageError) as caught:
        run(call, url, overwrite=False)
    assert caught.value.code == "output-other-shards"
    changed = run(call, url)
    assert changed.shards.manifest.fingerprint != first.shards.manifest.fingerprint
    store.pipe_file("bucket/chats.jsonl", JSONL)
    assert run(call, url).shards.manifest.fingerprint == first.shards.manifest.fingerprint


def breaking(count: int, *, path: str) -> Any:
    """A fault that cuts so many answers in the middle, of those that have an object's bytes."""
    seen: list[str] = []

    def fault(method: str, asked: str) -> str:
        if method == "GET" and asked.endswith(path):
            seen.append(asked)
            return "break" if len(seen) <= count else ""
        return ""

    return fault


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.parquet"])
def test_a_line_that_breaks_off_a_few_times_loses_no_byte(
    call: dict[str, Any], store: Any, server: Server, tmp_path: Path, name: str
) -> None:
    content = FILES[name]()
    (tmp_path / name).write_bytes(content)
    store.pipe_file(f"bucket/{name}", content)
    server.fault = breaking(access.TRIES - 1, path=name)
    found = run(call, f"s3://bucket/{name}")
    assert sum(method == "GET" and path.endswith(name) for method, path in server.requests) >= access.TRIES
    assert tokens(found) == tokens(run(call, tmp_path / name, out=tmp_path / "local"))


def test_a_line_that_stays_broken_is_named_and_nothing_is_published(
    call: dict[str, Any], store: Any, server: Server
) -> None:
    store.pipe_file("bucket/chats.jsonl", JSONL)
    server.fault = breaking(1000, path="chats.jsonl")
    with pytest.raises(SourceError) as caught:
        run(call, "s3://bucket/chats.jsonl")
    assert (caught.value.code, caught.value.place) == ("read-failed", "s3://bucket/chats.jsonl")
    assert not call["out"].exists()


def test_an_object_that_changes_while_it_is_read_is_refused(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_BLOCK_BYTES", 1 << 10)
    store.pipe_file("bucket/chats.jsonl", JSONL * 3000)
    rows = read_rows(place_of("s3://bucket/chats.jsonl"), name="chats")
    next(rows)
    store.pipe_file("bucket/chats.jsonl", JSONL * 3001)
    with pytest.raises(SourceError) as caught:
        list(rows)
    assert caught.value.code == "source-changed"


@pytest.mark.parametrize(
    ("url", "code"), [("s3://bucket/none.jsonl", "missing-file"), ("s3://bucket/none/*.jsonl", "missing-file")]
)
def test_an_object_that_is_not_there_is_named(call: dict[str, Any], store: Any, url: str, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(call, url)
    assert (caught.value.code, caught.value.place) == (code, url)
    assert not call["out"].exists()


@pytest.mark.parametrize("lacking", ["a right", "credentials"])
def test_who_is_not_let_in_is_told_so(
    call: dict[str, Any], store: Any, server: Server, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    store.pipe_file("bucket/chats.jsonl", JSONL)
    if lacking == "a right":
        server.fault = lambda method, path: "refuse"
    else:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            monkeypatch.setenv(name, "/nowhere")
        type(store).clear_instance_cache()
    with pytest.raises(SftprepError) as caught:
        run(call, "s3://bucket/chats.jsonl")
    assert (caught.value.code, caught.value.exit_code) == ("no-access", 2)
    assert caught.value.place == "s3://bucket/chats.jsonl"
