"""Texts that are nearly the same: MinHash signatures, banded, checked, and joined into clusters.

Two texts are near duplicates where the Jaccard similarity of their sets of 3-word shingles reaches a threshold. A text
is known by 128 numbers (512 bytes), so that a million texts of three kinds take 1.5 GB and the texts themselves none.
A pair of similarity s shares at least one of 25 bands of 5 numbers with probability 1 - (1 - s^5)^25: 0.99 at 0.7,
0.9999 at 0.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sftprep.errors import UsageError

SHINGLE_WORDS: Final = 3
NUM_PERM: Final = 128
_BANDS, _BAND_ROWS = 25, 5
_SEED: Final = 1
# The estimate from 128 numbers has a standard deviation of 0.035 at 0.8: one and a half of it is let pass, so that
# pairs at the threshold are found.
SLACK: Final = 0.05
_STEP: Final = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]
Signatures = npt.NDArray[np.uint32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Clusters:
    """`labels` int64 `[num_texts]`: the first text of each text's cluster; itself where it is alone.

    `exact` bool `[num_texts]`: an earlier text is the same, character by character.
    """

    labels: Labels
    exact: npt.NDArray[np.bool_]

    @property
    def repeated(self) -> npt.NDArray[np.bool_]:
        """Texts that have an earlier one in their cluster: what a deduplication would remove."""
        later: npt.NDArray[np.bool_] = self.labels != np.arange(len(self.labels))
        return later


def signatures(shingles: Sequence[Hashes]) -> Signatures:
    """One signature a set of shingles, uint32 `[num_texts, 128]`.

    Raises:
        UsageError: `missing-extra` where the MinHash library is not installed.
    """
    try:
        # An optional extra: only the measures of quality need it.
        from rensa import RMinHash
    except ImportError as error:
        hint = "pip install 'sftprep[quality]'"
        raise UsageError("near duplicates need the package rensa", code="missing-extra", hint=hint) from error
    if not shingles:
        return np.zeros((0, NUM_PERM), np.uint32)
    offsets = np.cumsum([0, *map(len, shingles)], dtype=np.uint64)
    flat = np.concatenate(shingles).astype(np.uint64, copy=False)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, NUM_PERM, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(shingles), NUM_PERM)


def find_clusters(table: Signatures, *, digests: Hashes, present: npt.NDArray[np.bool_], threshold: float) -> Clusters:
    """Join texts into clusters of near duplicates, chains included.

    `digests` names each text exactly; where `present` is False there is no text, which is nobody's duplicate.
    """
    labels = np.arange(len(table))
    exact = np.zeros(len(table), np.bool_)
    rows = np.flatnonzero(present)
    _, first, inverse = np.unique(digests[rows], return_index=True, return_inverse=True)
    exact[rows] = first[inverse] != np.arange(len(rows))
    # In order of the texts, so that the first of a cluster is the smallest number.
    distinct = np.sort(first)
    place = np.searchsorted(distinct, first[inverse])
    found = _joined(table[rows[distinct]], threshold=threshold - SLACK)
    labels[rows] = rows[distinct[found[place]]]
    return Clusters(labels, exact)


def _joined(table: Signatures, *, threshold: float) -> Labels:
    """The smallest number of each text's cluster, by the estimated similarity of texts that share a band.

    Band by band, so that texts which an earlier band has joined are not compared again.
    """
    labels = np.arange(len(table))
    for band in range(_BANDS):
        pairs, buckets = _buckets(_band_keys(table, band))
        pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
        found = [pairs[_similarity(table, pairs) >= threshold]]
        for members in buckets:
            if (labels[members] != labels[members[0]]).any():
                found.extend(_bucket_edges(table, members, threshold=threshold))
        edges = np.concatenate(found)
        links = np.stack([np.arange(len(table)), labels], axis=1)
        labels = _components(np.concatenate([edges, links]), count=len(table)) if len(edges) else labels
    return labels


def _band_keys(table: Signatures, band: int) -> Hashes:
    keys = np.zeros(len(table), np.uint64)
    for column in range(band * _BAND_ROWS, (band + 1) * _BAND_ROWS):
        keys = (keys + table[:, column]) * _STEP
        keys ^= keys >> np.uint64(31)
    return keys


def _buckets(keys: Hashes) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """Texts with equal keys: the buckets of two as one table of pairs, and each larger one."""
    order = np.argsort(keys, kind="stable")
    bounds = np.flatnonzero(np.diff(keys[order])) + 1
    starts = np.concatenate([[0], bounds])
    sizes = np.diff(np.concatenate([starts, [len(keys)]]))
    twos = starts[sizes == 2]
    pairs = np.stack([order[twos], order[twos + 1]], axis=1)
    large = [order[start : start + size] for start, size in zip(starts, sizes, strict=True) if size > 2]
    return pairs.astype(np.int64), large


def _similarity(table: Signatures, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The estimated similarity of each pair; a slice at a time, so that a million pairs do not copy a gigabyte."""
    scores = np.zeros(len(pairs))
    for start in range(0, len(pairs), 1 << 14):
        part = pairs[start : start + (1 << 14)]
        scores[start : start + (1 << 14)] = (table[part[:, 0]] == table[part[:, 1]]).mean(axis=1)
    return scores


def _bucket_edges(
    table: Signatures, members: npt.NDArray[np.int64], *, threshold: float
) -> Iterator[npt.NDArray[np.int64]]:
    """Edges of a bucket as stars: every member is the centre of one, or on one whose centre has met all members."""
    own = table[members]
    open_members = np.ones(len(members), np.bool_)
    while open_members.any():
        centre = int(np.argmax(open_members))
        near = (own == own[centre]).mean(axis=1) >= threshold
        open_members &= ~near
        near[centre] = False
        others = members[near]
        yield np.stack([np.full(len(others), members[centre]), others], axis=1)


def _components(edges: npt.NDArray[np.int64], *, count: int) -> Labels:
    """The smallest number of each number's connected component, int64 `[count]`."""
    labels = np.arange(count)
    while True:
        low = np.minimum(labels[edges[:, 0]], labels[edges[:, 1]])
        before = labels.copy()
        for side in (0, 1):
            np.minimum.at(labels, edges[:, side], low)
            np.minimum.at(labels, before[edges[:, side]], low)
        labels = labels[labels]
        if np.array_equal(labels, before):
            return labels
