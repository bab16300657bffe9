"""The draw of held-out clusters: whole, seeded, never more rows than asked for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sftprep.stages.split import draw_held_out, merge_labels

LABELS = st.lists(st.integers(0, 9), min_size=1, max_size=40)


def labels_of(groups: list[int]) -> np.ndarray:
    """Group names as labels: the first row of each."""
    return np.array([groups.index(group) for group in groups])


@given(LABELS, st.integers(0, 40), st.integers(0, 5))
def test_only_whole_clusters_are_drawn_and_no_more_rows_than_asked(groups: list[int], rows: int, seed: int) -> None:
    labels = labels_of(groups)
    drawn = draw_held_out(labels, num_rows=rows, seed=seed)
    assert drawn.sum() <= rows
    for label in set(labels.tolist()):
        assert len(set(drawn[labels == label].tolist())) == 1
    # What is left over has no room for any cluster that stayed behind.
    left = [int((labels == label).sum()) for label in set(labels[~drawn].tolist())]
    assert all(size > rows - drawn.sum() for size in left)
    assert np.array_equal(drawn, draw_held_out(labels, num_rows=rows, seed=seed))


@given(LABELS, LABELS)
def test_merged_labels_join_what_any_view_joins_and_nothing_else(first: list[int], second: list[int]) -> None:
    count = min(len(first), len(second))
    views = [labels_of(first[:count]), labels_of(second[:count])]
    merged = merge_labels(views).tolist()
    expected = list(range(count))
    for _ in range(count):
        for view in views:
            for label in set(view.tolist()):
                rows = [row for row in range(count) if view[row] == label]
                low = min(expected[row] for row in rows)
                for row in rows:
                    expected[row] = low
    assert merged == expected


def test_seeds_draw_differently() -> None:
    labels = np.arange(200)
    draws = {tuple(np.flatnonzero(draw_held_out(labels, num_rows=10, seed=seed))) for seed in range(5)}
    assert len(draws) == 5
    assert {len(draw) for draw in draws} == {10}
