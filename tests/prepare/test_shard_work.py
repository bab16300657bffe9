"""Shards are made by whoever is there, each by itself: the bytes are the same, and a stop or a death leaves nothing."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.config.pack import PackConfig
from sftprep.data import PackPlan
from sftprep.errors import DataError, OutputError, ShardError
from sftprep.prepare import audit_tally, workers
from sftprep.prepare import pack as pack_module
from sftprep.prepare.audit_tally import Tally, tally
from sftprep.prepare.pack import pack
from sftprep.prepare.shard_work import MadeShard, ShardTask, make_shard
from sftprep.shards import gather as gather_module
from sftprep.shards import part as part_module
from sftprep.shards.gather import shard_rows, shard_size
from sftprep.shards.read import open_shard_set
from sftprep.stages.mask_audit import audit_batch
from tests.prepare.test_resume import Stops, bytes_of, hidden, options, rows

MAKE = pack_module.make_shards


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Enough rows for several shards of several row groups."""
    monkeypatch.setattr(gather_module, "BATCH_TOKENS", 1 << 10)
    return {**options(tmp_path / "chats.jsonl", tmp_path / "out", rows(300)), "shard_tokens": 1 << 11}


@pytest.fixture
def published(call: dict[str, Any], tmp_path: Path) -> dict[str, bytes]:
    """What one process makes of the rows."""
    alone = tmp_path / "alone"
    pack(PackConfig(**{**call, "out": alone}))
    found = bytes_of(alone)
    assert sum(name.startswith("shards/") for name in found) >= 5
    return found


def by_children(monkeypatch: pytest.MonkeyPatch, make: Callable[[ShardTask], MadeShard] = make_shard) -> None:
    """Children make the shards in this way, however few tokens these have."""
    monkeypatch.setattr(workers, "_WORTH_A_START", 0)
    monkeypatch.setattr(workers, "make_shard", make)


def dying_once(told: Path, task: ShardTask) -> MadeShard:
    """The third shard is half written when the process that has it is killed; whoever tries again makes it."""
    if task.number == 2 and not told.exists():
        told.touch()
        place = task.job.directory / "shards" / "part-00002.parquet"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return make_shard(task)


def dying(task: ShardTask) -> MadeShard:
    if task.number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return make_shard(task)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def on_a_full_disk(task: ShardTask) -> MadeShard:
    with pytest.MonkeyPatch.context() as patch:
        if task.number == 3:
            patch.setattr(part_module.os, "fsync", full)
        return make_shard(task)


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_children_make_the_bytes_that_one_process_makes_h5(
    call: dict[str, Any], published: dict[str, bytes], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_children(monkeypatch, partial(noting, call["out"].parent))
    pack(PackConfig(**{**call, "workers": count}))
    assert bytes_of(call["out"]) == published
    makers = {path.read_text() for path in call["out"].parent.glob("made-*")}
    assert makers, "shards were made"
    assert str(os.getpid()) not in makers, "by children"


def noting(folder: Path, task: ShardTask) -> MadeShard:
    (folder / f"made-{task.number}").write_text(str(os.getpid()))
    return make_shard(task)


@pytest.mark.slow
def test_a_set_of_one_shard_is_made_by_a_child_too_h5(call: dict[str, Any], tmp_path: Path) -> None:
    one = {**call, "shard_tokens": 1 << 26}
    pack(PackConfig(**one))
    pack(PackConfig(**{**one, "out": tmp_path / "two", "workers": 2}))
    assert bytes_of(tmp_path / "two") == bytes_of(call["out"])
    assert len(list((call["out"] / "shards").iterdir())) == 1


@pytest.mark.slow
def test_shards_of_a_child_that_dies_are_made_by_another_h4(
    call: dict[str, Any], published: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_children(monkeypatch, partial(dying_once, tmp_path / "died"))
    pack(PackConfig(**{**call, "workers": 2}))
    assert (tmp_path / "died").exists()
    assert bytes_of(call["out"]) == published


@pytest.mark.slow
def test_a_shard_that_ends_its_child_twice_is_an_error_and_what_is_compiled_is_kept_h4(
    call: dict[str, Any], published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as deadly:
        by_children(deadly, dying)
        with pytest.raises(DataError) as caught:
            pack(PackConfig(**{**call, "workers": 2}))
    assert (caught.value.code, caught.value.place) == ("worker-died", f"{call['out']}, shard 2")
    assert not call["out"].exists()
    assert [name.split("-")[0] for name in hidden(call["out"].parent)] == [".out.spool"]
    assert multiprocessing.active_children() == []
    again = Stops(monkeypatch)
    pack(PackConfig(**{**call, "workers": 2}))
    assert (again.num_asked, bytes_of(call["out"])) == (0, published), "nothing was compiled again"


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_child_is_the_parent_s_error_and_nothing_is_left_h4(
    call: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_children(monkeypatch, on_a_full_disk)
    with pytest.raises(OutputError) as caught:
        pack(PackConfig(**{**call, "workers": 2}))
    assert (caught.value.code, caught.value.place) == ("disk-full", str(call["out"]))
    assert not call["out"].exists()
    assert [name.split("-")[0] for name in hidden(call["out"].parent)] == [".out.spool"]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("count", [1, 2])
def test_a_stop_between_shards_ends_the_children_before_their_place_is_removed(
    call: dict[str, Any], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    def stopping(tasks: list[ShardTask], **how: Any) -> Any:
        for number, made in enumerate(MAKE(tasks, **how)):
            if number == 1:
                raise KeyboardInterrupt
            yield made

    by_children(monkeypatch)
    monkeypatch.setattr(pack_module, "make_shards", stopping)
    with pytest.raises(KeyboardInterrupt):
        pack(PackConfig(**{**call, "workers": count}))
    assert not call["out"].exists()
    assert [name.split("-")[0] for name in hidden(call["out"].parent)] == [".out.spool"]
    assert multiprocessing.active_children() == []


def test_a_shard_that_is_not_on_the_disk_as_it_was_counted_is_not_published(
    call: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    close = part_module._Part.close

    def miscounted(part: Any) -> Any:
        part.num_rows += 1
        return close(part)

    monkeypatch.setattr(part_module._Part, "close", miscounted)
    with pytest.raises(ShardError, match="count-mismatch") as caught:
        pack(PackConfig(**call))
    assert caught.value.code == "audit-failed"
    assert not call["out"].exists()


@pytest.mark.slow
def test_what_is_added_to_a_set_is_the_same_by_children_and_all_of_it_is_audited_h5(
    call: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_children(monkeypatch)
    more = options(tmp_path / "more.jsonl", tmp_path / "out", rows(150, words=5))
    found = []
    for count in (1, 2):
        out = tmp_path / f"set-{count}"
        pack(PackConfig(**{**call, "out": out}))
        added = {**call, "sources": more["sources"], "out": out, "append": True, "workers": count}
        result = pack(PackConfig(**added))
        assert result.report.audit.num_rows == result.shards.num_rows
        found.append({name: data for name, data in bytes_of(out).items() if "report" not in name})
    assert found[0] == found[1]


@pytest.mark.parametrize("tokens", [1, 1 << 20, 3_000_000, 1 << 24, 40_000_000, 1 << 30, 5_000_000_000])
def test_a_set_has_sixteen_shards_at_the_most_until_they_are_as_large_as_they_may_be(tokens: int) -> None:
    each = 100_000
    lengths = np.full(-(-tokens // each), each)
    order = np.arange(len(lengths))
    parts = list(shard_rows(PackPlan(order, np.arange(len(order) + 1)), lengths, shard_tokens=shard_size(tokens)))
    largest = max(part.num_tokens for part in parts)
    assert largest <= (1 << 26) + gather_module.BATCH_TOKENS + each
    assert len(parts) <= 16 or min(part.num_tokens for part in parts[:-1]) >= 1 << 26
    assert len(parts) == 1 if tokens <= 1 << 20 else len(parts) > 1
    assert tokens < 1 << 24 or len(parts) > 10


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_row_is_in_one_shard_and_each_but_the_last_has_its_tokens(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=40))
    lengths = np.array(data.draw(st.lists(st.sampled_from([5, 10, 25, 50]), min_size=sum(sizes), max_size=sum(sizes))))
    order = np.random.default_rng(0).permutation(sum(sizes))
    whole = PackPlan(order=order, offsets=np.cumsum([0, *sizes]))
    asked = data.draw(st.sampled_from([1, 50, 100, 300, 1 << 62]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather_module, "BATCH_TOKENS", 50)
        parts = list(shard_rows(whole, lengths, shard_tokens=asked))
    assert np.concatenate([part.plan.order for part in parts]).tolist() == order.tolist()
    assert np.concatenate([np.diff(part.plan.offsets) for part in parts]).tolist() == sizes
    for part in parts:
        assert part.num_tokens == lengths[part.plan.order].sum()
        assert part.groups[0] == 0
        assert part.groups[-1] == part.plan.num_packs
        assert (np.diff(part.groups) > 0).all()
    assert all(part.num_tokens >= asked for part in parts[:-1])
    # Without its last row group a shard has not what is asked for yet.
    before = [part.plan.order[: part.plan.offsets[part.groups[-2]]] for part in parts]
    assert all(lengths[docs].sum() < asked for docs in before)


def test_shards_that_are_counted_apart_come_to_what_all_rows_come_to(call: dict[str, Any]) -> None:
    result = pack(PackConfig(**call))
    shards = open_shard_set(call["out"])
    facts = audit_tally.audit_facts(shards)
    total = Tally.of(facts.num_sources)
    for batch in shards.iter_batches():
        total.add(audit_batch(batch, facts=facts), first=total.num_read)
        total.num_read += batch.num_rows
    apart = tally(shards)
    for name in ("num_read", "num_rows", "num_tokens", "num_trained", "turns", "stopped", "stops", "found"):
        assert getattr(apart, name) == getattr(total, name)
    for name in ("kind_tokens", "kind_trained", "source_documents", "source_trained", "share_bins"):
        assert getattr(apart, name).tolist() == getattr(total, name).tolist()
    for name in ("lengths", "trained_lengths", "row_lengths"):
        assert getattr(apart, name).counts.tolist() == getattr(total, name).counts.tolist()
    for name in ("longest", "most_trained", "least_trained"):
        assert getattr(apart, name).rows == getattr(total, name).rows
    assert apart.weight_sum == pytest.approx(result.shards.manifest.counts.weight_sum)
    assert max(apart.longest.rows) >= shards.manifest.shards[0].num_rows, "rows are numbered through all shards"
