"""Datasets of the Hugging Face hub are read and written by their URLs, as any store's: here on a server of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.config.audit import AuditConfig
from sftprep.config.pack import PackConfig
from sftprep.config.places import place_of
from sftprep.errors import OutputError, SftprepError, SourceError
from sftprep.prepare.audit import audit
from sftprep.prepare.pack import pack
from sftprep.stores.write import StoreFolder
from tests.prepare.test_resume import bytes_of, options, rows

if TYPE_CHECKING:
    from tests.stores.hub import Hub

pytest_plugins = ("tests.stores.hub",)
URL = "hf://datasets/us/chats"


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A set of several shards from a file of the hub."""
    monkeypatch.setattr("sftprep.shards.gather.BATCH_TOKENS", 2048)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = options(tmp_path / "chats.jsonl", tmp_path / "local", rows(300))
    return {**found, "shard_tokens": 4096, "work_dir": tmp_path / "work"}


def files(hub: Hub, folder: str) -> dict[str, bytes]:
    root = f"{folder}/"
    found = {name.removeprefix(root): data for name, data in hub.repositories["us/chats"].items()}
    return {name: data for name, data in found.items() if name != "run.json" and not name.startswith("raw/")}


def test_rows_of_the_hub_are_packed_as_those_of_a_file_and_known_by_their_blob(
    call: dict[str, Any], hub: Hub, tmp_path: Path
) -> None:
    pack(PackConfig(**call))
    hub.repositories["us/chats"]["raw/chats.jsonl"] = (tmp_path / "chats.jsonl").read_bytes()
    remote = {**call, "sources": (f"chats={URL}/raw/*.jsonl:1.5",), "out": tmp_path / "found"}
    found = pack(PackConfig(**remote))
    shards = {name: data for name, data in bytes_of(tmp_path / "found").items() if name.startswith("shards/")}
    assert shards == {name: data for name, data in bytes_of(tmp_path / "local").items() if name.startswith("shards/")}
    (source,) = found.shards.manifest.sources
    assert source.path == f"{URL}/raw/chats.jsonl"
    assert source.identity.startswith("blob_id ")
    hub.repositories["us/chats"]["raw/chats.jsonl"] += b"\n"
    with pytest.raises(OutputError) as caught:
        pack(PackConfig(**remote))
    assert caught.value.code == "output-other-shards", "other bytes are another set"


def test_a_set_is_published_on_the_hub_manifest_last_and_read_back(
    call: dict[str, Any], hub: Hub, tmp_path: Path
) -> None:
    pack(PackConfig(**call))
    result = pack(PackConfig(**{**call, "out": f"{URL}/sets/one"}))
    assert files(hub, "sets/one") == bytes_of(tmp_path / "local")
    written = [path.removeprefix("sets/one/") for path in hub.commits]
    assert (written[0], written[-2:]) == ("packing.json", ["manifest.json", "-sets/one/packing.json"])
    assert (
        result.shards.num_rows == sum(1 for _ in result.shards.iter_batches(["num_trained"])) or result.shards.num_rows
    )
    found = audit(AuditConfig(directory=f"{URL}/sets/one", cache_dir=tmp_path / "copies", prove=True))
    assert found.report.passed
    assert json.loads(files(hub, "sets/one")["parity.json"])["verdict"] == "proven"
    hub.commits.clear()
    hub.requests.clear()
    assert pack(PackConfig(**{**call, "out": f"{URL}/sets/one"})).unchanged
    assert [path for _, path in hub.requests if "/commit/" in path] == []


def test_removing_what_is_not_there_is_no_fault(hub: Hub) -> None:
    hub.repositories["us/chats"]["sets/two.json"] = b"2"
    StoreFolder(place_of(f"{URL}/sets")).remove(["one.json", "two.json"])
    assert hub.repositories["us/chats"] == {}


def test_a_set_on_the_hub_is_added_to(call: dict[str, Any], hub: Hub, tmp_path: Path) -> None:
    more = {**call, "sources": (f"more={tmp_path}/more.jsonl:1.5",), "append": True}
    options(tmp_path / "more.jsonl", tmp_path / "unused", rows(400)[300:])
    for out in (tmp_path / "local", f"{URL}/sets/one"):
        pack(PackConfig(**{**call, "out": out}))
        pack(PackConfig(**{**more, "out": out}))
    assert files(hub, "sets/one") == bytes_of(tmp_path / "local")


def test_reports_and_kept_rows_are_written_to_the_hub(hub: Hub, samples: Path, tmp_path: Path) -> None:
    rows_ = samples / "good" / "openai.jsonl"
    hub.repositories["us/chats"]["raw/chats.jsonl"] = rows_.read_bytes()
    words = ["validate", f"{URL}/raw/chats.jsonl", "--good", f"{URL}/good.jsonl", "--json", f"{URL}/report.json"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert hub.repositories["us/chats"]["good.jsonl"] == rows_.read_bytes()
    assert json.loads(hub.repositories["us/chats"]["report.json"])["passed"]


@pytest.mark.parametrize("refused", [(401, "no-access", 2), (403, "no-access", 2), (503, "read-failed", 1)])
def test_a_hub_that_refuses_is_named(
    call: dict[str, Any], hub: Hub, tmp_path: Path, refused: tuple[int, str, int]
) -> None:
    status, code, exit_code = refused
    hub.repositories["us/chats"]["raw/chats.jsonl"] = (tmp_path / "chats.jsonl").read_bytes()
    hub.fault = lambda method, path: status
    with pytest.raises(SftprepError) as caught:
        pack(PackConfig(**{**call, "sources": (f"chats={URL}/raw/chats.jsonl",)}))
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    assert caught.value.place == f"{URL}/raw/chats.jsonl"
    assert code != "no-access" or "HF_TOKEN" in caught.value.hint
    assert not (tmp_path / "local").exists()


@pytest.mark.parametrize("missing", ["raw/none.jsonl", "none/*.jsonl"])
def test_what_is_not_on_the_hub_is_named(call: dict[str, Any], hub: Hub, missing: str) -> None:
    for url in (f"{URL}/{missing}", f"hf://datasets/us/none/{missing}"):
        with pytest.raises(SftprepError) as caught:
            pack(PackConfig(**{**call, "sources": (f"chats={url}",)}))
        assert (caught.value.code, caught.value.place) == ("missing-file", url)


def test_uploads_that_stop_are_gone_on_with(call: dict[str, Any], hub: Hub, tmp_path: Path) -> None:
    pack(PackConfig(**call))
    remote = PackConfig(**{**call, "out": f"{URL}/sets/one"})
    hub.fault = lambda method, path: 503 if "/commit/" in path and len(hub.commits) >= 3 else 0
    with pytest.raises(OutputError) as caught:
        pack(remote)
    assert (caught.value.code, caught.value.place) == ("store-failed", f"{URL}/sets/one")
    assert "manifest.json" not in files(hub, "sets/one")
    hub.fault = lambda method, path: 0
    done = list(hub.commits)
    pack(remote)
    assert files(hub, "sets/one") == bytes_of(tmp_path / "local")
    assert not set(done) & set(hub.commits[len(done) :]), "what was uploaded is not uploaded again"


@pytest.mark.parametrize("number", [1, 2])
def test_a_file_of_the_hub_that_changes_while_it_is_read_is_refused(
    call: dict[str, Any], hub: Hub, tmp_path: Path, number: int
) -> None:
    # Its first bytes are read to see what it is, then all: the hub gives whatever the branch has by then.
    path = "raw/chats.jsonl"
    hub.repositories["us/chats"][path] = (tmp_path / "chats.jsonl").read_bytes()
    reads: list[str] = []

    def changed(method: str, asked: str) -> int:
        if "/resolve/" in asked:
            reads.append(asked)
        if len(reads) == number:
            hub.fault = lambda method, path: 0
            hub.repositories["us/chats"][path] = hub.repositories["us/chats"][path].replace(b"Tell", b"Told")
        return 0

    hub.fault = changed
    with pytest.raises(SourceError) as caught:
        pack(PackConfig(**{**call, "sources": (f"chats={URL}/{path}",)}))
    assert len(reads) == number
    assert (caught.value.code, caught.value.place) == ("source-changed", f"{URL}/{path}")


def test_a_command_finds_the_hub_by_its_variable(hub: Hub, samples: Path) -> None:
    hub.repositories["us/chats"]["raw/chats.jsonl"] = (samples / "good" / "openai.jsonl").read_bytes()
    words = [sys.executable, "-m", "sftprep", "validate", f"{URL}/raw/chats.jsonl", "--quiet"]
    done = subprocess.run(
        words, env={**os.environ, "HF_ENDPOINT": hub.url}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "0 bad" in done.stdout
