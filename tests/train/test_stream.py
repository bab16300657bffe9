"""Order, labels and batches, on literals and on random rows."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.errors import TrainError
from sftprep.train.stream import (
    GROUPS_A_WINDOW,
    SHARDS_A_WINDOW,
    Layout,
    Row,
    Schedule,
    buckets,
    collate_packed,
    collate_padded,
    micro_batches,
)

PAD_AND_EOS = 2


def _row(ids: list[int], trained: list[int], lengths: list[int], *, index: int = 0) -> Row:
    return Row(
        index=index,
        ids=np.array(ids, np.int32),
        trained=np.array(trained, bool),
        lengths=np.array(lengths, np.int32),
        weights=np.arange(1, len(ids) + 1, dtype=np.float32) * np.array(trained, np.float32),
    )


@st.composite
def rows(draw: st.DrawFn) -> Row:
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    total = sum(lengths)
    trained = draw(st.lists(st.booleans(), min_size=total, max_size=total))
    for start in np.cumsum([0, *lengths[:-1]]):
        trained[int(start)] = False
    ids = draw(st.lists(st.integers(0, 5), min_size=total, max_size=total))
    return _row(ids, [int(bit) for bit in trained], lengths)


def test_a_target_is_predicted_at_the_position_before_it() -> None:
    batch = collate_packed([_row([7, 8, 9, 5, 6], [0, 1, 1, 0, 1], [3, 2])])
    assert batch["rows"].tolist() == [0, 1, 3]
    assert batch["targets"].tolist() == [8, 9, 6]


@pytest.mark.parametrize("collate", [collate_packed, lambda rows: collate_padded(rows[0].documents(), pad_id=0)])
def test_a_trained_first_token_of_a_document_is_refused_f4(collate: Any) -> None:
    with pytest.raises(TrainError) as raised:
        collate([_row([7, 8, 9], [0, 0, 1], [2, 1])])
    assert raised.value.code == "border-trained"


def test_targets_know_the_source_of_their_document() -> None:
    sourced = replace(_row([7, 8, 9, 5, 6], [0, 1, 1, 0, 1], [3, 2]), sources=np.array([4, 1], np.int32))
    empty = replace(_row([3, 3], [0, 0], [2]), sources=np.array([2], np.int32))
    assert collate_packed([sourced, empty, sourced])["sources"].tolist() == [4, 4, 1, 4, 4, 1]
    assert collate_padded([*sourced.documents(), *empty.documents()], pad_id=0)["sources"].tolist() == [4, 4, 1]


def test_packs_of_one_batch_lie_end_to_end_with_positions_from_zero() -> None:
    batch = collate_packed([_row([7, 8, 9], [0, 1, 0], [2, 1]), _row([4, 5], [0, 1], [2])])
    assert batch["input_ids"].tolist() == [[7, 8, 9, 4, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 0, 1]]
    assert batch["offsets"] == (0, 2, 3, 5)
    assert batch["rows"].tolist() == [0, 3]
    assert batch["targets"].tolist() == [8, 5]
    assert batch["weights"].tolist() == [2.0, 2.0]


def test_padding_is_decided_by_length_and_leaves_every_trained_eos_b1() -> None:
    documents = [_row([5, 6, PAD_AND_EOS], [0, 1, 1], [3]), _row([5, PAD_AND_EOS], [0, 1], [2])]
    batch = collate_padded(documents, pad_id=PAD_AND_EOS)
    assert batch["input_ids"].tolist() == [[5, 6, PAD_AND_EOS], [5, PAD_AND_EOS, PAD_AND_EOS]]
    assert int((batch["targets"] == PAD_AND_EOS).sum()) == 2
    assert batch["rows"].tolist() == [0, 1, 3]
    assert batch["num_tokens"] == 5


@given(st.lists(rows(), min_size=1, max_size=4), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_every_layout_trains_the_same_targets_with_the_same_weights(given_rows: list[Row], size: int) -> None:
    def trained(layout: Layout) -> list[tuple[int, float]]:
        batches = list(micro_batches(given_rows, size=size, layout=layout, pad_id=PAD_AND_EOS))
        pairs = [zip(b["targets"].tolist(), b["weights"].tolist(), strict=True) for b in batches]
        return sorted(pair for batch in pairs for pair in batch)

    wanted = sorted(
        (int(i), float(w)) for row in given_rows for i, w, t in zip(row.ids, row.weights, row.trained, strict=True) if t
    )
    assert trained(Layout.SEGMENTS) == trained(Layout.UNPACKED) == wanted


@given(rows())
@settings(max_examples=60, deadline=None)
def test_no_target_crosses_a_document_border(row: Row) -> None:
    batch = collate_packed([row])
    document = np.repeat(np.arange(len(row.lengths)), row.lengths)
    for position, target in zip(batch["rows"].tolist(), batch["targets"].tolist(), strict=True):
        assert document[position] == document[position + 1]
        assert row.ids[position + 1] == target


def test_less_than_half_of_an_unpacked_batch_is_padding() -> None:
    documents = [_row([3] * n, [0] * n, [n]) for n in (100, 3, 55, 60, 2, 30)]
    for group in buckets(documents):
        width = max(len(row.ids) for row in group)
        assert 2 * sum(len(row.ids) for row in group) >= len(group) * width
    assert sum(len(group) for group in buckets(documents)) == len(documents)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5 * GROUPS_A_WINDOW), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_rows_that_are_taken_together_lie_in_few_groups_and_an_epoch_takes_each_once(
    sizes: list[int], epoch: int
) -> None:
    schedule = Schedule(num_rows=sum(sizes), rows_per_step=3, seed=5, group_rows=tuple(sizes))
    order = schedule.order(epoch)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    groups = np.searchsorted(np.cumsum(sizes), order, side="right")
    _, first = np.unique(groups, return_index=True)
    opened = np.sort(first)
    for start in range(0, len(opened), GROUPS_A_WINDOW):
        stop = opened[start + GROUPS_A_WINDOW] if start + GROUPS_A_WINDOW < len(opened) else len(order)
        assert len(np.unique(groups[opened[start] : stop])) <= GROUPS_A_WINDOW
        assert not set(groups[: opened[start]]) & set(groups[opened[start] : stop])


def test_a_large_set_is_not_taken_group_by_group() -> None:
    schedule = Schedule(num_rows=8000, rows_per_step=8, seed=5, group_rows=(10,) * 800)
    assert len(set((schedule.rows(30) // 10).tolist())) > 4
    first, last = schedule.order(0)[:320], schedule.order(0)[-320:]
    assert 2000 < first.mean() < 6000
    assert 2000 < last.mean() < 6000
    assert schedule.order(0).tolist() != schedule.order(1).tolist()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4 * SHARDS_A_WINDOW), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_a_shard_is_needed_once_an_epoch_beside_few_others(shard_groups: list[int], epoch: int) -> None:
    num_groups = sum(shard_groups)
    sizes: dict[str, Any] = {"group_rows": (3,) * num_groups, "shard_groups": tuple(shard_groups)}
    schedule = Schedule(num_rows=3 * num_groups, rows_per_step=3, seed=5, **sizes)
    order = schedule.order(epoch)
    assert sorted(order.tolist()) == list(range(3 * num_groups))
    shards = np.searchsorted(3 * np.cumsum(shard_groups), order, side="right")
    first = {shard: int(np.argmax(shards == shard)) for shard in set(shards.tolist())}
    last = {shard: len(shards) - 1 - int(np.argmax(shards[::-1] == shard)) for shard in first}
    # A window of rows may begin in one window of shards and end in the next.
    open_at = [sum(first[shard] <= place <= last[shard] for shard in first) for place in range(len(order))]
    assert max(open_at) <= 2 * SHARDS_A_WINDOW
    if len(shard_groups) <= SHARDS_A_WINDOW:
        plain = Schedule(num_rows=3 * num_groups, rows_per_step=3, seed=5, group_rows=(3,) * num_groups)
        assert order.tolist() == plain.order(epoch).tolist()


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**63 - 1))
@settings(max_examples=50, deadline=None)
def test_an_epoch_takes_every_row_once_and_the_last_short_step_is_kept_j2_j6(
    num_rows: int, size: int, seed: int
) -> None:
    schedule = Schedule(num_rows=num_rows, rows_per_step=size, seed=seed)
    for epoch in (0, 1):
        first = epoch * schedule.steps_per_epoch
        taken = [schedule.rows(step) for step in range(first, first + schedule.steps_per_epoch)]
        assert sorted(np.concatenate(taken).tolist()) == list(range(num_rows))
    assert schedule.num_steps(epochs=2, max_steps=None) == 2 * schedule.steps_per_epoch


def test_the_steps_of_the_second_epoch_take_its_own_order_j6() -> None:
    schedule = Schedule(num_rows=50, rows_per_step=7, seed=1)
    second = [schedule.rows(step) for step in range(8, 16)]
    assert np.concatenate(second).tolist() == schedule.order(1).tolist()
    assert schedule.order(1).tolist() != schedule.order(0).tolist()


def test_order_depends_on_seed_and_epoch_only() -> None:
    schedule = Schedule(num_rows=50, rows_per_step=4, seed=1)
    assert schedule.order(0).tolist() != schedule.order(1).tolist()
    assert schedule.order(0).tolist() != Schedule(num_rows=50, rows_per_step=4, seed=2).order(0).tolist()
    assert schedule.order(3).tolist() == Schedule(num_rows=50, rows_per_step=7, seed=1).order(3).tolist()


def test_batches_are_int64_where_torch_wants_it() -> None:
    batch = collate_packed([_row([7, 8], [0, 1], [2])])
    assert batch["input_ids"].dtype == batch["targets"].dtype == batch["rows"].dtype == torch.int64


def test_the_rows_of_any_step_of_a_million_rows_are_known_at_once_j3() -> None:
    schedule = Schedule(num_rows=1_000_000, rows_per_step=8, seed=11)
    passes: list[object] = []
    before = sys.gettrace()
    sys.settrace(lambda *_: lambda *event: passes.append(event[1]))
    try:
        rows = schedule.rows(50 * schedule.steps_per_epoch + 77_777)
    finally:
        sys.settrace(before)
    assert 0 < len(passes) < 1000, "lines that ran, of Python: none a row, a step or an epoch"
    assert rows.tolist() == schedule.order(50)[8 * 77_777 : 8 * 77_778].tolist()
