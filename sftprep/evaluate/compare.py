"""Cases to groups: pass rates with intervals, and what is shown to be better or worse than the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sftprep.evaluate.statistics import mcnemar, paired_bootstrap, sign_flip, wilson
from sftprep.reports.evaluate_json import AnswerRecord, CaseRecord, Comparison, GroupRecord

ALPHA = 0.05

Verdict = Literal["worse", "better", "no difference shown"]


def groups(cases: Sequence[CaseRecord], *, by: Literal["suite", "tag", "source"], seed: int) -> list[GroupRecord]:
    """The cases of each suite, of each tag, or of each source that cases name, in order of name."""
    members: dict[str, list[CaseRecord]] = {}
    for case in cases:
        for name in _names(case, by):
            members.setdefault(name, []).append(case)
    alpha = ALPHA / max(len(members), 1)
    return [_group(name, members[name], alpha=alpha, seed=seed) for name in sorted(members)]


def _names(case: CaseRecord, by: Literal["suite", "tag", "source"]) -> list[str]:
    if by == "tag":
        return case.tags
    return [case.suite] if by == "suite" else [case.source] if case.source else []


def _group(name: str, cases: Sequence[CaseRecord], *, alpha: float, seed: int) -> GroupRecord:
    answers = [case.answer for case in cases]
    num_passed = sum(answer.passed for answer in answers)
    interval = wilson(num_passed, len(cases))
    pairs = [(case.answer, case.baseline) for case in cases if case.baseline is not None]
    return GroupRecord(
        name=name,
        num_cases=len(cases),
        num_passed=num_passed,
        pass_rate=num_passed / len(cases),
        low=interval.low,
        high=interval.high,
        mean_value=_mean([answer.value for answer in answers]),
        stops=_mean([float(answer.stopped) for answer in answers]),
        repetition=_mean([answer.repetition for answer in answers]),
        against_baseline=compared(pairs, alpha=alpha, seed=seed) if pairs else None,
    )


def compared(pairs: Sequence[tuple[AnswerRecord, AnswerRecord]], *, alpha: float, seed: int) -> Comparison:
    """New answers against the baseline's on the same cases."""
    values = [(new.value, old.value) for new, old in pairs]
    return comparison(values, [(new.passed, old.passed) for new, old in pairs], alpha=alpha, seed=seed)


def comparison(
    values: Sequence[tuple[float, float]], passed: Sequence[tuple[bool, bool]], *, alpha: float, seed: int
) -> Comparison:
    """Values and verdicts of the same cases, new and baseline; higher values are better.

    Passes are judged by McNemar's test. Values that say more than that are judged too, by a sign-flip test, and each
    of the two tests has half of `alpha` then: together they find a difference where there is none in `alpha` of all.
    """
    gained = sum(new and not old for new, old in passed)
    lost = sum(old and not new for new, old in passed)
    differences = [new - old for new, old in values]
    interval = paired_bootstrap(differences, seed=seed, alpha=alpha)
    p_value = mcnemar(gained, lost)
    is_graded = any(tuple(map(float, both)) != pair for pair, both in zip(values, passed, strict=True))
    p_of_values = sign_flip(differences, seed=seed, alpha=alpha) if is_graded else None
    level = alpha / 2 if is_graded else alpha
    is_shown = p_of_values is not None and p_of_values < level
    change = _mean(differences)
    return Comparison(
        pass_rate=_mean([float(old) for _, old in passed]),
        mean_value=_mean([old for _, old in values]),
        gained=gained,
        lost=lost,
        p_value=p_value,
        p_of_values=p_of_values,
        difference=change,
        low=interval.low,
        high=interval.high,
        confidence=1 - alpha,
        verdict=_verdict(
            worse=(lost > gained and p_value < level) or (is_shown and change < 0),
            better=(gained > lost and p_value < level) or (is_shown and change > 0),
        ),
    )


def _verdict(*, worse: bool, better: bool) -> Verdict:
    if worse:
        return "worse"
    return "better" if better else "no difference shown"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
