"""Scores of tasks beside the baseline's, paired by document, and the gates that judge them; no harness runs here."""

from __future__ import annotations

from typing import Any

import pytest

from sftprep.config.evaluate import EvaluateGate
from sftprep.evaluate.gates import Measured, judged
from sftprep.evaluate.harness import TaskScore, harness_records
from sftprep.reports.evaluate_json import HarnessScore


def task(values: list[float], **more: Any) -> TaskScore:
    settings: dict[str, Any] = {"task": "pier", "metric": "acc", "filter": "none", "is_main": True, "stderr": None}
    settings |= {"higher_is_better": True, "num_fewshot": 0, "version": "1", "chat_template": True} | more
    record = HarnessScore(value=sum(values) / len(values), num_documents=len(values), **settings)
    return TaskScore(record, dict(enumerate(values)))


def gates(scores: list[HarnessScore], *asked: str) -> dict[str, bool]:
    nothing: dict[str, Any] = dict.fromkeys(("likelihood", "contamination", "win_rate", "parity", "provenance"))
    found = judged([EvaluateGate.parse(text) for text in asked], Measured([], [], harness=scores, **nothing))
    return {gate.gate: gate.passed for gate in found}


def test_documents_are_paired_by_their_numbers() -> None:
    """The same mean, every document another: four that are won and four that are lost."""
    new, old = [1.0] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4
    (record,) = harness_records([task(new)], [task(old)], seed=1)
    assert record.baseline == record.value == 0.5
    assert record.against_baseline is not None
    assert (record.against_baseline.gained, record.against_baseline.lost) == (4, 4)


@pytest.mark.parametrize(("lost", "wanted"), [(9, False), (4, True), (0, True)])
def test_a_task_that_is_shown_to_be_worse_fails_and_noise_does_not(*, lost: int, wanted: bool) -> None:
    new, old = [0.0] * lost + [1.0] * (20 - lost), [1.0] * 20
    assert gates(harness_records([task(new)], [task(old)], seed=1)) == {"harness-regression": wanted}


@pytest.mark.parametrize(
    ("gate", "wanted"),
    [
        ("harness.pier=0.5", True),
        ("harness.pier=0.51", False),
        ("harness=0.51", False),
        ("harness.pier/word_perplexity=11", True),
        ("harness.pier/word_perplexity=9", False),
    ],
)
def test_a_metric_is_compared_in_the_direction_in_which_it_is_better(gate: str, *, wanted: bool) -> None:
    perplexity = task([10.0, 10.0], metric="word_perplexity", is_main=False, higher_is_better=False)
    assert gates([task([1.0, 0.0]).record, perplexity.record], gate) == {gate: wanted}


def test_what_cannot_be_paired_is_not_compared() -> None:
    other = TaskScore(task([1.0]).record, {7: 1.0})
    lower = task([1.0], higher_is_better=False)
    for new, old in ((task([1.0]), other), (lower, lower)):
        (record,) = harness_records([new], [old], seed=1)
        assert (record.baseline, record.against_baseline) == (1.0, None)
