"""Any store that fsspec knows goes the same way: here one in memory. What a scheme needs and lacks is named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.config.audit import AuditConfig
from sftprep.config.pack import PackConfig
from sftprep.config.places import place_of
from sftprep.errors import OutputError, UsageError
from sftprep.prepare.audit import audit
from sftprep.prepare.pack import pack
from tests.prepare.test_resume import bytes_of, options, rows

URL = "memory://bucket/sets/one"


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system, empty before and after."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found: Any = place_of("memory://bucket")
    found.fs.store.clear()
    yield found.fs
    found.fs.store.clear()


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("sftprep.shards.gather.BATCH_TOKENS", 2048)
    found = options(tmp_path / "chats.jsonl", tmp_path / "local", rows(200))
    return {**found, "shard_tokens": 4096, "work_dir": tmp_path / "work"}


def objects(memory: Any) -> dict[str, bytes]:
    root = "/bucket/sets/one/"
    found = {name.removeprefix(root): memory.cat_file(name) for name in memory.find(root)}
    return {name: data for name, data in found.items() if name != "run.json"}


def test_rows_are_read_and_a_set_is_written_added_to_and_proven(
    call: dict[str, Any], memory: Any, tmp_path: Path
) -> None:
    options(tmp_path / "more.jsonl", tmp_path / "unused", rows(300)[200:])
    more = {**call, "sources": (f"more={tmp_path}/more.jsonl:1.5",), "append": True}
    for out in (tmp_path / "local", URL):
        pack(PackConfig(**{**call, "out": out}))
        pack(PackConfig(**{**more, "out": out}))
    assert objects(memory) == bytes_of(tmp_path / "local")
    assert pack(PackConfig(**{**more, "out": URL})).unchanged
    assert audit(AuditConfig(directory=URL, cache_dir=tmp_path / "copies", prove=True)).report.passed
    memory.pipe_file("/bucket/raw/chats.jsonl", (tmp_path / "chats.jsonl").read_bytes())
    remote = {**call, "sources": ("chats=memory://bucket/raw/*.jsonl:1.5",), "out": tmp_path / "found"}
    assert pack(PackConfig(**remote)).shards.manifest.counts.num_documents > 100


def test_one_pack_at_a_time_writes_there(call: dict[str, Any], memory: Any) -> None:
    memory.pipe_file("/bucket/sets/one/packing.json", b'{"token": "theirs", "host": "there"}')
    with pytest.raises(OutputError, match="there") as caught:
        pack(PackConfig(**{**call, "out": URL}))
    assert caught.value.code == "output-busy"


def test_reports_and_kept_rows_are_written_there(memory: Any, samples: Path) -> None:
    memory.pipe_file("/bucket/chats.jsonl", (samples / "good" / "openai.jsonl").read_bytes())
    words = ["validate", "memory://bucket/chats.jsonl", "--good", "memory://bucket/good.jsonl"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert memory.cat_file("/bucket/good.jsonl") == (samples / "good" / "openai.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("scheme", "package", "extra"), [("s3", "s3fs", "remote"), ("gs", "gcsfs", "gcs"), ("abfs", "adlfs", "azure")]
)
def test_a_package_that_a_scheme_needs_and_lacks_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, scheme: str, package: str, extra: str
) -> None:
    place_of("memory://bucket")
    # What fsspec remembers of packages that were there when they were asked for.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    for words in (["validate", f"{scheme}://bucket/a.jsonl"], ["audit", f"{scheme}://bucket/set"]):
        found = CliRunner().invoke(app, words).exception
        assert isinstance(found, UsageError)
        assert (found.code, found.exit_code, found.place) == ("missing-extra", 2, words[1])
        assert package in found.message
        assert found.hint == f"pip install 'sftprep[{extra}]'"


def test_without_fsspec_the_extra_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError) as caught:
        place_of("s3://bucket/a.jsonl")
    assert (caught.value.code, caught.value.hint) == ("missing-extra", "pip install 'sftprep[remote]'")


@pytest.mark.parametrize("url", ["nothing://bucket/a.jsonl", "x!://a"])
def test_a_scheme_that_nothing_knows_is_named(url: str) -> None:
    found = CliRunner().invoke(app, ["validate", url]).exception
    assert isinstance(found, UsageError)
    assert (found.code, found.place) == ("no-such-scheme", url)
