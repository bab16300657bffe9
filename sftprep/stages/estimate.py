"""What a random sample of rows says about all of them: a total with the bounds that its error leaves.

Rows differ mostly by their size, which is known of every row, so totals are estimated as so much a byte: the ratio
estimator of survey sampling, whose error is that of what size does not explain. Few rows can hold much of it: with a
sample for each turn, one conversation of a hundred holds a third of all tokens. So the largest rows are all looked at,
and the error is that of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Z95 = 1.96
"""Half the width of a 95 % interval, in standard errors."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A total and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Estimate:
        """A number without an error."""
        return cls(value, value, value)

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.value + other.value, self.low + other.low, self.high + other.high)


@dataclass(frozen=True, slots=True)
class RowSample:
    """Rows drawn without replacement, each as likely as any: their sizes float64 `[n]`, and those of all rows.

    Those that are `certain` `[n]` were not drawn: they would be in any sample.
    """

    sizes: npt.NDArray[np.float64]
    num_rows: int
    total_size: float
    certain: npt.NDArray[np.bool_] | None = None

    def total(self, values: npt.NDArray[np.float64]) -> Estimate:
        """The sum over all rows of what is `values` `[n]` in the sample; never less than the sample's own sum."""
        if self.certain is not None:
            return self._drawn(self.certain).total(values[~self.certain]) + Estimate.exact(
                float(values[self.certain].sum())
            )
        n = len(self.sizes)
        if not n or not self.sizes.sum():
            return Estimate.exact(0.0)
        ratio = values.sum() / self.sizes.sum()
        residuals = values - ratio * self.sizes
        unseen = 1 - n / self.num_rows
        spread = float(np.sqrt((residuals**2).sum() / max(1, n - 1)))
        half = Z95 * self.num_rows * np.sqrt(unseen / n) * spread
        value = ratio * self.total_size
        return Estimate(value, max(float(values.sum()), value - half), value + half)

    def count(self, hits: npt.NDArray[np.bool_]) -> Estimate:
        """How many of all rows are as those of the sample that are hit, by Wilson's interval: none may be some."""
        if self.certain is not None:
            return self._drawn(self.certain).count(hits[~self.certain]) + Estimate.exact(
                float(hits[self.certain].sum())
            )
        n, hit = len(hits), int(hits.sum())
        if n == self.num_rows or not n:
            return Estimate.exact(hit)
        z2 = Z95**2 * (1 - n / self.num_rows)
        middle = (hit + z2 / 2) / (n + z2)
        half = np.sqrt(z2) / (n + z2) * np.sqrt(hit * (n - hit) / n + z2 / 4)
        low, high = max(hit / self.num_rows, middle - half), min(1.0, middle + half)
        return Estimate(hit / n * self.num_rows, low * self.num_rows, high * self.num_rows)

    def _drawn(self, certain: npt.NDArray[np.bool_]) -> RowSample:
        """The rows that were drawn, of those that were not certain."""
        size = self.total_size - float(self.sizes[certain].sum())
        return RowSample(self.sizes[~certain], self.num_rows - int(certain.sum()), size)
