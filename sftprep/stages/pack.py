"""Decide which documents share a row, from their lengths alone: no token is seen here.

    lengths ──▶ windows ──▶ best-fit decreasing ──▶ rows shuffled by the seed ──▶ PackPlan

A document is never split and no row is over capacity, so isolation is the reader's only duty.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Final

import numpy as np
import numpy.typing as npt

from sftprep.data import PackPlan

WINDOW_DOCUMENTS: Final = 1 << 18
"""Documents that are packed together; a window wastes less than one row, so larger ones gain nothing."""

IntArray = npt.NDArray[np.int32] | npt.NDArray[np.int64]


def plan(lengths: IntArray, *, capacity: int, seed: int, window: int = WINDOW_DOCUMENTS) -> PackPlan:
    """Pack documents into rows of at most `capacity` tokens, best fit decreasing within each window.

    `lengths` `[num_documents]` are token counts; a window is a contiguous run of documents. The order of rows and
    the order of documents inside a row are drawn from the seed, so that neither follows length. ValueError where a
    length is below 1 or over capacity: the caller refuses such documents before planning.
    """
    _check(lengths, capacity=capacity)
    if window < 1:
        raise ValueError(f"a window holds at least one document, not {window}")
    orders, sizes = [], []
    for number, first in enumerate(range(0, len(lengths), window)):
        part = lengths[first : first + window].astype(np.int64)
        rng = np.random.default_rng([seed, 1, number])
        order, counts = _plan_window(part, capacity=capacity, rng=rng)
        orders.append(order + first)
        sizes.append(counts)
    return _shuffle_rows(_join(orders), sizes=_join(sizes), seed=seed)


def plan_single(lengths: IntArray, *, seed: int) -> PackPlan:
    """One document a row, rows in an order drawn from the seed: the baseline that a padding collator reads."""
    _check(lengths, capacity=None)
    return _shuffle_rows(np.arange(len(lengths), dtype=np.int64), sizes=np.ones(len(lengths), np.int64), seed=seed)


def _check(lengths: IntArray, *, capacity: int | None) -> None:
    if not len(lengths):
        return
    if lengths.min() < 1:
        raise ValueError(f"document {int(lengths.argmin())} has no tokens")
    if capacity is not None and lengths.max() > capacity:
        index = int(lengths.argmax())
        raise ValueError(f"document {index} has {lengths[index]} tokens and a row holds {capacity}")


def _join(parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _plan_window(
    lengths: npt.NDArray[np.int64], *, capacity: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Documents of one window grouped by row, shuffled inside each row; and the documents a row has."""
    longest_first = _stable_order(capacity - lengths, bound=capacity)
    counts = np.bincount(lengths)
    distinct = np.flatnonzero(counts)[::-1]
    rows = _rows_by_best_fit(distinct.tolist(), counts[distinct].tolist(), capacity=capacity)
    shuffled = rng.permutation(len(lengths))
    row_of = rows[shuffled]
    sizes = np.bincount(row_of)
    return longest_first[shuffled][_stable_order(row_of, bound=len(sizes))], sizes


def _stable_order(keys: IntArray, *, bound: int) -> npt.NDArray[np.int64]:
    # numpy's stable sort is a radix sort, linear, on 16 bits and a comparison sort on more.
    return np.argsort(keys.astype(np.uint16) if bound < 1 << 16 else keys, kind="stable")


class _OpenRows:
    """Rows that have room left, by how much: the state of best-fit packing."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_rows = 0
        self._spaces: list[int] = []  # ascending, each once
        self._rows: dict[int, list[int]] = {}

    def take(self, length: int, *, wanted: int) -> tuple[int, list[int]]:
        """The room of the fullest rows that fit `length`, and these rows: no more than `wanted` documents need."""
        at = bisect_left(self._spaces, length)
        if at == len(self._spaces):
            first = self.num_rows
            self.num_rows += -(-wanted // (self.capacity // length))
            return self.capacity, list(range(first, self.num_rows))
        space = self._spaces[at]
        rows = self._rows[space]
        number = -(-wanted // (space // length))
        if number < len(rows):
            taken = rows[-number:]
            del rows[-number:]
            return space, taken
        del self._spaces[at], self._rows[space]
        return space, rows

    def put(self, space: int, rows: list[int]) -> None:
        """Rows that have `space` left are open again."""
        if not space or not rows:
            return
        if space in self._rows:
            self._rows[space].extend(rows)
        else:
            insort(self._spaces, space)
            self._rows[space] = rows


def _rows_by_best_fit(lengths: list[int], counts: list[int], *, capacity: int) -> npt.NDArray[np.int32]:
    """The row of each document, documents taken by descending length.

    `lengths` are the distinct lengths, descending; `counts` the documents of each. Equal documents are placed
    together: the fullest row that takes one is also the fullest for the next, until it takes no more, so a whole
    class of equally full rows is served in one step and the result has the same rows as one by one.
    """
    open_rows = _OpenRows(capacity)
    placed: list[int] = []  # rows, each with how many documents of the step it takes, by runs of equal numbers
    num_rows: list[int] = []
    num_each: list[int] = []
    for length, count in zip(lengths, counts, strict=True):
        left = count
        while left:
            space, rows = open_rows.take(length, wanted=left)
            each = space // length
            last = min(each, left - each * (len(rows) - 1))
            placed += rows
            num_rows += (len(rows) - 1, 1)
            num_each += (each, last)
            left -= each * (len(rows) - 1) + last
            open_rows.put(space - each * length, rows[:-1])
            open_rows.put(space - last * length, rows[-1:])
    return np.repeat(np.array(placed, np.int32), np.repeat(num_each, num_rows))


def spread(packs: PackPlan, *, num_rows: int, seed: int) -> PackPlan:
    """The same documents in exactly `num_rows` rows: rows with the most documents are cut in two until it is so many.

    No document is cut. The rows are shuffled again, so that halves are no neighbours. ValueError where there are more
    rows already, or fewer documents.
    """
    if not packs.num_packs <= num_rows <= len(packs.order):
        raise ValueError(f"{len(packs.order)} documents in {packs.num_packs} rows cannot be in {num_rows}")
    if packs.num_packs == num_rows:
        return packs
    sizes = np.diff(packs.offsets)
    while len(sizes) < num_rows:
        most = np.argsort(-sizes, kind="stable")[: num_rows - len(sizes)]
        most = np.sort(most[sizes[most] > 1])
        halves = sizes[most] // 2
        sizes[most] -= halves
        sizes = np.insert(sizes, most + 1, halves)
    return _shuffle_rows(packs.order, sizes=sizes, seed=seed)


def _shuffle_rows(order: npt.NDArray[np.int64], *, sizes: npt.NDArray[np.int64], seed: int) -> PackPlan:
    """Rows of `sizes` documents, laid end to end in `order`, in an order drawn from the seed."""
    rows = np.random.default_rng([seed, 0]).permutation(len(sizes))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[rows])])
    starts = np.cumsum(sizes) - sizes
    moved = np.repeat(starts[rows] - offsets[:-1], sizes[rows]) + np.arange(len(order))
    return PackPlan(order=order[moved], offsets=offsets)
