"""A comparison of two prepared sets on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

from sftprep.reports.diff_json import RULE_TEXTS, Difference, DiffReport
from sftprep.reports.mask_view import visible
from sftprep.reports.wording import counted


def print_diff(report: DiffReport, console: Console) -> None:
    """Totals, the rules behind the differences, and the first place of each."""
    for line in [*_totals(report), *_rules(report)]:
        console.print(visible(line), soft_wrap=True, markup=False)
    for difference in report.differences:
        for line in _lines(difference):
            console.print(visible(line), soft_wrap=True, markup=False)
    for name, places in (("left", report.only_left), ("right", report.only_right)):
        if places:
            told = f"\non the {name} only, first: {'; '.join(places)}"
            console.print(visible(told), soft_wrap=True, markup=False)
    console.print("same" if report.same else "DIFFERENT", style="green" if report.same else "bold red")


def _totals(report: DiffReport) -> Iterator[str]:
    for name, side in (("left ", report.left), ("right", report.right)):
        counts = f"{counted(side.num_documents, 'document')}, {counted(side.num_tokens, 'token')}"
        yield f"{name} {side.path} ({side.kind}): {counts}, {side.num_trained:,} trained"
    yield (
        f"documents: {report.num_identical:,} identical, {report.num_masks_differ:,} with other masks, "
        f"{report.num_ids_differ:,} with other ids, {report.num_only_left:,} on the left only, "
        f"{report.num_only_right:,} on the right only"
    )
    for name, kinds in (("left", report.trained_only_left), ("right", report.trained_only_right)):
        if kinds:
            yield f"tokens that only the {name} side trains: {', '.join(f'{k} {n:,}' for k, n in kinds.items())}"


def _rules(report: DiffReport) -> Iterator[str]:
    for rule in report.rules:
        side = f", trained by the {rule.trained_by} side" if rule.trained_by else ""
        yield f"{rule.num_documents:,} x {rule.rule}: {RULE_TEXTS[rule.rule]}{side}"


def _lines(difference: Difference) -> list[str]:
    reason = f", {difference.reason}" if difference.reason else ""
    return [
        f"\n{difference.rule} at token {difference.position}{reason}",
        f"  left   {difference.left}",
        f"  right  {difference.right}",
        f"  after  {difference.before!r}",
        f"  left   {difference.left_text!r}",
        f"  right  {difference.right_text!r}",
    ]
