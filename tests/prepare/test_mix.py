"""How often rows are taken, and the order that documents are planned in."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sftprep.prepare.mix import planning_order, row_times


def test_two_and_a_half_epochs_take_every_row_twice_and_half_of_them_again() -> None:
    times = row_times(10, epochs=2.5, seed=0, name="math")
    assert sorted(times.tolist()) == [2] * 5 + [3] * 5


def test_the_seed_and_the_name_draw_the_rows_of_a_fraction() -> None:
    drawn = {
        (seed, name): tuple(row_times(100, epochs=0.5, seed=seed, name=name).tolist())
        for seed in (0, 1)
        for name in ("math", "chat")
    }
    assert len(set(drawn.values())) == 4
    assert drawn[0, "math"] == tuple(row_times(100, epochs=0.5, seed=0, name="math").tolist())


@given(num_rows=st.integers(0, 200), epochs=st.floats(0.01, 5), seed=st.integers(0, 2**63 - 1))
def test_rows_are_taken_as_often_as_their_epochs_say_and_differ_by_one_at_most(
    num_rows: int, epochs: float, seed: int
) -> None:
    times = row_times(num_rows, epochs=epochs, seed=seed, name="x")
    assert abs(int(times.sum()) - epochs * num_rows) <= 0.5 + 1e-6
    assert not len(times) or int(times.max()) - int(times.min()) <= 1


@given(st.lists(st.integers(0, 4), max_size=50).map(np.array), st.integers(0, 9))
def test_the_planning_order_holds_every_document_as_often_as_it_is_taken(times: np.ndarray, seed: int) -> None:
    times = times.astype(np.int64)
    order = planning_order(times, seed=seed)
    assert np.array_equal(np.bincount(order, minlength=len(times)), times)
    assert np.array_equal(order, planning_order(times, seed=seed))


def test_the_planning_order_mixes_sources() -> None:
    # F7: documents of two sources, one after the other on input, are spread over the whole order.
    order = planning_order(np.ones(2000, dtype=np.int64), seed=0)
    first_half = order[:1000]
    assert 400 < int((first_half < 1000).sum()) < 600
