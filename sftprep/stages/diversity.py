"""How varied texts are: distinct n-grams, openings, and prompts that are one template filled in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

OPENING_WORDS: Final = 4
"""How many first words are an answer's opening."""

EDGE_WORDS: Final = 8
"""How many first or last words two prompts share where they are taken for one template."""

_SAMPLE: Final = 1 << 19
_NUMBER: Final = re.compile(r"\d+(?:[.,:/]\d+)*")
_QUOTED: Final = re.compile(
    r"\"[^\"\n]{1,80}\"|\u201c[^\u201d\n]{1,80}\u201d|`[^`\n]{1,80}`|\u300c[^\u300d]{1,80}\u300d"
)
_NAME: Final = re.compile(r"(?<=[a-z,;:] )[A-Z][\w'\u2019-]*(?: [A-Z][\w'\u2019-]*)*")


@dataclass(slots=True)
class DistinctTally:
    """How many n-grams were met, and how many distinct ones: exact up to half a million, then estimated.

    Beyond that only hashes that end in some zeros are kept, a random share that is halved whenever it grows too large:
    memory stays under 100 MB, and the estimate within 0.5 percent.
    """

    n: int
    total: int = 0
    _kept: set[int] = field(default_factory=set)
    _mask: int = 0

    def add(self, hashes: Hashes) -> None:
        """Count the n-grams of one text."""
        self.total += len(hashes)
        kept = hashes[(hashes & np.uint64(self._mask)) == 0] if self._mask else hashes
        self._kept.update(kept.tolist())
        while len(self._kept) > _SAMPLE:
            self._mask = 2 * self._mask + 1
            self._kept = {value for value in self._kept if not value & self._mask}

    @property
    def distinct(self) -> int:
        """Distinct n-grams."""
        return len(self._kept) * (self._mask + 1)


@dataclass(frozen=True, slots=True)
class Group:
    """Items that share a key: how many, and the numbers of two of them, the first and the last."""

    size: int
    first: int
    last: int


def largest_groups(keys: Hashes, *, at_least: int, count: int) -> tuple[int, list[Group]]:
    """How many items are in groups of equal keys of a least size, and the largest groups. Key 0 is no key."""
    items = np.flatnonzero(keys)
    if not len(items):
        return 0, []
    order = items[np.argsort(keys[items], kind="stable")]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(keys[order])) + 1])
    sizes = np.diff(np.concatenate([starts, [len(order)]]))
    grouped = int(sizes[sizes >= at_least].sum())
    # Equal sizes in the order in which they were met, so that a report is the same every time.
    ranked = np.lexsort((order[starts], -sizes))[:count]
    found = [Group(int(sizes[g]), int(order[starts[g]]), int(order[starts[g] + sizes[g] - 1])) for g in ranked]
    return grouped, [group for group in found if group.size >= at_least]


def mask_variables(text: str) -> str:
    """A prompt with its numbers, quotations and names in mid-sentence replaced: what is left is its template."""
    return _NAME.sub(" Xx ", _QUOTED.sub(" qq ", _NUMBER.sub("0", text)))


def edge_keys(hashes: Hashes) -> tuple[int, int]:
    """Keys of a prompt's first and last eight words; 0 where it has fewer than sixteen."""
    if len(hashes) < 2 * EDGE_WORDS:
        return 0, 0
    return sequence_key(hashes[:EDGE_WORDS]), sequence_key(hashes[-EDGE_WORDS:])


def sequence_key(hashes: Hashes | Sequence[int]) -> int:
    """One number for a sequence of hashes, never 0 unless it is empty."""
    if not len(hashes):
        return 0
    key = 1
    for value in np.asarray(hashes, np.uint64).tolist():
        key = ((key ^ value) * 0x100000001B3 + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    return key or 1
