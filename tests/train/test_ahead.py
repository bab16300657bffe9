"""Making steps ahead changes neither their order nor where an error shows, and leaves no thread behind."""

from __future__ import annotations

import threading

import pytest

from sftprep.train.ahead import ahead


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


@pytest.mark.parametrize("steps", [range(0), range(1), range(3, 20)])
def test_every_step_comes_once_in_order(steps: range) -> None:
    assert list(ahead(lambda step: step * 10, steps)) == [step * 10 for step in steps]
    assert _threads() == []


def test_the_next_step_is_made_while_this_one_is_used() -> None:
    made = [threading.Event() for _ in range(3)]
    results = ahead(lambda step: made[step].set(), range(3))
    next(results)
    assert made[1].wait(timeout=200)
    results.close()


def test_an_error_shows_at_its_own_step_and_ends_the_thread() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("step 2")
        return step

    results = ahead(make, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="step 2"):
        next(results)
    assert _threads() == []


def test_a_run_that_stops_early_ends_the_thread_and_makes_little_in_vain() -> None:
    made: list[int] = []
    results = ahead(made.append, range(1000))
    next(results)
    next(results)
    results.close()
    assert _threads() == []
    assert len(made) <= 4
