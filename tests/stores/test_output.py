"""A set is published in an object store whole or not at all, by one pack at a time, which the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from sftprep.config.audit import AuditConfig
from sftprep.config.pack import PackConfig
from sftprep.config.places import place_of
from sftprep.errors import DataError, OutputError, SftprepError, ShardError
from sftprep.prepare import pack as pack_module
from sftprep.prepare.audit import audit
from sftprep.prepare.pack import pack
from sftprep.shards.cache import open_set
from sftprep.stores import access
from tests.prepare.test_resume import bytes_of, options, rows

if TYPE_CHECKING:
    from tests.stores.s3 import Server

pytest_plugins = ("tests.stores.s3",)

URL = "s3://bucket/sets/one"


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A set of several shards, with weights and rows that are left out."""
    monkeypatch.setattr("sftprep.shards.gather.BATCH_TOKENS", 2048)
    options_ = options(tmp_path / "chats.jsonl", tmp_path / "out", rows(400))
    return {**options_, "shard_tokens": 4096, "out": URL, "work_dir": tmp_path / "work"}


@pytest.fixture
def published(call: dict[str, Any], tmp_path: Path) -> dict[str, bytes]:
    """The same set in a directory."""
    pack(PackConfig(**{**call, "out": tmp_path / "local"}))
    found = bytes_of(tmp_path / "local")
    assert sum(name.startswith("shards/") for name in found) >= 4
    return found


def objects(store: Any) -> dict[str, bytes]:
    """What is there, as `bytes_of` tells it of a directory: without the file that is of the run."""
    names = [name for name in everything(store) if name != "run.json"]
    return {name: store.cat_file(f"bucket/sets/one/{name}") for name in names}


def everything(store: Any) -> list[str]:
    store.invalidate_cache()
    return [name.removeprefix("bucket/sets/one/") for name in store.find("bucket/sets/one")]


def uploads(server: Server) -> list[str]:
    """Names of the objects that were put, in order."""
    return [path.partition("/sets/one/")[2] for method, path in server.requests if method == "PUT"]


def failing_after(count: int) -> Any:
    """A fault that lets so many shards in and then nothing else."""
    seen: list[str] = []

    def fault(method: str, path: str) -> str:
        if method == "PUT" and "/shards/" in path:
            seen.append(path)
        return "fail" if len(seen) > count else ""

    return fault


def test_the_bytes_are_those_of_a_directory_and_the_manifest_comes_last(
    call: dict[str, Any], published: dict[str, bytes], store: Any, server: Server
) -> None:
    result = pack(PackConfig(**call))
    assert objects(store) == published
    order = uploads(server)
    assert sorted(order) == sorted([*everything(store), "packing.json"])
    assert len(order) == len(set(order)), "each object is put once"
    assert order[0] == "packing.json"
    assert order[-1] == "manifest.json"
    assert not list(call["work_dir"].glob("*/set"))
    assert result.shards.num_rows == sum(batch.num_rows for batch in result.shards.iter_batches(["num_trained"]))


def test_shards_are_uploaded_as_they_are_finished(
    call: dict[str, Any], store: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards, there = pack_module.make_shards, []

    def watched(*args: Any, **options: Any) -> Any:
        for made in make_shards(*args, **options):
            there.append(len(uploads(server)))
            yield made

    monkeypatch.setattr(pack_module, "make_shards", watched)
    pack(PackConfig(**call))
    assert there[-1] >= 3, "the claim and the first shards, when the last was not yet known to be finished"


def test_the_same_pack_again_does_nothing(call: dict[str, Any], store: Any, server: Server) -> None:
    pack(PackConfig(**call))
    server.requests.clear()
    again = pack(PackConfig(**call))
    assert again.unchanged
    assert uploads(server) == []
    assert again.report.audit.passed


@pytest.mark.parametrize("shards", [0, 2])
def test_a_store_that_fails_in_the_middle_is_gone_on_with_by_the_same_command(
    call: dict[str, Any], published: dict[str, bytes], store: Any, server: Server, shards: int
) -> None:
    server.fault = failing_after(shards)
    with pytest.raises(OutputError) as caught:
        pack(PackConfig(**call))
    assert (caught.value.code, caught.value.place) == ("store-failed", URL)
    assert "manifest.json" not in objects_without_fault(server, store)
    with pytest.raises(ShardError, match="no manifest"):
        open_set(place_of(URL), cache_dir=call["work_dir"] / "c", cache_gb=1)
    server.requests.clear()
    pack(PackConfig(**call))
    assert objects(store) == published
    assert (
        len([name for name in uploads(server) if name.startswith("shards/")])
        == len([name for name in published if name.startswith("shards/")]) - shards
    ), "what was uploaded is not uploaded again"


def objects_without_fault(server: Server, store: Any) -> dict[str, bytes]:
    server.fault = lambda method, path: ""
    return objects(store)


def test_a_server_that_is_stopped_and_started_again_loses_nothing(
    call: dict[str, Any], published: dict[str, bytes], store: Any, server: Server
) -> None:
    stopping = threading_stop(server)
    server.fault = stopping
    try:
        with pytest.raises(SftprepError) as caught:
            pack(PackConfig(**call))
        assert caught.value.code == "store-failed"
    finally:
        server.start()
    server.fault = lambda method, path: ""
    pack(PackConfig(**call))
    assert objects(store) == published


def threading_stop(server: Server) -> Any:
    """A fault that takes the server down when the second shard comes."""
    seen: list[str] = []

    def fault(method: str, path: str) -> str:
        if method == "PUT" and "/shards/" in path:
            seen.append(path)
        if len(seen) == 2:
            server.stop()
            return "fail"
        return ""

    return fault


def killed_at(server: Server, call: dict[str, Any], *, name: str) -> None:
    """Run the command and SIGKILL it when the store has taken an object of this name."""
    words = ["--source", call["sources"][0], "--model", call["model"], "--out", URL, "--max-length", "2048"]
    limits = ["--max-drop", "10%", "--shard-tokens", "4096", "--work-dir", str(call["work_dir"])]
    limits += ["--append"] if call.get("append") else []
    process = subprocess.Popen([sys.executable, "-m", "sftprep", "pack", *words, *limits], stderr=subprocess.DEVNULL)

    def kill(method: str, path: str) -> None:
        if method == "PUT" and path.endswith(name) and process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

    server.after = kill
    assert process.wait() == -signal.SIGKILL
    server.after = lambda method, path: None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pack_that_is_killed_while_it_uploads_is_gone_on_with(tmp_path: Path, store: Any, server: Server) -> None:
    # H5: the manifest is the last object; until it is there nobody finds a set, and nothing is done twice.
    few = {**options(tmp_path / "chats.jsonl", tmp_path / "local", rows(1200, words=300)), "shard_tokens": 4096}
    pack(PackConfig(**few))
    published = bytes_of(tmp_path / "local")
    assert "shards/part-00002.parquet" in published
    for name in ["packing.json", "part-00002.parquet", "report.json", "manifest.json"]:
        call = {**few, "out": URL, "work_dir": tmp_path / name}
        killed_at(server, call, name=name)
        if name != "manifest.json":
            assert "manifest.json" not in objects(store)
            with pytest.raises(OutputError) as caught:
                pack(PackConfig(**{**call, "work_dir": tmp_path / "elsewhere"}))
            assert caught.value.code == "output-busy", "another machine does not know whether the first one is dead"
        server.requests.clear()
        pack(PackConfig(**call))
        assert objects(store) == published
        again = [path for path in uploads(server) if path.startswith("shards/")]
        assert ("shards/part-00000.parquet" in again) == (name == "packing.json")
        store.rm("bucket/sets", recursive=True)


def test_a_place_that_another_machine_has_claimed_is_refused_and_left_as_it_is(
    call: dict[str, Any], store: Any
) -> None:
    claim = json.dumps({"token": "theirs", "host": "there"}).encode()
    store.pipe_file("bucket/sets/one/packing.json", claim)
    with pytest.raises(OutputError, match="there") as caught:
        pack(PackConfig(**call))
    assert (caught.value.code, caught.value.exit_code) == ("output-busy", 2)
    assert objects(store) == {"packing.json": claim}


def test_of_two_that_claim_a_place_at_one_moment_the_store_takes_one(
    call: dict[str, Any], store: Any, server: Server
) -> None:
    theirs = json.dumps({"token": "theirs"}).encode()

    def fault(method: str, path: str) -> str:
        if method == "PUT" and path.endswith("packing.json"):
            server.fault = lambda method, path: ""
            store_of_another().pipe_file("bucket/sets/one/packing.json", theirs)
        return ""

    server.fault = fault
    with pytest.raises(OutputError) as caught:
        pack(PackConfig(**call))
    assert caught.value.code == "output-busy"
    assert objects(store) == {"packing.json": theirs}


def store_of_another() -> Any:
    import s3fs  # an extra that not every test here needs

    return s3fs.S3FileSystem(skip_instance_cache=True)


def test_two_packs_of_one_machine_are_refused_by_its_lock(
    call: dict[str, Any], store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[str] = []
    make_shards = pack_module.make_shards

    def meanwhile(*args: Any, **options: Any) -> Any:
        with pytest.raises(OutputError) as caught:
            pack(PackConfig(**call))
        codes.append(f"{caught.value.code} {caught.value.place}")
        return make_shards(*args, **options)

    monkeypatch.setattr(pack_module, "make_shards", meanwhile)
    pack(PackConfig(**call))
    assert codes == [f"output-busy {URL}"]
    assert "manifest.json" in objects(store)


def test_another_set_is_replaced_only_where_that_is_asked_for_and_nothing_of_it_stays(
    call: dict[str, Any], published: dict[str, bytes], store: Any
) -> None:
    pack(PackConfig(**{**call, "shard_tokens": 1024}))
    before = objects(store)
    assert len(before) > len(published)
    with pytest.raises(OutputError) as caught:
        pack(PackConfig(**call))
    assert caught.value.code == "output-other-shards"
    assert objects(store) == before
    store.pipe_file("bucket/sets/one/notes.txt", b"mine")
    pack(PackConfig(**call, overwrite=True))
    assert objects(store) == {**published, "notes.txt": b"mine"}


def test_while_a_set_is_replaced_readers_find_none(call: dict[str, Any], store: Any, server: Server) -> None:
    pack(PackConfig(**{**call, "seed": 1}))
    server.fault = failing_after(1)
    with pytest.raises(OutputError):
        pack(PackConfig(**call, overwrite=True))
    assert "manifest.json" not in objects_without_fault(server, store)


def test_objects_that_are_no_set_are_neither_replaced_nor_joined(call: dict[str, Any], store: Any) -> None:
    store.pipe_file("bucket/sets/one/notes.txt", b"mine")
    with pytest.raises(OutputError) as caught:
        pack(PackConfig(**call, overwrite=True))
    assert caught.value.code == "output-not-empty"
    assert objects(store) == {"notes.txt": b"mine"}


def test_what_the_data_is_refused_for_leaves_nothing_in_the_store(call: dict[str, Any], store: Any) -> None:
    with pytest.raises(DataError):
        pack(PackConfig(**{**call, "max_drop": "0"}))
    assert everything(store) == []


def test_an_audit_that_fails_leaves_nothing_in_the_store(
    call: dict[str, Any], store: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise DataError("a mask is wrong", code="audit-failed")

    monkeypatch.setattr(pack_module, "refuse_failed", refused)
    with pytest.raises(DataError):
        pack(PackConfig(**call))
    assert any(name.startswith("shards/") for name in uploads(server))
    assert everything(store) == []


def test_a_published_set_that_lost_a_shard_is_named_and_mended_by_overwrite(
    call: dict[str, Any], published: dict[str, bytes], store: Any
) -> None:
    pack(PackConfig(**call))
    store.rm_file("bucket/sets/one/shards/part-00001.parquet")
    with pytest.raises(ShardError) as caught:
        pack(PackConfig(**call))
    assert (caught.value.code, caught.value.place) == ("missing-shard", f"{URL}/shards/part-00001.parquet")
    pack(PackConfig(**call, overwrite=True))
    assert objects(store) == published


def test_a_store_that_refuses_the_credentials_is_named_at_once(
    call: dict[str, Any], store: Any, server: Server
) -> None:
    server.fault = lambda method, path: "refuse"
    with pytest.raises(SftprepError) as caught:
        pack(PackConfig(**call))
    assert (caught.value.code, caught.value.exit_code, caught.value.place) == ("no-access", 2, URL)
    assert 0 < len(server.requests) == len(set(server.requests)), "nothing is asked again"


def test_a_bucket_that_is_not_there_is_named_at_once(
    call: dict[str, Any], store: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "FIRST_PAUSE_SECONDS", 60)
    with pytest.raises(OutputError, match="bucket does not exist") as caught:
        pack(PackConfig(**{**call, "out": "s3://another/sets/one"}))
    assert (caught.value.code, caught.value.place) == ("store-failed", "s3://another/sets/one")


def test_a_url_that_became_a_path_is_refused() -> None:
    with pytest.raises(ValidationError, match="rest of a URL"):
        PackConfig(files=("a",), model="m", out=Path(URL), max_length=8)


def test_a_remote_set_is_audited_and_proven_and_carries_its_certificate(
    call: dict[str, Any], store: Any, tmp_path: Path
) -> None:
    pack(PackConfig(**call))
    found = audit(AuditConfig(directory=URL, cache_dir=tmp_path / "copies", prove=True, fail_on=("parity",)))
    assert found.report.passed
    assert found.report.directory == URL
    assert len(list(found.rows(found.chosen()))) == 1
    assert json.loads(objects(store)["parity.json"])["sources"][0]["state"] == "read"
    pack(PackConfig(**{**call, "out": tmp_path / "local"}))
    local = audit(AuditConfig(directory=tmp_path / "local")).report
    assert found.report.model_copy(update={"directory": "", "parity": None, "gates": []}) == local.model_copy(
        update={"directory": "", "parity": None, "gates": []}
    )


def test_an_audit_of_a_set_whose_shard_has_other_bytes_is_refused(
    call: dict[str, Any], store: Any, tmp_path: Path
) -> None:
    pack(PackConfig(**call))
    key = "bucket/sets/one/shards/part-00001.parquet"
    content = store.cat_file(key)
    store.pipe_file(key, content[:200] + bytes([content[200] ^ 1]) + content[201:])
    with pytest.raises(ShardError) as caught:
        audit(AuditConfig(directory=URL, cache_dir=tmp_path / "copies"))
    assert (caught.value.code, caught.value.place) == ("shard-checksum", f"s3://{key}")


def test_an_object_that_the_store_took_and_does_not_have_is_named_before_the_manifest_comes(
    call: dict[str, Any], store: Any, server: Server
) -> None:
    def lose(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("report.json"):
            store_of_another().rm_file("bucket/sets/one/report.json")

    server.after = lose
    with pytest.raises(OutputError, match=r"report\.json") as caught:
        pack(PackConfig(**call))
    assert caught.value.code == "store-failed"
    assert "manifest.json" not in objects(store)


def test_uploads_that_fail_a_few_times_are_tried_again(
    call: dict[str, Any], published: dict[str, bytes], store: Any, server: Server
) -> None:
    failed: list[str] = []

    def fault(method: str, path: str) -> str:
        if method == "PUT" and failed.count(path) < access.TRIES - 1:
            failed.append(path)
            return "fail"
        return ""

    server.fault = fault
    pack(PackConfig(**call))
    server.fault = lambda method, path: ""
    assert objects(store) == published
