"""Files are added to a set in an object store: what is there stays, and readers see the old set or the new one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sftprep.config.audit import AuditConfig
from sftprep.config.pack import PackConfig
from sftprep.config.places import place_of
from sftprep.errors import DataError, OutputError, ShardError, UsageError
from sftprep.prepare.audit import audit
from sftprep.prepare.pack import pack
from sftprep.shards.cache import open_set
from tests.prepare.test_resume import bytes_of, options, rows
from tests.stores.test_output import killed_at

if TYPE_CHECKING:
    from tests.stores.s3 import Server

pytest_plugins = ("tests.stores.s3",)
URL = "s3://bucket/sets/one"


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A set of several shards, with weights and rows that are left out, by a local path."""
    monkeypatch.setattr("sftprep.shards.gather.BATCH_TOKENS", 2048)
    call = options(tmp_path / "one.jsonl", tmp_path / "local", rows(300))
    return {**call, "shard_tokens": 4096, "work_dir": tmp_path / "work"}


@pytest.fixture
def more(first: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The call that adds another file, at the URL."""
    call = options(tmp_path / "two.jsonl", tmp_path / "unused", rows(500)[300:])
    return {**first, "sources": (call["sources"][0].replace("chats=", "more="),), "out": URL, "append": True}


@pytest.fixture
def expected(first: dict[str, Any], more: dict[str, Any], tmp_path: Path) -> dict[str, bytes]:
    """The set after the append, made in a directory; before it, it lies in `before`."""
    pack(PackConfig(**first))
    shutil.copytree(tmp_path / "local", tmp_path / "before")
    pack(PackConfig(**{**more, "out": tmp_path / "local"}))
    return bytes_of(tmp_path / "local")


@pytest.fixture
def there(store: Any, expected: dict[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    """The first set, put into the store."""
    before = bytes_of(tmp_path / "before")
    assert (
        3
        <= sum(name in before for name in expected if name.startswith("shards/"))
        < sum("shards/" in n for n in expected)
    )
    for name, content in before.items():
        store.pipe_file(f"bucket/sets/one/{name}", content)
    return before


@pytest.fixture
def both(there: dict[str, bytes], expected: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What is in the store, and what will be."""
    return there, expected


def objects(store: Any) -> dict[str, bytes]:
    store.invalidate_cache()
    found = {name.removeprefix("bucket/sets/one/"): name for name in store.find("bucket/sets/one")}
    return {name: store.cat_file(path) for name, path in found.items() if name != "run.json"}


def uploads(server: Server) -> list[str]:
    return [path.partition("/sets/one/")[2] for method, path in server.requests if method == "PUT"]


def read_as(before: dict[str, bytes], *, cache: Path) -> None:
    """That a reader finds the set that was there before, whole."""
    opened = open_set(place_of(URL), cache_dir=cache, cache_gb=1)
    opened.verify()
    assert opened.manifest.fingerprint == json.loads(before["manifest.json"])["fingerprint"]


@pytest.mark.usefixtures("there")
def test_the_bytes_are_those_of_an_append_to_a_directory_and_what_was_there_is_not_put_again(
    more: dict[str, Any], expected: dict[str, bytes], store: Any, server: Server, tmp_path: Path
) -> None:
    server.requests.clear()
    result = pack(PackConfig(**more))
    assert objects(store) == expected
    assert len(result.shards.manifest.parts) == 2
    old = {name for name in bytes_of(tmp_path / "before") if name.startswith(("shards/", "model/"))}
    order = uploads(server)
    assert not old & set(order)
    assert len(order) == len(set(order)), "each object is put once"
    assert (order[0], order[-1]) == ("packing.json", "manifest.json")
    found = audit(AuditConfig(directory=URL, cache_dir=tmp_path / "copies", prove=True, fail_on=("parity",)))
    assert found.report.passed


@pytest.mark.usefixtures("there")
def test_the_same_append_again_does_nothing_and_bytes_that_are_there_are_refused(
    more: dict[str, Any], first: dict[str, Any], store: Any, server: Server
) -> None:
    pack(PackConfig(**more))
    before = objects(store)
    server.requests.clear()
    assert pack(PackConfig(**more)).unchanged
    assert uploads(server) == []
    with pytest.raises(UsageError) as caught:
        pack(PackConfig(**{**more, "sources": (*first["sources"], *more["sources"])}))
    assert caught.value.code == "source-repeated"
    assert objects(store) == before


@pytest.mark.parametrize("named", ["shards/part-0000", "report.json", "manifest.json"])
def test_a_store_that_fails_in_the_middle_still_has_the_old_set_and_the_same_command_goes_on(
    more: dict[str, Any], both: tuple[dict[str, bytes], dict[str, bytes]], store: Any, server: Server, named: str
) -> None:
    server.fault = lambda method, path: "fail" if method == "PUT" and f"/sets/one/{named}" in path else ""
    with pytest.raises(OutputError) as caught:
        pack(PackConfig(**more))
    assert (caught.value.code, caught.value.place) == ("store-failed", URL)
    server.fault = lambda method, path: ""
    read_as(both[0], cache=more["work_dir"] / "reader")
    server.requests.clear()
    pack(PackConfig(**more))
    asked = {(method, path.partition("/sets/one/")[2].partition("/")[0]) for method, path in server.requests}
    assert ("GET", "shards") not in asked, "what was fetched is there"
    assert (("PUT", "shards") in asked) == (named == "shards/part-0000"), "what was uploaded too"
    assert objects(store) == both[1]


def test_what_the_data_is_refused_for_leaves_the_set_as_it_was(
    more: dict[str, Any], there: dict[str, bytes], store: Any, tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        pack(PackConfig(**{**more, "max_drop": "0"}))
    assert objects(store) == there
    with pytest.raises(OutputError) as caught:
        pack(PackConfig(**{**more, "max_length": 1024}))
    assert (caught.value.code, caught.value.place) == ("append-differs", URL)
    assert objects(store) == there


@pytest.mark.usefixtures("there")
def test_a_set_that_changes_before_the_place_is_claimed_is_added_to_as_it_is_then(
    more: dict[str, Any], expected: dict[str, bytes], store: Any, server: Server, tmp_path: Path
) -> None:
    # Another machine adds the same files and is done when this one gets the claim.
    def meanwhile(method: str, path: str) -> str:
        if method == "PUT" and path.endswith("packing.json"):
            server.fault = lambda method, path: ""
            pack(PackConfig(**{**more, "work_dir": tmp_path / "elsewhere"}))
        return ""

    server.fault = meanwhile
    pack(PackConfig(**more))
    assert objects(store) == expected


def test_there_must_be_a_whole_set_to_add_to(
    more: dict[str, Any], there: dict[str, bytes], store: Any, tmp_path: Path
) -> None:
    with pytest.raises(ShardError) as caught:
        pack(PackConfig(**{**more, "out": "s3://bucket/sets/none"}))
    assert (caught.value.code, caught.value.place) == ("no-manifest", "s3://bucket/sets/none")
    store.rm_file("bucket/sets/one/left_out.jsonl")
    with pytest.raises(ShardError, match="left_out") as caught:
        pack(PackConfig(**more))
    assert (caught.value.code, caught.value.place) == ("missing-file", URL)
    store.rm_file("bucket/sets/one/shards/part-00001.parquet")
    with pytest.raises(ShardError) as caught:
        pack(PackConfig(**more))
    assert (caught.value.code, caught.value.place) == ("missing-shard", f"{URL}/shards/part-00001.parquet")
    assert "packing.json" not in objects(store)
    store.pipe_file("bucket/sets/one/manifest.json", b"{}")
    with pytest.raises(ShardError) as caught:
        pack(PackConfig(**more))
    assert (caught.value.code, caught.value.place) == ("damaged-manifest", f"{URL}/manifest.json")


def test_an_append_to_what_this_machine_has_not_ended_leaves_that_alone(
    more: dict[str, Any], first: dict[str, Any], store: Any, server: Server
) -> None:
    server.fault = lambda method, path: "fail" if method == "PUT" and path.endswith("00001.parquet") else ""
    with pytest.raises(OutputError):
        pack(PackConfig(**{**first, "out": URL}))
    server.fault = lambda method, path: ""
    before = objects(store)
    assert "shards/part-00000.parquet" in before
    with pytest.raises(ShardError, match="no manifest"):
        pack(PackConfig(**more))
    assert objects(store) == before
    pack(PackConfig(**{**first, "out": URL}))
    assert "manifest.json" in objects(store)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_append_that_is_killed_while_it_uploads_leaves_the_old_set_and_is_gone_on_with(
    tmp_path: Path, store: Any, server: Server
) -> None:
    # H5: the old manifest stands until the new one replaces it.
    first = {**options(tmp_path / "one.jsonl", tmp_path / "local", rows(200)), "shard_tokens": 4096}
    call = options(tmp_path / "two.jsonl", tmp_path / "unused", rows(1400, words=300)[200:])
    more = {**first, "sources": (call["sources"][0].replace("chats=", "more="),), "append": True}
    pack(PackConfig(**first))
    before = bytes_of(tmp_path / "local")
    pack(PackConfig(**{**more, "out": tmp_path / "local"}))
    after = bytes_of(tmp_path / "local")
    new = sorted(name for name in after if name.startswith("shards/") and name not in before)
    assert len(new) >= 2
    for name in [new[1], "report.json", "manifest.json"]:
        for there, content in before.items():
            store.pipe_file(f"bucket/sets/one/{there}", content)
        call = {**more, "out": URL, "work_dir": tmp_path / Path(name).name}
        killed_at(server, call, name=name)
        if name != "manifest.json":
            read_as(before, cache=tmp_path / "reader")
        server.requests.clear()
        pack(PackConfig(**call))
        assert new[0] not in uploads(server), "it was there"
        assert objects(store) == after
        store.rm("bucket/sets", recursive=True)
