"""Verdicts of a judge to a win-rate, by hand: both orders, half wins, ties, the place that wins, what is unreadable."""

from __future__ import annotations

import numpy as np
import pytest

from sftprep.evaluate.answer import Answer
from sftprep.evaluate.judge import Pair, questions, win_rate
from sftprep.evaluate.statistics import paired_bootstrap
from sftprep.reports.evaluate_json import WinRate


def rated(*verdicts: tuple[str, str]) -> WinRate:
    """Verdicts on the new answer shown first, and shown second."""
    pairs = [Pair("q", f"new {i}", f"old {i}") for i in range(len(verdicts))]
    told = [Answer(text, 1, True) for both in verdicts for text in both]
    return win_rate(pairs, told, judge="j", against="old", seed=3)


@pytest.mark.parametrize(
    ("first", "second", "points"),
    [
        ("A", "B", 1.0),
        ("A", "tie", 0.75),
        ("tie", "B", 0.75),
        ("tie", "tie", 0.5),
        ("A", "A", 0.5),
        ("B", "B", 0.5),
        ("tie", "A", 0.25),
        ("B", "tie", 0.25),
        ("B", "A", 0.0),
    ],
)
def test_a_pair_scores_the_mean_of_both_orders(first: str, second: str, points: float) -> None:
    found = rated((first, second))
    assert found.win_rate == points
    assert (found.wins, found.ties, found.losses) == (points > 0.5, points == 0.5, points < 0.5)


@pytest.mark.parametrize(
    ("text", "is_read"),
    [
        ("A", True),
        (" **A**\nIt is correct.", True),
        ("A. It is correct, B is not.", True),
        ("Answer A: it is correct.", True),
        ("A - it is correct", True),
        ("A, B or tie.", False),
        ("A better answer is B.", False),
        ("A cautious answer", False),
        ("Both are fine.", False),
        ("", False),
    ],
)
def test_a_verdict_stands_alone_or_before_its_reason(text: str, *, is_read: bool) -> None:
    """The ones that are not read are by a real model that was asked to judge, or begin with an article."""
    found = rated((text, "B"))
    assert (found.num_cases, found.wins) == (is_read, is_read)


def test_a_win_rate_by_hand() -> None:
    readable = [("A", "B"), ("answer A", "**B**"), ("A", "tie"), ("TIE.", "tie"), ("B", "A"), ("A", "A")]
    found = rated(*readable, ("A", "?"), ("", "B"))
    points = [1.0, 1.0, 0.75, 0.5, 0.0, 0.5]
    assert found.win_rate == pytest.approx(sum(points) / 6)
    assert (found.num_cases, found.num_unreadable) == (6, 2)
    assert (found.wins, found.ties, found.losses) == (3, 2, 1)
    # A, B; A, B; A; B, A; A, A: nine verdicts of what was read name a place, six of them the first.
    assert found.first_position == pytest.approx(6 / 9)
    interval = paired_bootstrap(points, seed=3)
    assert (found.low, found.high) == (interval.low, interval.high)


def test_each_pair_is_asked_in_both_orders_and_nothing_else_differs() -> None:
    first, second = questions([Pair("When?", "At six.", "At nine.")])
    texts = [question["messages"][0]["content"] for question in (first, second)]
    assert texts[0].index("At six.") < texts[0].index("At nine.")
    assert texts[1].index("At nine.") < texts[1].index("At six.")
    swapped = texts[0].replace("At six.", "?").replace("At nine.", "At six.").replace("?", "At nine.", 2)
    assert swapped.replace("WhenAt nine.", "When?") == texts[1]


def test_a_judge_who_prefers_length_alone_gives_no_length_controlled_win() -> None:
    generator = np.random.default_rng(4)
    pairs, told = [], []
    for _ in range(200):
        new, old = (int(size) for size in generator.integers(20, 400, 2) + np.array([150, 0]))
        pairs.append(Pair("q", "x" * new, "y" * old))
        told += [Answer(text, 1, True) for text in (("A", "B") if new > old else ("B", "A"))]
    found = win_rate(pairs, told, judge="j", against="old", seed=3)
    assert found.win_rate > 0.75
    assert abs(found.length_controlled - 0.5) < (found.win_rate - 0.5) / 2
