"""The quality report on a terminal: each ranking with its worst examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sftprep.reports.quality_json import Example, Groups, Leakage, QualityReport, Ranked, SourceStats
from sftprep.reports.wording import counted

_SHOWN_LEAKS = 5


def print_quality(report: QualityReport, console: Console) -> None:
    """Duplicates, diversity, flaws, sources and leakage, in this order."""
    skipped = f", {report.num_skipped:,} with errors left out" if report.num_skipped else ""
    console.print(
        f"quality of {counted(report.num_rows, 'row')}, {counted(report.num_answers, 'answer')}{skipped}", style="bold"
    )
    _print_duplicates(report, console)
    _print_diversity(report, console)
    _print_flaws(report, console)
    if report.sources:
        console.print(_source_table(report.sources))
    for gap in report.gaps:
        console.print(f"  {gap.measure}: human {gap.human:.3g}, synthetic {gap.synthetic:.3g}")
    if report.leakage is not None:
        _print_leakage(report.leakage, console)


def _line(console: Console, text: str, *, style: str = "") -> None:
    console.print(escape(text), style=style, soft_wrap=True)


def _print_duplicates(report: QualityReport, console: Console) -> None:
    table = Table("duplicates", title=f"near: similarity from {report.near_duplicate:g}", title_justify="left")
    for name in ("texts", "exact", "near", "share"):
        table.add_column(name, justify="right")
    for found in report.duplicates:
        counts = (f"{found.num_texts:,}", f"{found.num_exact:,}", f"{found.num_near:,}", f"{found.share_near:.1%}")
        table.add_row(found.view, *counts)
    console.print(table)
    for found in report.duplicates:
        _print_ranked(f"largest clusters of {found.view}", found.clusters, console)


def _print_ranked(title: str, groups: Sequence[Ranked], console: Console) -> None:
    if groups:
        _line(console, f"{title}:", style="bold")
    for group in groups:
        for position, example in enumerate(group.examples):
            count = f"{group.size:>7,}" if position == 0 else " " * 7
            _line(console, f"{count}  {example.place}  {example.excerpt}")


def _print_diversity(report: QualityReport, console: Console) -> None:
    found = report.diversity
    shares = ", ".join(f"{d.share:.1%} of {d.num_total:,} {d.n}-grams" for d in found.distinct)
    _line(console, f"distinct in answers: {shares}")
    _line(console, f"stock phrases in {found.share_stock:.1%} of answers", style="bold")
    for phrase in found.stock_phrases[:5]:
        _line(console, f"{phrase.num_answers:>7,}  {phrase.share:.1%}  {phrase.phrase}")
    for groups in (found.openings, *found.templates):
        _print_ranked(_group_title(groups), groups.largest, console)


def _group_title(groups: Groups) -> str:
    what = "answers with a common opening" if groups.kind == "opening" else f"prompts with a common {groups.kind}"
    return f"{what.replace('common same', 'common')}: {groups.share:.1%}, largest groups"


def _print_flaws(report: QualityReport, console: Console) -> None:
    table = Table("answers", title="low quality", title_justify="left")
    for name in ("found", "share", "judged"):
        table.add_column(name, justify="right")
    table.add_column("meaning")
    for flaw in report.flaws:
        table.add_row(flaw.code, f"{flaw.num_answers:,}", f"{flaw.share:.1%}", f"{flaw.num_judged:,}", flaw.meaning)
    console.print(table)
    for flaw in report.flaws:
        if flaw.examples:
            _line(console, f"{flaw.code}, the worst:", style="bold")
            _line(console, f"  measured on answers that were read: {flaw.reach}", style="dim")
        for line in _example_lines(flaw.examples):
            _line(console, line)


def _example_lines(examples: Sequence[Example]) -> Iterator[str]:
    for example in examples:
        yield f"  {example.score:.2f}  {example.place}  {example.excerpt}"


def _source_table(sources: Sequence[SourceStats]) -> Table:
    table = Table("source", "by")
    for name in ("rows", "words an answer", "near duplicates", "stock phrases", "flawed", "distinct bigrams"):
        table.add_column(name, justify="right")
    for line in sources:
        table.add_row(
            escape(line.source),
            line.author,
            f"{line.num_rows:,}",
            f"{line.mean_words:,.0f}",
            f"{line.share_near_duplicates:.1%}",
            f"{line.share_stock:.1%}",
            f"{line.share_flawed:.1%}",
            f"{line.distinct_bigrams:.1%}",
        )
    return table


def _print_leakage(leakage: Leakage, console: Console) -> None:
    skipped = f" ({leakage.num_skipped:,} with errors not compared)" if leakage.num_skipped else ""
    _line(
        console,
        f"held out: of {counted(leakage.num_held_out, 'row')}{skipped} "
        f"{counted(leakage.num_overlapping, 'shares', 'share')} {leakage.ngram}-grams "
        f"and {counted(leakage.num_near_duplicates, 'has', 'have')} near duplicates in the training rows",
        style="bold red" if leakage.leaks else "green",
    )
    # The worst of each text: many held-out rows may share a prompt.
    shown = list({leak.excerpt: leak for leak in reversed(leakage.leaks)}.values())[::-1][:_SHOWN_LEAKS]
    for leak in shown:
        _line(console, f"  {leak.score:.2f}  {leak.what}  {leak.held_out} in {leak.training}  {leak.excerpt}")
    if len(leakage.leaks) > len(shown):
        _line(console, f"  … {len(leakage.leaks) - len(shown):,} more in the JSON report")
