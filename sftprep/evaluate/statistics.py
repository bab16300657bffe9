"""Paired statistics: what two models did on the same cases, told apart from noise. Seeded, exact where it can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_RESAMPLES: Final = 5000
_DRAWN: Final = 1 << 20
"""Values drawn at a time."""
_EXACT: Final = 16
"""Cases that changed up to which all their signs are tried."""
_FLIPS: Final = 9_999
_SAME: Final = 1e-12
"""Sums of the same numbers in another order differ by rounding, by less than this share of them."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided exact p-value that so many cases changed one way and so many the other by chance."""
    changed = gained + lost
    if not changed:
        return 1.0
    ways = tail = 1
    for k in range(min(gained, lost)):
        ways = ways * (changed - k) // (k + 1)
        tail += ways
    # Divided as whole numbers: beyond 1,023 cases two to their number is no float.
    return min(1.0, 2 * tail / (1 << changed))


def paired_bootstrap(differences: Sequence[float], *, seed: int, alpha: float = 0.05) -> Interval:
    """Percentile interval of the mean of paired differences, resampled by case."""
    values = np.asarray(differences, dtype=np.float64)
    if not len(values):
        return Interval(0.0, 0.0)
    generator = np.random.default_rng(seed)
    size = max(1, _DRAWN // len(values))
    counts = [min(size, _RESAMPLES - start) for start in range(0, _RESAMPLES, size)]
    drawn = (values[generator.integers(0, len(values), (count, len(values)))] for count in counts)
    means = np.concatenate([resamples.mean(axis=1) for resamples in drawn])
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return Interval(float(low), float(high))


def sign_flip(differences: Sequence[float], *, seed: int, alpha: float = 0.05) -> float:
    """The two-sided p-value of so large a mean of paired differences where each could as well have the other sign.

    All signs are tried where up to sixteen differences are not 0, else as many drawn ones as tell `alpha` apart; of
    differences that are all 1 or -1 this is McNemar's test.
    """
    values = np.asarray([value for value in differences if value], dtype=np.float64)
    if not len(values):
        return 1.0
    least = abs(values.sum()) - _SAME * np.abs(values).sum()
    if len(values) <= _EXACT:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= least).mean())
    generator = np.random.default_rng(seed)
    flips, size = max(_FLIPS, round(20 / alpha)), max(1, _DRAWN // len(values))
    extreme = 1  # what was seen is one of the ways, so that no p-value is 0
    for start in range(0, flips, size):
        signs = generator.integers(0, 2, (min(size, flips - start), len(values))) * 2.0 - 1
        extreme += int((np.abs(signs @ values) >= least).sum())
    return extreme / (flips + 1)


def wilson(passed: int, total: int) -> Interval:
    """Wilson's 95 % interval of a pass rate."""
    if not total:
        return Interval(0.0, 1.0)
    z = 1.959963984540054
    rate, unit = passed / total, z * z / total
    middle = (rate + unit / 2) / (1 + unit)
    half = z * math.sqrt(rate * (1 - rate) / total + unit / (4 * total)) / (1 + unit)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))
