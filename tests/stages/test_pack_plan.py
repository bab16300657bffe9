"""The plan puts every document into one row, wastes little, and follows the seed and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftprep.stages.pack import plan, plan_single, spread

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=120).map(lambda x: np.array(x, np.int32))


def best_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """The obvious slow version: rows needed when each document, longest first, goes to the fullest row that fits."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, used in enumerate(rows) if used + length <= capacity]
        if fitting:
            rows[max(fitting, key=lambda i: rows[i])] += length
        else:
            rows.append(length)
    return len(rows)


def lognormal(count: int, *, capacity: int) -> np.ndarray:
    drawn = np.random.default_rng(7).lognormal(5.5, 1.0, count)
    return np.clip(drawn, 8, capacity).astype(np.int32)


@given(lengths=LENGTHS, capacity=st.integers(64, 200), seed=st.integers(0, 5))
def test_every_document_is_in_one_row_and_no_row_overflows_f5(lengths: np.ndarray, capacity: int, seed: int) -> None:
    packs = plan(lengths, capacity=capacity, seed=seed)
    assert sorted(packs.order.tolist()) == list(range(len(lengths)))
    sums = np.add.reduceat(lengths[packs.order], packs.offsets[:-1])
    assert sums.max() <= capacity
    assert packs.num_packs == len(sums)


@given(lengths=LENGTHS, capacity=st.integers(64, 200))
def test_it_needs_exactly_the_rows_of_best_fit_decreasing(lengths: np.ndarray, capacity: int) -> None:
    assert plan(lengths, capacity=capacity, seed=0).num_packs == best_fit_decreasing(lengths.tolist(), capacity)


@pytest.mark.parametrize("capacity", [2048, 4096])
def test_real_mixes_fill_999_of_1000_positions_f6(capacity: int) -> None:
    lengths = lognormal(100_000, capacity=capacity)
    lower_bound = -(-int(lengths.sum()) // capacity)
    rows = plan(lengths, capacity=capacity, seed=0).num_packs
    assert lower_bound / rows >= 0.999
    assert rows < len(lengths) / 2, "it did pack"


def test_windows_bound_the_work_and_cost_little() -> None:
    lengths = lognormal(20_000, capacity=2048)
    whole, windows = (plan(lengths, capacity=2048, seed=0, window=size).num_packs for size in (20_000, 2_000))
    assert whole <= windows <= whole + 10


def test_row_order_does_not_follow_length_f7() -> None:
    lengths = lognormal(40_000, capacity=2048)
    packs = plan(lengths, capacity=2048, seed=3)
    sums = np.add.reduceat(lengths[packs.order], packs.offsets[:-1])
    means = sums / np.diff(packs.offsets)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.05


def test_the_seed_decides_the_order_and_nothing_else_does() -> None:
    lengths = lognormal(2_000, capacity=2048)
    first, again, other = (plan(lengths, capacity=2048, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.order, again.order)
    assert np.array_equal(first.offsets, again.offsets)
    assert not np.array_equal(first.order, other.order)


@given(lengths=LENGTHS)
def test_one_document_a_row_where_packing_is_off(lengths: np.ndarray) -> None:
    packs = plan_single(lengths, seed=0)
    assert packs.num_packs == len(lengths)
    assert sorted(packs.order.tolist()) == list(range(len(lengths)))


@pytest.mark.parametrize("bad", [[0], [65]])
def test_a_length_that_fits_no_row_is_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match="document 0"):
        plan(np.array(bad, np.int32), capacity=64, seed=0)


def test_no_documents_make_no_rows() -> None:
    assert plan(np.zeros(0, np.int32), capacity=64, seed=0).num_packs == 0


@given(lengths=LENGTHS, capacity=st.integers(64, 200), data=st.data())
def test_a_row_count_that_is_asked_for_is_met_and_no_document_is_lost(
    lengths: np.ndarray, capacity: int, data: st.DataObject
) -> None:
    packs = plan(lengths, capacity=capacity, seed=0)
    wanted = data.draw(st.integers(packs.num_packs, len(lengths)))
    more = spread(packs, num_rows=wanted, seed=0)
    assert more.num_packs == wanted
    assert np.diff(more.offsets).min() >= 1, "no row is empty"
    assert sorted(more.order.tolist()) == list(range(len(lengths)))
    assert np.add.reduceat(lengths[more.order], more.offsets[:-1]).max() <= capacity


@pytest.mark.parametrize("wanted", [0, 3])
def test_a_row_count_that_the_documents_cannot_have_is_refused(wanted: int) -> None:
    packs = plan(np.array([40, 40], np.int32), capacity=100, seed=0)
    with pytest.raises(ValueError, match=f"cannot be in {wanted}"):
        spread(packs, num_rows=wanted, seed=0)
