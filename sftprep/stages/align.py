"""Find for each document of one set the document of another that has the same content, and where the two part.

Pure: flat arrays in, pairs of document numbers out. Documents with equal ids are paired first; the others by the runs
of tokens that they share and few other documents have. Memory grows with the documents (a kilobyte each), not with
their tokens, which may lie in mapped files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

_RUN: Final = 5
"""Tokens of a run: long enough to be rare, short enough to survive another template between two messages."""
_RUNS_A_DOCUMENT: Final = 16
_MAX_HOLDERS: Final = 256
"""A run that so many documents hold says nothing of any of them."""
_MAX_PARTNERS: Final = 16
"""Documents that one document is weighed against."""
_BUCKETS: Final = 1 << 22
"""Of the count of how many documents hold a run; two runs that share a bucket are taken for less rare than they are."""

Numbers = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


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
    """Pairs of document numbers `[pairs, 2]`, ordered by the left one, and the numbers of those without a partner."""

    identical: Pairs
    masks_differ: Pairs
    ids_differ: Pairs
    only_left: Numbers
    only_right: Numbers


def align(left: TokenDocuments, right: TokenDocuments) -> Alignment:
    """Pair the documents of two sets; each is in one pair at most."""
    ids = _digests(left.ids, left.offsets), _digests(right.ids, right.offsets)
    masks = _digests(left.trained, left.offsets), _digests(right.trained, right.offsets)
    free = np.arange(len(left)), np.arange(len(right))
    identical, free = _paired((np.hstack([ids[0], masks[0]]), np.hstack([ids[1], masks[1]])), free)
    masks_differ, free = _paired(ids, free)
    ids_differ, free = _similar((left, right), ids, free)
    return Alignment(identical, masks_differ, ids_differ, *free)


def first_difference(left: npt.NDArray[np.generic], right: npt.NDArray[np.generic]) -> int:
    """The first position at which two arrays differ; the shorter one's end where one begins the other."""
    size = min(len(left), len(right))
    unequal = np.flatnonzero(left[:size] != right[:size])
    return int(unequal[0]) if len(unequal) else size


def _digests(values: npt.NDArray[np.generic], offsets: Numbers) -> Words:
    """Of each document, 128 bits as two numbers `[docs, 2]`."""
    found = np.zeros((len(offsets) - 1, 2), np.uint64)
    for number in range(len(found)):
        content = np.ascontiguousarray(values[offsets[number] : offsets[number + 1]]).tobytes()
        found[number] = np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint64)
    return found


def _paired(keys: tuple[Words, Words], free: tuple[Numbers, Numbers]) -> tuple[Pairs, tuple[Numbers, Numbers]]:
    """Pairs of free documents of equal keys, the first with the first, and what is left over."""
    groups = _groups(keys, free)
    left, right = (group * (len(free[0]) + len(free[1])) + _ranks(group) for group in groups)
    _, left_at, right_at = np.intersect1d(left, right, assume_unique=True, return_indices=True)
    pairs = _ordered(np.stack([free[0][left_at], free[1][right_at]], axis=1))
    return pairs, (np.delete(free[0], left_at), np.delete(free[1], right_at))


def _groups(keys: tuple[Words, Words], free: tuple[Numbers, Numbers]) -> tuple[Numbers, Numbers]:
    """For each free document a number that those of equal keys have, on either side."""
    both = np.concatenate([own[numbers] for own, numbers in zip(keys, free, strict=True)])
    order = np.lexsort(both.T)
    changes = np.zeros(len(both), np.int64)
    changes[1:] = (both[order[1:]] != both[order[:-1]]).any(axis=1)
    group = np.empty(len(both), np.int64)
    group[order] = np.cumsum(changes)
    return group[: len(free[0])], group[len(free[0]) :]


def _ranks(group: Numbers) -> Numbers:
    """How many before each have its number."""
    order = np.argsort(group, kind="stable")
    ranks = np.empty(len(group), np.int64)
    ranks[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
    return ranks


def _ordered(pairs: Pairs) -> Pairs:
    ordered: Pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    return ordered


def _similar(
    docs: tuple[TokenDocuments, TokenDocuments], ids: tuple[Words, Words], free: tuple[Numbers, Numbers]
) -> tuple[Pairs, tuple[Numbers, Numbers]]:
    """Pairs of free documents of like content; those of equal ids are weighed once and share their partner."""
    groups = _groups(ids, free)
    first = tuple(np.unique(group, return_index=True)[1] for group in groups)
    distinct = tuple(numbers[at] for numbers, at in zip(free, first, strict=True))
    partners = np.array(list(_matched(docs, (distinct[0], distinct[1]))), np.int64).reshape(-1, 2)
    # The documents of two groups that match get one key, and are paired as equal ones are.
    size = max((int(group.max()) + 1 for group in groups if len(group)), default=0)
    shared = np.arange(size)
    shared[groups[1][first[1][partners[:, 1]]]] = groups[0][first[0][partners[:, 0]]]
    keys = tuple(np.zeros((len(side), 1), np.uint64) for side in docs)
    for key, numbers, group in zip(keys, free, (groups[0], shared[groups[1]]), strict=True):
        key[numbers, 0] = group
    return _paired((keys[0], keys[1]), free)


def _matched(
    docs: tuple[TokenDocuments, TokenDocuments], numbers: tuple[Numbers, Numbers]
) -> Iterator[tuple[int, int]]:
    """Places in the two lists of numbers whose documents share the most runs, the greatest number first."""
    if not len(numbers[0]) or not len(numbers[1]):
        return
    votes = _votes(docs, numbers)
    taken: tuple[set[int], set[int]] = (set(), set())
    for left, right in votes[np.lexsort(votes.T[::-1])][:, 2:].tolist():
        if left not in taken[0] and right not in taken[1]:
            taken[0].add(left)
            taken[1].add(right)
            yield left, right


def _votes(docs: tuple[TokenDocuments, TokenDocuments], numbers: tuple[Numbers, Numbers]) -> npt.NDArray[np.int32]:
    """Shared runs (negative), difference in length, left and right place: the least is the best. `[votes, 4]`."""
    left, right = _rare_runs(docs, numbers)
    holders = np.repeat(np.arange(len(right)), [len(own) for own in right])
    runs = np.concatenate(right)
    order = np.argsort(runs, kind="stable")
    runs, holders = runs[order], holders[order]
    lengths = tuple(np.diff(side.offsets)[own] for side, own in zip(docs, numbers, strict=True))
    found = [np.zeros((0, 4), np.int32)]
    for place, own in enumerate(left):
        begins, ends = np.searchsorted(runs, own), np.searchsorted(runs, own, side="right")
        spans = [holders[b:e] for b, e in zip(begins, ends, strict=True) if e - b <= _MAX_HOLDERS]
        others, shared = np.unique(np.concatenate([np.zeros(0, np.int64), *spans]), return_counts=True)
        apart = np.abs(lengths[1][others] - lengths[0][place])
        own_votes = np.stack([-shared, apart, np.full(len(others), place), others], axis=1).astype(np.int32)
        found.append(own_votes[np.lexsort((apart, -shared))[:_MAX_PARTNERS]])
    return np.concatenate(found)


def _rare_runs(
    docs: tuple[TokenDocuments, TokenDocuments], numbers: tuple[Numbers, Numbers]
) -> tuple[list[Words], list[Words]]:
    """Of each document the runs that the fewest documents hold, of those that both sides have."""
    counts = tuple(_holders(side, own) for side, own in zip(docs, numbers, strict=True))
    total = counts[0] + counts[1]
    total[(counts[0] == 0) | (counts[1] == 0)] = 0
    left, right = ([_rarest(side.ids_of(n), total) for n in own] for side, own in zip(docs, numbers, strict=True))
    return left, right


def _holders(docs: TokenDocuments, numbers: Numbers) -> npt.NDArray[np.uint32]:
    counts = np.zeros(_BUCKETS, np.uint32)
    for number in numbers:
        counts[_runs(docs.ids_of(number)) % _BUCKETS] += 1
    return counts


def _rarest(ids: npt.NDArray[np.int32], total: npt.NDArray[np.uint32]) -> Words:
    runs = _runs(ids)
    counts = total[runs % _BUCKETS]
    runs, counts = runs[counts > 0], counts[counts > 0]
    # Equally rare ones in the order of their hashes: both documents of a pair choose the same.
    chosen: Words = runs[np.argsort(counts, kind="stable")[:_RUNS_A_DOCUMENT]]
    return chosen


def _runs(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
    """Hashes of all runs of `_RUN` tokens, each once; of the whole where it is shorter."""
    values = ids.astype(np.uint64)
    size = min(_RUN, len(values))
    hashes = np.zeros(len(values) - size + 1, np.uint64)
    for offset in range(size):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + values[offset : len(values) - size + 1 + offset]
        hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)
