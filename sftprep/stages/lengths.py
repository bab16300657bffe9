"""What token counts say: quantiles, what a row length would drop, and what padding would waste."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

COMMON_MAX_LENGTHS: Final = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
"""Row lengths that people train with."""

IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of a token count; every quantile is a count that occurs."""

    mean: float
    p50: int
    p90: int
    p99: int
    max: int


@dataclass(frozen=True, slots=True)
class DropAt:
    """What `--over-length drop` would leave out at one `--max-length`; `refuse` fails unless it is nothing."""

    max_length: int
    num_conversations: int
    num_tokens: int
    conversation_share: float
    token_share: float


@dataclass(frozen=True, slots=True)
class PaddingWaste:
    """Share of positions that would be padding, in [0, 1]."""

    padding_to_longest: float
    padding_to_max_length: float
    packing: float


@dataclass(slots=True)
class LengthCounts:
    """How often each length occurs: exact quantiles in memory of the longest length, however many there are."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    """int64 `[longest + 1]`."""

    def add(self, lengths: IntArray) -> None:
        """Count more lengths `[n]`, each at least 0."""
        more = np.bincount(lengths, minlength=len(self.counts))
        more[: len(self.counts)] += self.counts
        self.counts = more

    def merge(self, other: LengthCounts) -> None:
        """Count all that another has counted."""
        more = np.zeros(max(len(self.counts), len(other.counts)), np.int64)
        for counts in (self.counts, other.counts):
            more[: len(counts)] += counts
        self.counts = more

    @property
    def total(self) -> int:
        """How many lengths were counted."""
        return int(self.counts.sum())

    def quantiles(self) -> Quantiles:
        """The same as `quantiles` of all the lengths; zeros where there are none."""
        total = self.total
        if not total:
            return Quantiles(0.0, 0, 0, 0, 0)
        below = np.cumsum(self.counts)
        values = np.flatnonzero(self.counts)
        p50, p90, p99 = (int(np.searchsorted(below, _rank(share, total))) for share in (50, 90, 99))
        mean = float((np.arange(len(self.counts)) * self.counts).sum() / total)
        return Quantiles(mean=mean, p50=p50, p90=p90, p99=p99, max=int(values[-1]))


def _rank(percent: int, total: int) -> int:
    """The smallest count of lengths that is at least so many percent of all."""
    return max(1, -(-percent * total // 100))


def quantiles(lengths: IntArray) -> Quantiles:
    """Of `lengths` `[n]`, n at least 1."""
    p50, p90, p99 = np.quantile(lengths, [0.5, 0.9, 0.99], method="inverted_cdf").tolist()
    return Quantiles(mean=float(lengths.mean()), p50=int(p50), p90=int(p90), p99=int(p99), max=int(lengths.max()))


def drops(
    longest: IntArray, *, num_tokens: IntArray, max_lengths: Sequence[int] = COMMON_MAX_LENGTHS
) -> Iterator[DropAt]:
    """What each row length would drop; stops after the first that drops nothing.

    `longest` `[conversations]` is the longest document of each, `num_tokens` all tokens of each.
    """
    total = int(num_tokens.sum())
    for max_length in max_lengths:
        over = longest > max_length
        count, tokens = int(over.sum()), int(num_tokens[over].sum())
        yield DropAt(max_length, count, tokens, count / max(1, len(longest)), tokens / max(1, total))
        if not count:
            return


def waste(lengths: IntArray, *, max_length: int, num_packs: int) -> PaddingWaste:
    """Of documents `[n]`, n at least 1, one a row or in `num_packs` rows of `max_length`."""
    total = int(lengths.sum())
    return PaddingWaste(
        padding_to_longest=1 - total / (len(lengths) * int(lengths.max())),
        padding_to_max_length=1 - total / (len(lengths) * max_length),
        packing=1 - total / (num_packs * max_length),
    )
