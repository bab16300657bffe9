"""The statistics against slow references and scipy's, and on noise and real differences."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from scipy import optimize, stats

from sftprep.evaluate.judge import length_controlled
from sftprep.evaluate.statistics import mcnemar, paired_bootstrap, sign_flip, wilson


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


def test_mcnemar_and_wilson_are_those_of_scipy() -> None:
    generator = np.random.default_rng(5)
    for _ in range(40):
        gained, lost = (int(count) for count in generator.integers(0, 60, 2))
        if gained + lost:
            assert mcnemar(gained, lost) == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
            wanted = stats.binomtest(gained, gained + lost).proportion_ci(method="wilson")
            found = wilson(gained, gained + lost)
            assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize(("gained", "lost"), [(511, 513), (600, 500), (4000, 4300), (0, 5000)])
def test_thousands_of_cases_may_change(gained: int, lost: int) -> None:
    wanted = stats.binomtest(gained, gained + lost).pvalue
    assert mcnemar(gained, lost) == pytest.approx(wanted, rel=1e-6, abs=1e-300)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_bootstrap_is_scipys_percentile_interval(alpha: float) -> None:
    values = np.random.default_rng(4).normal(0.1, 0.6, 50)
    found = paired_bootstrap(values.tolist(), seed=2, alpha=alpha)
    options = {"method": "percentile", "confidence_level": 1 - alpha, "n_resamples": 40_000, "vectorized": True}
    wanted = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(6), **options).confidence_interval
    # 5,000 resamples place the outermost of these quantiles to 0.07 standard errors; four of those are allowed.
    error = values.std() / 50**0.5
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=4 * 0.07 * error)


@pytest.mark.parametrize("size", [2, 7, 13])
def test_the_sign_flip_test_tries_all_signs_of_few_cases_as_scipy_does(size: int) -> None:
    generator = np.random.default_rng(size)
    for _ in range(5):
        values = np.round(generator.normal(0.3, 1, size), 1)
        wanted = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
        # Pairs without a difference have no sign: scipy flips them too, which changes no share.
        assert sign_flip(values.tolist(), seed=0) == pytest.approx(wanted.pvalue)


def test_the_sign_flip_test_of_many_cases_is_scipys_within_what_drawing_allows() -> None:
    for shift in (0.0, 0.1, 0.25):
        values = np.random.default_rng(9).normal(shift, 1, 80)
        options = {"permutation_type": "samples", "n_resamples": 20_000, "rng": np.random.default_rng(3)}
        wanted = stats.permutation_test((values,), np.mean, **options).pvalue
        found = sign_flip(values.tolist(), seed=4)
        error = (wanted * (1 - wanted) * (1 / 9_999 + 1 / 20_000)) ** 0.5
        assert found == pytest.approx(wanted, abs=4 * error + 1e-4)
        assert found == sign_flip(values.tolist(), seed=4)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 3), (9, 4), (2, 11), (20, 41)])
def test_the_sign_flip_test_of_passes_alone_is_mcnemars(gained: int, lost: int) -> None:
    values = [1.0] * gained + [-1.0] * lost + [0.0] * 5
    assert sign_flip(values, seed=1) == pytest.approx(mcnemar(gained, lost), abs=4 * (0.25 / 9_999) ** 0.5)


def test_more_groups_are_told_apart_by_more_drawn_signs() -> None:
    assert sign_flip([1.0] * 40, seed=0) == pytest.approx(1e-4)
    assert sign_flip([1.0] * 40, seed=0, alpha=0.05 / 100) == pytest.approx(1 / 40_001)


@pytest.mark.parametrize("bias", [-1.5, 0.0, 0.4, 6.0])
def test_length_control_is_the_penalised_regression_that_scipy_finds(bias: float) -> None:
    """The slow way: the same penalised likelihood, handed to a general minimiser."""
    generator = np.random.default_rng(8)
    lengths = generator.normal(100, 250, 80)
    features = np.tanh(lengths / lengths.std())
    scores = np.round(generator.random(80) < 1 / (1 + np.exp(-bias - features)), 0).astype(float)
    scores[::7] = 0.5

    def loss(weights: np.ndarray) -> float:
        at = weights[0] + weights[1] * features
        likelihood = scores * at - np.logaddexp(0, at)
        return float(-likelihood.sum() + 0.5 * (1e-3 * weights[0] ** 2 + weights[1] ** 2))

    found = optimize.minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert length_controlled(scores, lengths) == pytest.approx(1 / (1 + np.exp(-found.x[0])), abs=1e-6)
