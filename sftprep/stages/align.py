"""Find for each document of one set the document of another that has the same content, and where the two part.

Pure: flat arrays in, pairs of document numbers out. Documents with equal ids are paired first; the others by the runs
of tokens that they share and few other documents have.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

_RUN: Final = 5
"""Tokens of a run: long enough to be rare, short enough to survive another template between two messages."""
_RUNS_A_DOCUMENT: Final = 32
_MAX_HOLDERS: Final = 256
"""A run that so many documents hold says nothing of any of them."""


@dataclass(frozen=True, slots=True)
class TokenDocuments:
    """Documents end to end: `ids` int32, `trained` bool `[tokens]`; `offsets` int64 `[docs + 1]`."""

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def ids_of(self, number: int) -> npt.NDArray[np.int32]:
        """The ids of a document."""
        return self.ids[self.offsets[number] : self.offsets[number + 1]]

    def trained_of(self, number: int) -> npt.NDArray[np.bool_]:
        """Which of its tokens are trained."""
        return self.trained[self.offsets[number] : self.offsets[number + 1]]


@dataclass(frozen=True, slots=True)
class Alignment:
    """Pairs of document numbers, and the numbers of those that have no partner."""

    identical: Sequence[tuple[int, int]]
    masks_differ: Sequence[tuple[int, int]]
    ids_differ: Sequence[tuple[int, int]]
    only_left: Sequence[int]
    only_right: Sequence[int]


def align(left: TokenDocuments, right: TokenDocuments) -> Alignment:
    """Pair the documents of two sets; each is in one pair at most."""
    ids = tuple([_digest(docs.ids_of(number)) for number in range(len(docs))] for docs in (left, right))
    masks = tuple([_digest(docs.trained_of(number)) for number in range(len(docs))] for docs in (left, right))
    free_left, free_right = list(range(len(left))), list(range(len(right)))
    both = tuple(list(zip(*parts, strict=True)) for parts in zip(ids, masks, strict=True))
    identical, free_left, free_right = _paired(both, free_left, free_right)
    masks_differ, free_left, free_right = _paired(ids, free_left, free_right)
    similar = list(_similar(left, right, (free_left, free_right)))
    gone = ({a for a, _ in similar}, {b for _, b in similar})
    return Alignment(
        identical=identical,
        masks_differ=masks_differ,
        ids_differ=sorted(similar),
        only_left=[number for number in free_left if number not in gone[0]],
        only_right=[number for number in free_right if number not in gone[1]],
    )


def first_difference(left: npt.NDArray[np.generic], right: npt.NDArray[np.generic]) -> int:
    """The first position at which two arrays differ; the shorter one's end where one begins the other."""
    size = min(len(left), len(right))
    unequal = np.flatnonzero(left[:size] != right[:size])
    return int(unequal[0]) if len(unequal) else size


def _digest(values: npt.NDArray[np.generic]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).digest()


def _paired(
    keys: tuple[Sequence[object], ...], left: list[int], right: list[int]
) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Pairs of equal keys, in order, and what is left over."""
    waiting: defaultdict[object, list[int]] = defaultdict(list)
    for number in reversed(right):
        waiting[keys[1][number]].append(number)
    pairs: list[tuple[int, int]] = []
    over: list[int] = []
    for number in left:
        holders = waiting.get(keys[0][number])
        if holders:
            pairs.append((number, holders.pop()))
        else:
            over.append(number)
    taken = {b for _, b in pairs}
    return pairs, over, [number for number in right if number not in taken]


def _similar(
    left: TokenDocuments, right: TokenDocuments, free: tuple[list[int], list[int]]
) -> Iterator[tuple[int, int]]:
    """Pairs that share the most runs, the greatest number first."""
    runs = tuple([_runs(docs.ids_of(n)) for n in numbers] for docs, numbers in zip((left, right), free, strict=True))
    holders: defaultdict[int, list[int]] = defaultdict(list)
    for number, own in zip(free[1], runs[1], strict=True):
        for run in own.tolist():
            holders[run].append(number)
    votes: list[tuple[int, int, int, int]] = []
    for number, own in zip(free[0], runs[0], strict=True):
        known = sorted(
            (len(holders[run]), run) for run in own.tolist() if 0 < len(holders.get(run, ())) <= _MAX_HOLDERS
        )
        shared: defaultdict[int, int] = defaultdict(int)
        for _, run in known[:_RUNS_A_DOCUMENT]:
            for other in holders[run]:
                shared[other] += 1
        size = len(left.ids_of(number))
        votes += [(-count, abs(size - len(right.ids_of(other))), number, other) for other, count in shared.items()]
    taken: tuple[set[int], set[int]] = (set(), set())
    for _, _, number, other in sorted(votes):
        if number not in taken[0] and other not in taken[1]:
            taken[0].add(number)
            taken[1].add(other)
            yield number, other


def _runs(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
    """Hashes of all runs of `_RUN` tokens, each once; of the whole where it is shorter."""
    values = ids.astype(np.uint64)
    size = min(_RUN, len(values))
    hashes = np.zeros(len(values) - size + 1, np.uint64)
    for offset in range(size):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + values[offset : len(values) - size + 1 + offset]
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)
