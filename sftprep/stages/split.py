"""Which clusters of rows are held out: a seeded draw that takes whole clusters only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.bool_]


def merge_labels(views: list[Labels]) -> Labels:
    """Clusters of rows that share a cluster in any view, chains included: the smallest row of each, int64 `[rows]`."""
    labels = np.arange(len(views[0]))
    while True:
        before = labels.copy()
        for view in views:
            low = np.full(len(labels), len(labels))
            np.minimum.at(low, view, labels)
            labels = np.minimum(labels, low[view])
        labels = labels[labels]
        if np.array_equal(labels, before):
            return labels


def draw_held_out(labels: Labels, *, num_rows: int, seed: int, barred: Rows | None = None) -> Rows:
    """True for the rows of whole clusters, drawn by the seed, that together have at most `num_rows` rows.

    Clusters are met in a random order and taken where they still fit, so that a large one does not end the draw.
    Those with a row that is `barred` are passed over; what else is taken stays.
    """
    roots, sizes = np.unique(labels, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(roots))
    taken, left = [], num_rows
    is_barred = np.isin(roots, labels[barred]) if barred is not None else np.zeros(len(roots), np.bool_)
    for position in order.tolist():
        if sizes[position] <= left and not is_barred[position]:
            taken.append(position)
            left -= int(sizes[position])
        if not left:
            break
    return np.isin(labels, roots[np.array(taken, dtype=np.int64)])
