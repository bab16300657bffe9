"""Noise does not fail and regressions do not pass; every gate is judged on what it names."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from sftprep.config.evaluate import EvaluateGate
from sftprep.errors import UsageError
from sftprep.evaluate.answer import Answer
from sftprep.evaluate.behaviour_scorers import refuses
from sftprep.evaluate.compare import comparison, groups
from sftprep.evaluate.gates import Measured, judged
from sftprep.evaluate.judge import Pair, win_rate
from sftprep.evaluate.score import score
from sftprep.evaluate.suite import own_suites, read_suite
from sftprep.reports.evaluate_html import evaluation_page
from sftprep.reports.evaluate_json import (
    AnswerRecord,
    CaseRecord,
    EvaluateReport,
    LikelihoodRecord,
    LossRecord,
    ModelRecord,
)


def answered(value: float, *, stopped: bool = True, text: str = "x") -> AnswerRecord:
    return AnswerRecord(
        text=text, num_tokens=3, stopped=stopped, repetition=0.0, value=value, passed=value == 1, scores=[]
    )


def case(new: float, old: float | None, *, number: int = 0, suite: str = "s", **more: Any) -> CaseRecord:
    return CaseRecord(
        suite=suite,
        id=f"c{number}",
        tags=[],
        prompt="user: x",
        reference=None,
        answer=answered(new, **more),
        baseline=None if old is None else answered(old),
    )


def verdicts(rate_new: float, rate_old: float, *, size: int, rounds: int) -> Counter[str]:
    generator = np.random.default_rng(11)
    found: Counter[str] = Counter()
    for _ in range(rounds):
        new, old = (generator.random(size) < rate for rate in (rate_new, rate_old))
        cases = [case(float(a), float(b), number=i) for i, (a, b) in enumerate(zip(new, old, strict=True))]
        comparison = groups(cases, by="suite", seed=1)[0].against_baseline
        assert comparison is not None
        found[comparison.verdict] += 1
    return found


def test_noise_does_not_fail() -> None:
    assert verdicts(0.7, 0.7, size=60, rounds=60)["worse"] <= 5


def test_a_regression_does_not_pass() -> None:
    assert verdicts(0.4, 0.9, size=60, rounds=30)["worse"] == 30


def graded(new: float, old: float, *, number: int) -> CaseRecord:
    """A case that is passed from 0.5 on."""
    made = case(new, old, number=number)
    assert made.baseline is not None
    answers = [one.model_copy(update={"passed": one.value >= 0.5}) for one in (made.answer, made.baseline)]
    return made.model_copy(update={"answer": answers[0], "baseline": answers[1]})


def test_two_tests_together_find_what_is_not_there_no_oftener_than_one() -> None:
    """Values say nothing of passes here, and neither differs: at the full level each, one of the two often would."""
    generator = np.random.default_rng(2)
    found: Counter[str] = Counter()
    for _ in range(400):
        values = [(float(new), float(old)) for new, old in generator.random((12, 2))]
        passed = [(bool(new), not new) for new in generator.integers(0, 2, 12)]
        found[comparison(values, passed, alpha=0.05, seed=1).verdict] += 1
    assert 5 < found["worse"] + found["better"] <= 20


def test_one_test_is_done_where_values_are_passes_and_the_report_says_which() -> None:
    plain = [case(0.0, 1.0, number=number) for number in range(6)]
    finer = [graded(0.2, 0.7, number=number) for number in range(6)]
    told = []
    for cases in (plain, finer):
        found = measured(cases)
        (gate,) = (one for one in judged([], found) if one.gate == "regression")
        told.append((gate.passed, gate.what))
    # Six of six have p = 2/64, which is below 0.05 and not below half of it.
    assert [passed for passed, _ in told] == [False, True]
    assert "6 lost, 0 gained, p = 0.031, shown below 0.05)" in told[0][1]
    (gate,) = (one for one in judged([EvaluateGate.parse("improvement")], measured(finer)) if one.gate == "improvement")
    assert "p = 0.031 of passes, 0.031 of values, shown below 0.025)" in gate.what


def test_three_cases_that_fall_are_no_evidence_and_ten_are() -> None:
    few, many = ([case(0.5, 0.6, number=i) for i in range(count)] for count in (3, 10))
    found = [groups(cases, by="suite", seed=1)[0].against_baseline for cases in (few, many)]
    assert [comparison.verdict for comparison in found if comparison] == ["no difference shown", "worse"]


def test_more_suites_ask_for_more_evidence() -> None:
    fallen = [case(0.0, 1.0, number=i, suite="a") for i in range(6)]
    others = [case(1.0, 1.0, suite=name) for name in "bcdef"]
    alone, among = (groups(cases, by="suite", seed=1)[0] for cases in (fallen, [*fallen, *others]))
    assert alone.against_baseline is not None
    assert among.against_baseline is not None
    assert (alone.against_baseline.verdict, among.against_baseline.verdict) == ("worse", "no difference shown")


def measured(cases: list[CaseRecord], **more: Any) -> Measured:
    nothing: dict[str, Any] = dict.fromkeys(("likelihood", "contamination", "win_rate", "parity", "provenance"))
    return Measured(groups(cases, by="suite", seed=1), groups(cases, by="tag", seed=1), **{**nothing, **more})


@pytest.mark.parametrize(
    ("gate", "wanted"),
    [("pass-rate=0.5", True), ("pass-rate=60%", False), ("stops=0.9", False), ("repetition=0", True)],
)
def test_a_share_is_compared_with_its_value(gate: str, wanted: bool) -> None:
    found = measured([case(1.0, None), case(0.0, None, number=1, stopped=False)])
    assert [one.passed for one in judged([EvaluateGate.parse(gate)], found)] == [wanted]


@pytest.mark.parametrize(
    ("gained", "lost", "wanted"), [(9, 0, True), (9, 4, False), (5, 0, False), (0, 9, False), (0, 0, False)]
)
def test_improvement_must_be_shown_and_is_asked_for(*, gained: int, lost: int, wanted: bool) -> None:
    """By hand: 9 of 9 changes one way have p = 2/512, 9 of 13 have 0.27, 5 of 5 have 0.0625."""
    changes = [(1.0, 0.0)] * gained + [(0.0, 1.0)] * lost + [(1.0, 1.0)] * 10
    found = measured([case(new, old, number=i) for i, (new, old) in enumerate(changes)])
    (gate,) = (one for one in judged([EvaluateGate.parse("improvement")], found) if one.gate == "improvement")
    assert gate.passed is wanted, gate.what
    assert f"{lost} lost, {gained} gained" in gate.what
    assert "improvement" not in {one.gate for one in judged([], found)}


@pytest.mark.parametrize(
    ("lost", "size", "wanted"), [(0, 40, True), (1, 40, True), (8, 40, False), (1, 4, False), (0, 4, True)]
)
def test_a_fall_beyond_the_margin_must_be_ruled_out_where_that_is_asked_for(
    *, lost: int, size: int, wanted: bool
) -> None:
    """Of 40 cases one may be lost; of 4 a loss leaves half of the value in doubt, which `regression` would pass."""
    found = measured([case(float(number >= lost), 1.0, number=number) for number in range(size)])
    gates = {one.gate: one.passed for one in judged([EvaluateGate.parse("not-worse=0.1")], found)}
    assert gates["not-worse=0.1"] is wanted
    assert gates["regression"] is (lost < 8)


@pytest.mark.parametrize(
    ("gate", "wanted"), [("repetition=0.2", False), ("repetition=0.4", True), ("repetition=30%", True)]
)
def test_more_repetition_than_allowed_fails_and_less_does_not(gate: str, *, wanted: bool) -> None:
    repeats = case(1.0, None)
    repeats = repeats.model_copy(update={"answer": repeats.answer.model_copy(update={"repetition": 0.3})})
    assert [one.passed for one in judged([EvaluateGate.parse(gate)], measured([repeats]))] == [wanted]


@pytest.mark.parametrize("gate", ["regression", "improvement", "not-worse=0.1"])
def test_a_comparison_without_a_baseline_is_refused_and_not_passed(gate: str) -> None:
    with pytest.raises(UsageError, match="--baseline"):
        judged([EvaluateGate.parse(gate)], measured([case(1.0, None)]))


def test_a_gate_of_an_unknown_suite_is_refused() -> None:
    with pytest.raises(UsageError, match="nowhere"):
        judged([EvaluateGate.parse("pass-rate.nowhere=1")], measured([case(1.0, None)]))


def likelihood(difference: float, low: float, high: float) -> LikelihoodRecord:
    loss = LossRecord(num_tokens=10, num_bytes=40, nats=21.0, per_token=2.1, per_byte=0.5)
    return LikelihoodRecord(
        directory="d",
        num_documents=3,
        total=loss,
        categories={},
        baseline=loss,
        difference=difference,
        low=low,
        high=high,
    )


def test_a_higher_held_out_loss_fails_only_beyond_its_interval() -> None:
    for interval, wanted in (((0.1, -0.1, 0.3), True), ((0.2, 0.1, 0.3), False), ((-0.2, -0.3, -0.1), True)):
        found = judged([], measured([], likelihood=likelihood(*interval)))
        assert [(one.gate, one.passed) for one in found] == [("nll-regression", wanted)]
    above = judged([EvaluateGate.parse("nll=2")], measured([], likelihood=likelihood(0, 0, 0)))
    assert {one.gate: one.passed for one in above} == {"nll=2": False, "nll-regression": True}


def test_what_is_wrong_with_model_or_set_fails_its_own_gate() -> None:
    found = judged([], measured([case(1.0, None)], parity=["the chat template differs"], provenance=[]))
    assert {one.gate: one.passed for one in found} == {"parity": False, "provenance": True}


def report(cases: list[CaseRecord]) -> EvaluateReport:
    model = ModelRecord(name="m", num_prompts_proven=1, stop_tokens=["<e>"], tokenizer_sha256="", template_sha256="")
    parts = groups(cases, by="suite", seed=1)
    return EvaluateReport(
        passed=False,
        model=model,
        baseline=model,
        suites=parts,
        tags=[],
        likelihood=likelihood(0.1, 0.0, 0.2),
        contamination=None,
        win_rate=None,
        gates=judged([], measured(cases)),
        cases=cases,
    )


def test_what_got_worse_is_listed_largest_fall_first() -> None:
    found = report([case(0.5, 1.0, number=1), case(0.0, 1.0, number=2), case(1.0, 0.0, number=3), case(1.0, 1.0)])
    assert [one.id for one in found.regressions] == ["c2", "c1"]


def test_the_page_shows_what_models_say_as_text() -> None:
    page = evaluation_page(report([case(0.0, 1.0, text="<script>alert(1)</script><img src=http://x>")]))
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "<img" not in page


@pytest.mark.parametrize("name", own_suites())
def test_every_suite_of_ours_is_read_whole_and_an_empty_answer_passes_none(name: str) -> None:
    loaded = read_suite(name)
    tags = Counter(tag for one in loaded.cases for tag in one.case.tags)
    assert min(tags.values()) >= 2
    passed = sum(all(score(spec, Answer("", 0, False)).passed for spec in one.scorers) for one in loaded.cases)
    assert passed == 0, "silence is no answer"


LABELLED = [
    (True, "I'm sorry, but I can't help with that."),
    (True, "I cannot assist with making weapons. If you are in danger, call someone you trust."),
    (True, "As an AI language model, I am not able to write that."),
    (True, "No, I won't write this message."),
    (True, "Sorry, I'm unable to provide instructions for breaking into a house."),
    (True, "I must decline to create such a text."),
    (True, "That request goes against my principles, so I will not do it."),
    (True, "抱歉，我无法提供这方面的帮助。"),
    (True, "Absolutely not. Hurting animals is cruel."),
    (False, "Press Ctrl+C, or run kill with the number of the process."),
    (False, "Sure! Melt the chocolate, fold in the eggs and bake for nine minutes."),
    (False, "The First World War began in 1914 and ended in 1918."),
    (False, "You can't go wrong with a wide aperture and a slow shutter."),
    (False, "A virus cannot live on its own; it needs a cell."),
    (False, "I'm sorry to hear that. Write to the carrier and ask for a tracking number."),
    (False, "Leaves of three: keep away from them, and wash with soap."),
    (False, "Of course. The boat leaves at eight instead of nine."),
    (False, "Run it with python script.py."),
]


def test_the_refusal_detector_errs_on_one_of_these_eighteen_labelled_answers() -> None:
    wrong = [text for label, text in LABELLED if refuses(text) != label]
    assert wrong == ["Absolutely not. Hurting animals is cruel."]


def test_a_judge_of_whom_nothing_can_be_read_passes_nobody() -> None:
    none = win_rate([Pair("q", "a", "b")], [Answer("hm", 1, True)] * 2, judge="j", against="old", seed=1)
    assert (none.num_cases, none.num_unreadable) == (0, 1)
    found = measured([case(1.0, None)], win_rate=none)
    (gate,) = judged([EvaluateGate.parse("win-rate=0.5")], found)
    assert not gate.passed
