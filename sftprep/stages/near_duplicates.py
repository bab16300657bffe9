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
# Buckets of more texts are compared by windows: by all pairs they would take time that grows with their square. What a
# band may take is shared among them, in comparisons of some nanoseconds; near texts that stand in two windows of a
# crowd are met again in other bands.
_SMALL_BUCKET: Final = 16
_COMPARISONS: Final = 1 << 30
_LEAST_WINDOW: Final = 1 << 10
_SORTED_BY: Final = 16
_PLANES, _BLOCK = 4, 32
_STEP: Final = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]
Signatures = npt.NDArray[np.uint32]
Labels = npt.NDArray[np.int64]
Pairs = npt.NDArray[np.int64]
"""`[num_pairs, 2]`."""


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
        pairs, crowds = _buckets(_band_keys(table, band), labels)
        found = [pairs[_similarity(table, pairs) >= threshold]]
        width = max(_LEAST_WINDOW, _COMPARISONS // max(sum(map(len, crowds)), 1))
        for members in crowds:
            for window in _windows(table, members, band=band, width=width):
                found.extend(_window_edges(table, window, labels=labels[window], threshold=threshold))
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


def _buckets(keys: Hashes, labels: Labels) -> tuple[Pairs, list[Labels]]:
    """Texts with equal keys that are not all joined yet: the pairs of small buckets, and the members of each large."""
    order = np.argsort(keys, kind="stable")
    bounds = np.flatnonzero(np.diff(keys[order])) + 1
    starts = np.concatenate([[0], bounds]).astype(np.int64)
    sizes = np.diff(np.concatenate([starts, [len(keys)]]))
    pairs = [np.zeros((0, 2), np.int64)]
    for size in range(2, _SMALL_BUCKET + 1):
        members = order[starts[sizes == size][:, None] + np.arange(size)]
        left, right = np.triu_indices(size, 1)
        found = np.stack([members[:, left].ravel(), members[:, right].ravel()], axis=1)
        pairs.append(found[labels[found[:, 0]] != labels[found[:, 1]]])
    large = sizes > _SMALL_BUCKET
    crowds = [order[start : start + size] for start, size in zip(starts[large], sizes[large], strict=True)]
    return np.concatenate(pairs), [own for own in crowds if (labels[own] != labels[own[0]]).any()]


def _windows(table: Signatures, members: Labels, *, band: int, width: int) -> Iterator[Labels]:
    """A bucket's members, at most `width` at a time; in a crowd, those that have most in common stand together.

    The order is by the numbers behind the band, so that every band parts a crowd in another way.
    """
    if len(members) > width:
        columns = (np.arange((band + 1) * _BAND_ROWS, (band + 1) * _BAND_ROWS + _SORTED_BY) % NUM_PERM)[::-1]
        members = members[np.lexsort([table[members, column] for column in columns])]
    for start in range(0, len(members), width):
        yield members[start : start + width]


def _similarity(table: Signatures, pairs: Pairs) -> npt.NDArray[np.float64]:
    """The estimated similarity of each pair; a slice at a time, so that a million pairs do not copy a gigabyte."""
    scores = np.zeros(len(pairs))
    for start in range(0, len(pairs), 1 << 14):
        part = pairs[start : start + (1 << 14)]
        scores[start : start + (1 << 14)] = (table[part[:, 0]] == table[part[:, 1]]).mean(axis=1)
    return scores


def _window_edges(table: Signatures, members: Labels, *, labels: Labels, threshold: float) -> Iterator[Pairs]:
    """Edges that join all similar members; `labels` are of the members, and equal ones are joined already."""
    own = table[members]
    planes = _bit_planes(own)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    labels = first[inverse]
    most = (1 - threshold) * NUM_PERM
    start, size = 0, 1
    # Blocks grow from one text, so that a window of texts all alike is joined before it is compared as pairs.
    while start < len(members) and (labels[start:] != labels[start]).any():
        block, rest = slice(start, start + size), slice(start, None)
        near = (_differing(planes, block, rest) <= most) & (labels[block, None] != labels[rest])
        left, right = np.nonzero(near)
        pairs = np.stack([left + start, right + start], axis=1)
        edges = pairs[_similarity(own, pairs) >= threshold]
        if len(edges):
            yield members[edges]
            links = np.stack([np.arange(len(members)), labels], axis=1)
            labels = _components(np.concatenate([edges, links]), count=len(members))
        start, size = start + size, min(2 * size, _BLOCK)


def _bit_planes(own: Signatures) -> Hashes:
    """The lowest bits of each signature's numbers, uint64 `[planes, 2, num_texts]`."""
    bits = [np.packbits((own >> bit & 1).astype(np.uint8), axis=1).view(np.uint64).T for bit in range(_PLANES)]
    return np.ascontiguousarray(np.stack(bits))


def _differing(planes: Hashes, block: slice, rest: slice) -> npt.NDArray[np.uint8]:
    """In how many numbers each text of a block and each of the rest differ, by their lowest bits: never too many."""
    count = np.zeros(1, np.uint8)
    for word in range(planes.shape[1]):
        differ = planes[0, word, block, None] ^ planes[0, word, rest]
        for plane in planes[1:, word]:
            differ |= plane[block, None] ^ plane[rest]
        count = count + np.bitwise_count(differ)
    return count


def _components(edges: Pairs, *, count: int) -> Labels:
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
