"""What a training text shares with held-out ones: exactly, by an index of their hashed n-grams.

The length of the n-grams follows GPT-3's analysis of contamination (Brown et al. 2020, appendix C): the 5th percentile
of the held-out texts' lengths in words, at least 8 and at most 13. An n-gram that more than ten held-out texts share
is boilerplate, such as a common instruction, and is no evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

MIN_NGRAM: Final = 8
MAX_NGRAM: Final = 13
COMMON_AFTER: Final = 10
_NGRAM_QUANTILE: Final = 5

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SetIndex:
    """Held-out sets of hashes. `keys` uint64 sorted, `owners` int64 beside it; `sets` are sorted and distinct."""

    keys: Hashes
    owners: Numbers
    sets: Sequence[Hashes]


@dataclass(frozen=True, slots=True)
class Match:
    """Held-out text `owner` shares `score` (in [0, 1]) with the text that was asked about."""

    owner: int
    score: float


def ngram_length(num_words: Sequence[int]) -> int:
    """The n for held-out texts of these lengths in words."""
    if not num_words:
        return MAX_NGRAM
    return int(np.clip(np.percentile(num_words, _NGRAM_QUANTILE), MIN_NGRAM, MAX_NGRAM))


def build_index(sets: Sequence[Hashes], *, common_after: int | None = None) -> SetIndex:
    """An index of sets of hashes; a hash that more than `common_after` of them hold is left out of all."""
    distinct = [np.unique(hashes) for hashes in sets]
    sizes = [len(hashes) for hashes in distinct]
    keys = np.concatenate([np.zeros(0, np.uint64), *distinct])
    owners = np.repeat(np.arange(len(distinct)), sizes)
    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    if common_after is not None:
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        rare = counts[inverse] <= common_after
        common = np.unique(keys[~rare])
        keys, owners = keys[rare], owners[rare]
        distinct = [np.setdiff1d(hashes, common, assume_unique=True) for hashes in distinct]
    return SetIndex(keys, owners, distinct)


def contained(index: SetIndex, hashes: Hashes) -> list[Match]:
    """Every held-out text of which any n-gram is among `hashes`, with the share of its own n-grams that are."""
    owners, shared = np.unique(_owners(index, np.unique(hashes)), return_counts=True)
    return [
        Match(int(owner), float(count / len(index.sets[owner]))) for owner, count in zip(owners, shared, strict=True)
    ]


def similar(index: SetIndex, hashes: Hashes, *, threshold: float) -> list[Match]:
    """Every held-out set whose Jaccard similarity with `hashes` reaches the threshold: exact, none is missed."""
    own = np.unique(hashes)
    if not len(own):
        return []
    # A set that is this similar lacks at most (1 - threshold) of these hashes: it holds one of the rarest that many
    # plus one, and the rarest have the fewest owners to look at.
    counts = np.searchsorted(index.keys, own, "right") - np.searchsorted(index.keys, own, "left")
    num_asked = int((1 - threshold) * len(own) + 1e-9) + 1
    asked = own[np.argsort(counts, kind="stable")[:num_asked]]
    matches = []
    for owner in np.unique(_owners(index, asked)):
        other = index.sets[owner]
        shared = len(np.intersect1d(own, other, assume_unique=True))
        score = shared / (len(own) + len(other) - shared)
        if score >= threshold:
            matches.append(Match(int(owner), score))
    return matches


def _owners(index: SetIndex, hashes: Hashes) -> Numbers:
    """The owners of each of these hashes, one after another."""
    start = np.searchsorted(index.keys, hashes, "left")
    count = np.searchsorted(index.keys, hashes, "right") - start
    ends = np.cumsum(count)
    steps = np.arange(int(ends[-1]) if len(ends) else 0)
    owners: Numbers = index.owners[steps + np.repeat(start - (ends - count), count)]
    return owners
