"""The quality report as a part of the page of a validation: plots, rankings, and the examples behind each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sftprep.reports.quality_json import Example, Groups, QualityReport, Ranked

_BAR_HEIGHT: Final = 22
_LABEL_WIDTH: Final = 260
_PLOT_WIDTH: Final = 640
_MAX_LEAKS: Final = 50

SECTION: Final = """{% set report, leakage = quality.report, quality.report.leakage %}
{%- set width, height, label, most = quality.width, quality.height, quality.label, quality.most -%}
<h2 id="quality">Quality</h2>
<p>{{ '{:,}'.format(report.num_rows) }} rows, {{ '{:,}'.format(report.num_answers) }} answers
{%- if report.num_skipped %}; {{ '{:,}'.format(report.num_skipped) }} rows with errors were not measured{% endif %}.</p>
{% for plot in quality.plots if plot.bars %}<h3>{{ plot.title }}</h3>
<svg viewBox="0 0 {{ width }} {{ plot.bars | length * height }}" width="{{ width }}" role="img"
 aria-label="{{ plot.title }}">
{% for bar in plot.bars %}<g transform="translate(0 {{ loop.index0 * height }})"><text x="{{ label - 8 }}" y="15"
 text-anchor="end">{{ bar.name }}</text><rect class="warning" x="{{ label }}" y="3" width="{{ bar.width }}"
 height="{{ height - 6 }}" rx="2"/><text x="{{ label + bar.width + 6 }}"
 y="15">{{ '{:.1%}'.format(bar.share) }}</text></g>
{% endfor %}</svg>
{% endfor %}{% if quality.rankings | selectattr('entries') | list %}<h3>Examples, the worst first</h3>
{% else %}<p class="fine">No example of any of these was found.</p>
{% endif %}{% for ranking in quality.rankings if ranking.entries %}<details><summary>{{ ranking.title }}</summary>
{% if ranking.reach %}<p class="soft">Measured on answers that were read: {{ ranking.reach }}</p>{% endif %}
{% for entry in ranking.entries %}<p>{{ entry.rank }}
{% for example in entry.examples %}<code>{{ example.place }}</code></p><pre>{{ example.excerpt }}</pre><p>
{%- endfor %}</p>{% endfor %}</details>
{% endfor %}{% if report.sources %}<h3>Sources</h3>
<div style="overflow-x: auto">
<table><thead><tr><th>source</th><th>by</th><th>rows</th><th>words an answer</th><th>near duplicates</th>
<th>stock phrases</th><th>flawed</th><th>distinct bigrams</th></tr></thead><tbody>
{% for line in report.sources %}<tr><td>{{ line.source }}</td><td>{{ line.author }}</td>
<td>{{ '{:,}'.format(line.num_rows) }}</td><td>{{ '{:,.0f}'.format(line.mean_words) }}</td>
<td>{{ '{:.1%}'.format(line.share_near_duplicates) }}</td><td>{{ '{:.1%}'.format(line.share_stock) }}</td>
<td>{{ '{:.1%}'.format(line.share_flawed) }}</td><td>{{ '{:.1%}'.format(line.distinct_bigrams) }}</td></tr>
{% endfor %}</tbody></table></div>
{% for gap in report.gaps %}<p class="soft">{{ gap.measure }}: human {{ '{:.3g}'.format(gap.human) }}, synthetic
{{ '{:.3g}'.format(gap.synthetic) }}</p>
{% endfor %}{% endif %}{% if leakage %}<h3>Leakage into held-out rows</h3>
<p class="{{ 'error' if leakage.leaks else 'fine' }}">Of {{ '{:,}'.format(leakage.num_held_out) }} held-out rows
{{ '{:,}'.format(leakage.num_overlapping) }} share {{ leakage.ngram }}-grams with the training rows, and
{{ '{:,}'.format(leakage.num_near_duplicates) }} have near duplicates there.</p>
{% for leak in leakage.leaks[:most] %}<p>{{ '{:.2f}'.format(leak.score) }} {{ leak.what }}
<code>{{ leak.held_out }}</code> in <code>{{ leak.training }}</code></p><pre>{{ leak.excerpt }}</pre>
{% endfor %}{% if leakage.leaks | length > most %}<p class="soft">and {{ leakage.leaks | length - most }} more in the
JSON report</p>{% endif %}{% endif %}"""
"""A template of a part of the page, for an environment that escapes; `quality` is a QualityView."""


@dataclass(frozen=True, slots=True)
class _Bar:
    name: str
    share: float
    width: int


@dataclass(frozen=True, slots=True)
class _Plot:
    title: str
    bars: Sequence[_Bar]


@dataclass(frozen=True, slots=True)
class _Entry:
    rank: str
    examples: Sequence[Example]


@dataclass(frozen=True, slots=True)
class _Ranking:
    title: str
    entries: Sequence[_Entry]
    reach: str = ""


@dataclass(frozen=True, slots=True)
class QualityView:
    """What the template shows."""

    report: QualityReport
    plots: Sequence[_Plot]
    rankings: Sequence[_Ranking]
    width: int = _PLOT_WIDTH
    height: int = _BAR_HEIGHT
    label: int = _LABEL_WIDTH
    most: int = _MAX_LEAKS


def quality_view(report: QualityReport) -> QualityView:
    """The report as plots and rankings."""
    return QualityView(report, _plots(report), _rankings(report))


def _plots(report: QualityReport) -> list[_Plot]:
    found = report.diversity
    groups = [(_title(kind), kind.share) for kind in (found.openings, *found.templates)]
    return [
        _Plot("Low quality: share of the answers judged", _bars((flaw.code, flaw.share) for flaw in report.flaws)),
        _Plot("Near duplicates: share of the texts", _bars((d.view, d.share_near) for d in report.duplicates)),
        _Plot("Groups: share of the texts", _bars(groups)),
        _Plot("Distinct n-grams of the answers", _bars((f"{d.n}-grams", d.share) for d in found.distinct)),
        _Plot(
            "Stock phrases: share of the answers",
            _bars((phrase.phrase, phrase.share) for phrase in found.stock_phrases[:12]),
        ),
    ]


def _bars(shares: Iterable[tuple[str, float]]) -> list[_Bar]:
    """The bars of one plot; the longest is as long as there is room for."""
    shown = list(shares)
    most = max((share for _, share in shown), default=0.0) or 1.0
    room = _PLOT_WIDTH - _LABEL_WIDTH - 80
    return [_Bar(name, share, max(2, round(room * share / most)) if share else 0) for name, share in shown]


def _title(groups: Groups) -> str:
    return "answers, common opening" if groups.kind == "opening" else f"prompts, {groups.kind}"


def _rankings(report: QualityReport) -> list[_Ranking]:
    flaws = [
        _Ranking(
            f"{flaw.code}: {flaw.meaning} ({flaw.num_answers:,} of {flaw.num_judged:,})",
            [_Entry(f"{example.score:.2f}", [example]) for example in flaw.examples],
            flaw.reach,
        )
        for flaw in report.flaws
    ]
    duplicates = [
        _Ranking(f"largest clusters of {found.view} ({found.num_near:,} near duplicates)", _entries(found.clusters))
        for found in report.duplicates
    ]
    groups = (report.diversity.openings, *report.diversity.templates)
    return [*flaws, *duplicates, *(_Ranking(_title(kind), _entries(kind.largest)) for kind in groups)]


def _entries(groups: Sequence[Ranked]) -> list[_Entry]:
    return [_Entry(f"{group.size:,} of them", group.examples) for group in groups]
