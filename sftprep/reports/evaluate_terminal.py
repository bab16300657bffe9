"""An evaluation on a terminal: groups, held-out loss, what got worse by case, gates."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table

from sftprep.reports.evaluate_json import (
    CaseRecord,
    EvaluateReport,
    GroupRecord,
    HarnessScore,
    LikelihoodRecord,
    WinRate,
)
from sftprep.reports.wording import counted

_SHOWN_CASES: Final = 12
_SHOWN_CHARACTERS: Final = 72
_VERDICTS: Final = (
    "verdicts at 95 %, corrected for the number of groups: McNemar's exact test of what is passed; where values are "
    "more than passed or not, a sign-flip test of the values too, each of the two at half of the level"
)


def print_evaluation(report: EvaluateReport, console: Console) -> None:
    """The report; texts of models and suites are never read as markup."""
    against = f" against {report.baseline.name}" if report.baseline else ""
    served = f"asked at {report.model.endpoint}, which renders prompts itself"
    proven = f"{counted(report.model.num_prompts_proven, 'prompt')} proven equal to what transformers sends"
    proven = served if report.model.endpoint else proven
    console.print(f"{report.model.name}{against}: {proven}", markup=False)
    for what, groups in (("suite", report.suites), ("tag", report.tags), ("source", report.sources)):
        if groups:
            console.print(_groups(groups, what))
        if any(group.against_baseline for group in groups):
            console.print(_comparisons(groups, what))
    if report.baseline and report.suites:
        console.print(_VERDICTS, markup=False)
    _print_measured(report, console)
    _print_failures(report, console)
    for gate in report.gates:
        console.print(
            f"{'passed' if gate.passed else 'FAILED'}  {gate.gate}: {gate.what}", markup=False, soft_wrap=True
        )
    console.print("passed" if report.passed else "failed", style="green" if report.passed else "red")


def _print_measured(report: EvaluateReport, console: Console) -> None:
    """What is no suite."""
    if report.likelihood is not None:
        _print_likelihood(report.likelihood, console)
    if report.harness:
        console.print(_harness(report.harness))
    if report.contamination is None and report.suites:
        console.print("not checked: whether training rows hold these cases (--trained-on, --against)", markup=False)
    if report.win_rate is not None:
        _print_win_rate(report.win_rate, console)


def _groups(groups: list[GroupRecord], what: str) -> Table:
    table = _table(what, "cases", "passed", "95 % interval", "value", "stops", "repeats")
    for group in groups:
        rate = f"{group.low:.0%} to {group.high:.0%}"
        own = [group.name, str(group.num_cases), f"{group.pass_rate:.1%}", rate, f"{group.mean_value:.3f}"]
        table.add_row(*own, f"{group.stops:.0%}", f"{group.repetition:.1%}")
    return table


def _comparisons(groups: list[GroupRecord], what: str) -> Table:
    table = _table(f"{what}, against", "baseline", "lost", "gained", "change of value", "verdict")
    for group in groups:
        found = group.against_baseline
        if found is not None:
            interval = f"{found.difference:+.3f} ({found.low:+.2f} to {found.high:+.2f})"
            own = [group.name, f"{found.pass_rate:.1%}", str(found.lost), str(found.gained), interval]
            table.add_row(*own, found.verdict)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(first)
    table.columns[0].overflow = "fold"  # paths differ at their ends
    for name in others:
        table.add_column(name, justify="right")
    return table


def _print_likelihood(found: LikelihoodRecord, console: Console) -> None:
    table = _table("held-out loss", "tokens", "nats per token", "nats per byte", "change of nats per token")
    for name, loss in {"all": found.total, **found.categories}.items():
        per_byte = "" if loss.per_byte is None else f"{loss.per_byte:.4f}"
        change = loss.change
        told = "" if change is None else f"{change.difference:+.4f} ({change.low:+.4f} to {change.high:+.4f})"
        table.add_row(name, f"{loss.num_tokens:,}", f"{loss.per_token:.4f}", per_byte, told)
    console.print(table)


def _harness(scores: list[HarnessScore]) -> Table:
    table = _table("task", "metric", "documents", "value", "error", "baseline", "verdict")
    for score in scores:
        error = "" if score.stderr is None else f"± {score.stderr:.4f}"
        before = "" if score.baseline is None else f"{score.baseline:.4f}"
        verdict = "" if score.against_baseline is None else score.against_baseline.verdict
        metric = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
        table.add_row(score.task, metric, f"{score.num_documents:,}", f"{score.value:.4f}", error, before, verdict)
    return table


def _print_win_rate(found: WinRate, console: Console) -> None:
    said = f"{found.judge} prefers the new answers in {found.win_rate:.1%} ({found.low:.1%} to {found.high:.1%})"
    counts = f"{found.wins} won, {found.ties} tied, {found.losses} lost, {found.num_unreadable} unreadable"
    console.print(f"{said} against {found.against}: {counts}", markup=False)
    console.print(
        f"at equal length {found.length_controlled:.1%}; the answer shown first wins {found.first_position:.1%}"
    )


def _print_failures(report: EvaluateReport, console: Console) -> None:
    """What got worse against the baseline; without one, what was not passed."""
    compared = report.baseline is not None
    cases = report.regressions if compared else [case for case in report.cases if not case.answer.passed]
    if not cases:
        return
    title = "worse than the baseline" if compared else "not passed"
    console.print(f"\n{title}: {counted(len(cases), 'case')}", markup=False)
    for case in cases[:_SHOWN_CASES]:
        console.print(_case_line(case), markup=False, soft_wrap=True)
    if len(cases) > _SHOWN_CASES:
        console.print(f"  and {len(cases) - _SHOWN_CASES} more (--json and --html have all)", markup=False)


def _case_line(case: CaseRecord) -> str:
    before = f"{case.baseline.value:.2f} to " if case.baseline else ""
    why = "; ".join(f"{score.kind}: {score.note}" for score in case.answer.scores if not score.passed)
    text = " ".join(case.answer.text.split())
    short = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return f"  {case.suite}/{case.id}  {before}{case.answer.value:.2f}  {why}\n      {short!r}"
