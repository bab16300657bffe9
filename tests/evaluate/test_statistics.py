"""The statistics against slow references, and on noise and real differences."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from sftprep.evaluate.statistics import mcnemar, paired_bootstrap, wilson


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 1), (3, 3), (1, 8), (6, 0), (2, 9)])
def test_mcnemar_is_the_share_of_coin_rows_at_least_as_uneven(gained: int, lost: int) -> None:
    uneven = abs(gained - lost)
    rows = list(product((0, 1), repeat=gained + lost))
    extreme = sum(abs(2 * sum(row) - gained - lost) >= uneven for row in rows)
    assert mcnemar(gained, lost) == pytest.approx(float(Fraction(extreme, len(rows))))


def test_wilson_is_where_the_score_test_just_rejects() -> None:
    found = wilson(7, 20)
    for rate in (found.low, found.high):
        assert abs(7 / 20 - rate) / (rate * (1 - rate) / 20) ** 0.5 == pytest.approx(1.96, abs=1e-3)
    assert wilson(0, 0) == wilson(0, 0).__class__(0.0, 1.0)


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for seed in range(60):
        found = paired_bootstrap(generator.normal(0.2, 1, 40).tolist(), seed=seed)
        hits += found.low <= 0.2 <= found.high
    assert 50 <= hits <= 60


def test_the_bootstrap_is_seeded_and_empty_is_no_difference() -> None:
    values = [0.0, 1.0, -1.0, 0.5]
    assert paired_bootstrap(values, seed=1) == paired_bootstrap(values, seed=1)
    assert paired_bootstrap([], seed=1).low == 0
