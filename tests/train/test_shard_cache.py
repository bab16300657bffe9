"""Shards of an object store, read through a bounded cache: the same steps as from a disk, nothing unverified, and the
next shards there before they are needed. The store is the server of tests/stores, which speaks S3.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sftprep.config.train import TrainConfig
from sftprep.errors import SftprepError, ShardError, UsageError
from sftprep.shards.cache import ShardCache
from sftprep.shards.read import ShardSet, open_shard_set
from sftprep.train import run, stream
from sftprep.train.rows import RowReader
from sftprep.train.run import train
from sftprep.train.shard_cache import ReadAhead, open_set
from sftprep.train.stream import Schedule
from tests.train.conftest import write_set
from tests.train.runs import metrics_of, stopping_after

ShardSetFactory = Callable[..., Path]
URL = "s3://bucket/sets/one"
pytest_plugins = ("tests.stores.s3",)


def _upload(store: Any, directory: Path) -> None:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            store.pipe_file(f"bucket/sets/one/{path.relative_to(directory)}", path.read_bytes())


def _config(place: str | Path, model: Path, out: Path, **options: Any) -> TrainConfig:
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1, "epochs": 2} | options
    return TrainConfig(data=place, model=str(model), out=out, **settings)


def _run(config: TrainConfig) -> list[float]:
    train(config, console=Console(quiet=True))
    return [line["loss"] for line in metrics_of(config.out / "metrics.jsonl")]


def _remote(cache: Path, *, shards_of_room: float, data: Path) -> tuple[ShardSet, ShardCache]:
    largest = max(shard.num_bytes for shard in open_shard_set(data).manifest.shards)
    config = _config(URL, Path("m"), Path("o"), cache_dir=cache, cache_gb=shards_of_room * largest / 1e9)
    opened = open_set(config.data, config)
    assert isinstance(opened.copies, ShardCache)
    return opened, opened.copies


def _size(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.rglob("*.parquet*"))


def test_a_run_from_a_store_takes_the_steps_of_a_run_from_a_disk_and_writes_the_same_model(
    store: Any, shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set(num_rows=10)
    _upload(store, data)
    from_disk = _run(_config(data, toy_model, tmp_path / "disk"))
    from_store = _run(_config(URL, toy_model, tmp_path / "store", cache_dir=tmp_path / "cache", eval_shards=URL))
    assert from_store == from_disk
    for name in ("model.safetensors", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "disk" / name).read_bytes()


def test_a_run_from_a_store_resumes_and_a_second_run_fetches_nothing(
    store: Any, shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shard_set(num_rows=10)
    _upload(store, data)
    whole = _run(_config(data, toy_model, tmp_path / "whole"))
    config = _config(URL, toy_model, tmp_path / "out", cache_dir=tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(run, "run_steps", stopping_after(3))
        with pytest.raises(SftprepError, match="asked to stop"):
            _run(config)
    monkeypatch.setattr(ShardCache, "_copy", lambda *_: pytest.fail("fetched again"))
    assert _run(config.model_copy(update={"resume": True})) == whole


def test_the_cache_never_takes_more_than_it_may_and_every_row_is_read(
    store: Any, shard_set: ShardSetFactory, tmp_path: Path
) -> None:
    data = write_set(tmp_path / "many", num_rows=36, num_shards=12)
    _upload(store, data)
    cache = tmp_path / "cache"
    opened, copies = _remote(cache, shards_of_room=3, data=data)
    largest = max(shard.num_bytes for shard in opened.manifest.shards)
    reader, wanted = RowReader(opened), RowReader(open_shard_set(data))
    assert copies.num_fetched == 0, "footers and small columns need no copies"
    assert np.array_equal(opened.scalars().weight_sum, open_shard_set(data).scalars().weight_sum)
    for index in range(36):
        assert np.array_equal(reader.row(index).ids, wanted.row(index).ids)
        assert _size(cache) <= 3 * largest
    assert copies.num_fetched == 12


def test_shards_of_the_steps_to_come_are_there_before_a_step_needs_them(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SHARDS_A_WINDOW", 2)
    monkeypatch.setattr(stream, "GROUPS_A_WINDOW", 2)
    data = write_set(tmp_path / "many", num_rows=36, num_shards=12)
    _upload(store, data)
    opened, copies = _remote(tmp_path / "cache", shards_of_room=6.5, data=data)
    reader = RowReader(opened)
    monkeypatch.setattr("sftprep.train.rows.GROUPS_A_WINDOW", 2)
    groups = {"group_rows": reader.group_rows, "shard_groups": reader.shard_groups}
    schedule = Schedule(num_rows=36, rows_per_step=3, seed=4, **groups)
    first, *_ = coming = ReadAhead(opened, schedule, step=0).upcoming(0)
    assert sorted(coming) == list(range(12))
    with ReadAhead(opened, schedule, step=0) as ahead:
        for step in range(schedule.steps_per_epoch):
            deadline = time.monotonic() + 1200
            soon = [opened.directory / opened.manifest.shards[number].file for number in ahead.upcoming(step)[:4]]
            while not all(path.is_file() for path in soon) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert all(path.is_file() for path in soon), f"nobody fetched what step {step} is about to need"
            for row in schedule.rows(step):
                reader.row(int(row))
            ahead.at(step + 1)
    assert copies.num_late == 0
    assert 12 <= copies.num_fetched <= 12 + 6, "a shard is fetched once an epoch, and the next epoch's first ones"
    assert first == int(np.searchsorted(np.cumsum([3] * 12), schedule.rows(0)[0], side="right"))


def test_processes_that_share_a_cache_fetch_each_shard_once(
    store: Any, shard_set: ShardSetFactory, tmp_path: Path
) -> None:
    data = write_set(tmp_path / "many", num_rows=12, num_shards=4)
    _upload(store, data)
    sets = [_remote(tmp_path / "cache", shards_of_room=9, data=data) for _ in range(2)]

    def read(opened: ShardSet) -> None:
        reader = RowReader(opened)
        for index in range(12):
            reader.row(index)

    threads = [threading.Thread(target=read, args=(opened,)) for opened, _ in sets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(copies.num_fetched for _, copies in sets) == 4


def test_a_shard_whose_bytes_are_not_the_manifests_is_refused_and_leaves_nothing(
    store: Any, shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set()
    _upload(store, data)
    key = next(key for key in store.find("bucket") if key.endswith("00001.parquet"))
    content = store.cat_file(key)
    store.pipe_file(key, content[:200] + bytes([content[200] ^ 1]) + content[201:])
    with pytest.raises(ShardError, match="sha256") as raised:
        _run(_config(URL, toy_model, tmp_path / "out", cache_dir=tmp_path / "cache"))
    assert raised.value.code == "shard-checksum"
    assert raised.value.place.startswith("s3://bucket/sets/one/shards/")
    assert not list((tmp_path / "cache").rglob("*00001.parquet*"))
    assert not (tmp_path / "out").exists()


def test_a_copy_that_was_damaged_on_the_disk_is_fetched_again(
    store: Any, shard_set: ShardSetFactory, tmp_path: Path
) -> None:
    data = shard_set()
    _upload(store, data)
    opened, copies = _remote(tmp_path / "cache", shards_of_room=9, data=data)
    path = copies.local(opened.manifest.shards[0])
    os.truncate(path, 100)
    opened, copies = _remote(tmp_path / "cache", shards_of_room=9, data=data)
    assert copies.local(opened.manifest.shards[0]).read_bytes() == (data / opened.manifest.shards[0].file).read_bytes()
    assert copies.num_fetched == 1


def test_what_a_killed_process_left_half_copied_goes(store: Any, shard_set: ShardSetFactory, tmp_path: Path) -> None:
    data = shard_set()
    _upload(store, data)
    opened, copies = _remote(tmp_path / "cache", shards_of_room=9, data=data)
    left = opened.directory / "shards" / ".part-00001.parquet.partial"
    left.parent.mkdir()
    left.write_bytes(b"half")
    copies.local(opened.manifest.shards[0])
    assert not left.exists()


def test_a_shard_that_is_gone_is_named(store: Any, shard_set: ShardSetFactory, tmp_path: Path) -> None:
    data = shard_set()
    _upload(store, data)
    opened, copies = _remote(tmp_path / "cache", shards_of_room=9, data=data)
    store.rm("bucket/sets/one/shards", recursive=True)
    with pytest.raises(ShardError) as raised:
        copies.local(opened.manifest.shards[0])
    assert raised.value.code == "missing-shard"
    assert raised.value.place == f"{URL}/{opened.manifest.shards[0].file}"


def test_a_cache_without_room_for_two_shards_is_refused(store: Any, shard_set: ShardSetFactory, tmp_path: Path) -> None:
    data = shard_set()
    _upload(store, data)
    with pytest.raises(UsageError) as raised:
        _remote(tmp_path / "cache", shards_of_room=1.5, data=data)
    assert raised.value.code == "cache-too-small"
