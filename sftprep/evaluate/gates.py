"""The conditions of `--fail-on` and of the suites, judged on a report's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sftprep.config.evaluate import EvaluateGate
from sftprep.errors import UsageError
from sftprep.reports.evaluate_json import (
    Comparison,
    Contamination,
    GateRecord,
    GroupRecord,
    HarnessScore,
    LikelihoodRecord,
    WinRate,
)
from sftprep.reports.wording import counted

_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """What gates look at. `parity` and `provenance` hold what is wrong; None where nothing could be checked."""

    suites: Sequence[GroupRecord]
    tags: Sequence[GroupRecord]
    likelihood: LikelihoodRecord | None
    contamination: Contamination | None
    win_rate: WinRate | None
    parity: Sequence[str] | None
    provenance: Sequence[str] | None
    harness: Sequence[HarnessScore] = ()
    sources: Sequence[GroupRecord] = ()


def judged(gates: Sequence[EvaluateGate], measured: Measured) -> list[GateRecord]:
    """Every gate asked for, and those that need no value and can be checked.

    Raises:
        UsageError: `bad-option`: a gate names no suite and no tag.
    """
    asked = {gate.text: gate for gate in gates}
    for text in _checkable(measured):
        asked.setdefault(text, EvaluateGate.parse(text))
    return [_judge(gate, measured) for gate in asked.values()]


def _checkable(measured: Measured) -> Iterator[str]:
    likelihood = measured.likelihood
    if any(group.against_baseline is not None for group in measured.suites):
        yield "regression"
    if likelihood is not None and likelihood.difference is not None:
        yield "nll-regression"
    if any(score.against_baseline is not None for score in measured.harness):
        yield "harness-regression"
    for name in ("contamination", "parity", "provenance"):
        if getattr(measured, name) is not None:
            yield name


def _judge(gate: EvaluateGate, measured: Measured) -> GateRecord:
    judge = _JUDGES.get(gate.kind, _shares)
    passed, what = judge(gate, measured)
    return GateRecord(gate=gate.text, passed=passed, what=what)


def _chosen(gate: EvaluateGate, measured: Measured) -> Sequence[GroupRecord]:
    if not gate.where:
        return measured.suites
    found = [group for group in (*measured.suites, *measured.tags, *measured.sources) if group.name == gate.where]
    if not found:
        names = ", ".join(group.name for group in (*measured.suites, *measured.tags, *measured.sources))
        raise UsageError(
            f"--fail-on {gate.text}: no suite, tag or source is called {gate.where!r}",
            code="bad-option",
            hint=f"there are: {names}",
        )
    return found


def _shares(gate: EvaluateGate, measured: Measured) -> tuple[bool, str]:
    values = {group.name: getattr(group, gate.kind.replace("-", "_")) for group in _chosen(gate, measured)}
    failed = {name: value for name, value in values.items() if not gate.holds(value)}
    return not failed, _listed([f"{name} {value:.1%}" for name, value in (failed or values).items()])


def _compared(gate: EvaluateGate, measured: Measured) -> Sequence[tuple[str, Comparison]]:
    pairs = [(group.name, group.against_baseline) for group in _chosen(gate, measured)]
    compared = [(name, found) for name, found in pairs if found is not None]
    if not compared:
        raise UsageError("a suite's gate needs --baseline", code="bad-option", hint="see sftprep evaluate --help")
    return compared


def _regression(gate: EvaluateGate, measured: Measured) -> tuple[bool, str]:
    compared = _compared(gate, measured)
    worse = [_told(name, found) for name, found in compared if found.verdict == "worse"]
    return not worse, _listed(worse) or f"none of {len(compared)} is shown to be worse"


def _improvement(gate: EvaluateGate, measured: Measured) -> tuple[bool, str]:
    """Every suite, or the one that the gate names, is shown to be better: no difference shown is a failure."""
    compared = _compared(gate, measured)
    others = [_told(name, found) for name, found in compared if found.verdict != "better"]
    return not others, _listed(others or [_told(name, found) for name, found in compared])


def _not_worse(gate: EvaluateGate, measured: Measured) -> tuple[bool, str]:
    """Every suite, or the one that the gate names, is shown to have lost no more than the gate's value."""
    compared = _compared(gate, measured)
    others = [_told(name, found) for name, found in compared if not gate.holds(-found.low)]
    return not others, _listed(others or [_told(name, found) for name, found in compared])


def _told(name: str, found: Comparison) -> str:
    level = 1 - found.confidence
    tests = f"p = {found.p_value:.2g}, shown below {level:.2g}"
    if found.p_of_values is not None:
        tests = f"p = {found.p_value:.2g} of passes, {found.p_of_values:.2g} of values, shown below {level / 2:.2g}"
    return (
        f"{name} {found.difference:+.3f} ({found.confidence:.1%} interval {found.low:+.3f} to {found.high:+.3f}, "
        f"{found.lost} lost, {found.gained} gained, {tests})"
    )


def _nll(gate: EvaluateGate, measured: Measured) -> tuple[bool, str]:
    found = _likelihood(measured).total.per_token
    return gate.holds(found), f"{found:.4f} nats per token"


def _nll_regression(gate: EvaluateGate, measured: Measured) -> tuple[bool, str]:
    found = _likelihood(measured)
    low, high = found.low or 0.0, found.high or 0.0
    what = f"{found.difference or 0.0:+.4f} nats per token (95 % interval {low:+.4f} to {high:+.4f})"
    return low <= 0, what


def _likelihood(measured: Measured) -> LikelihoodRecord:
    if measured.likelihood is None:
        raise UsageError("a suite's gate needs --held-out", code="bad-option", hint="see sftprep evaluate --help")
    return measured.likelihood


def _contamination(gate: EvaluateGate, measured: Measured) -> tuple[bool, str]:
    if measured.contamination is None:
        raise UsageError("a suite's gate needs --against", code="bad-option", hint="see sftprep evaluate --help")
    found, unread = measured.contamination.found, measured.contamination.unread
    what = _listed(found) or f"no case is in {measured.contamination.num_rows:,} training rows"
    missing = f"; not compared, name them with --against: {_listed(unread)}" if unread else ""
    return not (found or unread), what + missing


def _win_rate(gate: EvaluateGate, measured: Measured) -> tuple[bool, str]:
    found = measured.win_rate
    if found is None:
        raise UsageError("a suite's gate needs --judge", code="bad-option", hint="see sftprep evaluate --help")
    if not found.num_cases:
        return False, f"no verdict of {found.judge} could be read"
    what = f"{found.win_rate:.1%} against {found.against} (95 % interval {found.low:.1%} to {found.high:.1%})"
    unread = f", {counted(found.num_unreadable, 'more pair')} cannot be read" if found.num_unreadable else ""
    return gate.holds(found.win_rate), what + unread


def _faults(gate: EvaluateGate, measured: Measured) -> tuple[bool, str]:
    faults = getattr(measured, gate.kind)
    if faults is None:
        raise UsageError("a suite's gate needs --trained-on", code="bad-option", hint="see sftprep evaluate --help")
    return not faults, _listed(faults) or "nothing is wrong"


def _harness(gate: EvaluateGate, measured: Measured) -> tuple[bool, str]:
    """Of the task `TASK`, or its metric `TASK/METRIC`; without a name, the main metric of every task."""
    task, _, metric = gate.where.partition("/")
    found = [
        score
        for score in measured.harness
        if task in ("", score.task) and (score.metric == metric if metric else score.is_main)
    ]
    if not found:
        names = ", ".join(f"{score.task}/{score.metric}" for score in measured.harness)
        raise UsageError(
            f"--fail-on {gate.text}: no task has that score", code="bad-option", hint=f"there are: {names or 'none'}"
        )
    failed = [score for score in found if not _reaches(score, gate.value)]
    return not failed, _listed([f"{score.task}/{score.metric} {score.value:.4f}" for score in failed or found])


def _reaches(score: HarnessScore, value: float) -> bool:
    return score.value >= value if score.higher_is_better else score.value <= value


def _harness_regression(gate: EvaluateGate, measured: Measured) -> tuple[bool, str]:
    pairs = [(score, score.against_baseline) for score in measured.harness if score.is_main]
    compared = [(score.task, found) for score, found in pairs if found is not None]
    if not compared:
        raise UsageError("no task can be compared by document", code="bad-option", hint="see sftprep evaluate --help")
    worse = [_told(name, found) for name, found in compared if found.verdict == "worse"]
    return not worse, _listed(worse) or f"none of {len(compared)} is shown to be worse"


def _listed(found: Sequence[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


_JUDGES: Final[Mapping[str, Callable[[EvaluateGate, Measured], tuple[bool, str]]]] = {
    "regression": _regression,
    "improvement": _improvement,
    "not-worse": _not_worse,
    "nll": _nll,
    "nll-regression": _nll_regression,
    "contamination": _contamination,
    "win-rate": _win_rate,
    "parity": _faults,
    "provenance": _faults,
    "harness": _harness,
    "harness-regression": _harness_regression,
}
