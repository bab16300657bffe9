"""An evaluation as one self-contained page: no network, no script, everything escaped, answers side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import jinja2

from sftprep.reports.evaluate_json import EvaluateReport, LossChange
from sftprep.reports.page_style import STYLE
from sftprep.reports.publication import publishing

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation: {{ 'passed' if report.passed else 'failed' }}</title>
<style>
{% include "style" %}
.bar { display: grid; grid-template-columns: min(11rem, 28%) 1fr 5.5rem; gap: .7rem; align-items: center;
  margin: .3rem 0; font: 13px ui-monospace, monospace; } .bar b { text-align: right; overflow-wrap: anywhere;
  font-weight: 400; }
.track { position: relative; height: 18px; border-left: 1px solid var(--line); }
.track i { position: absolute; left: 0; }
.new { background: var(--new); top: 0; height: 10px; } .old { background: var(--old); top: 11px; height: 6px; }
.track .range { left: auto; top: 4px; height: 2px; min-width: 2px; background: var(--ink); }
td.gate { overflow-wrap: break-word; min-width: 8.5rem; }
.wide { overflow-x: auto; } .wide td, .wide th { white-space: nowrap; padding: .25rem .45rem; }
td.text, th.text { text-align: left; overflow-wrap: anywhere; }
details { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem;
  margin-bottom: .6rem; } summary { overflow-wrap: anywhere; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: .7rem; }
</style>
</head>
<body>
{% macro bar(name, new, old, low, high, text) %}<div class="bar"><b>{{ name }}</b><div class="track"><i class="new"
 style="width: {{ '{:.2%}'.format(new) }}"></i>{% if old is not none %}<i class="old"
 style="width: {{ '{:.2%}'.format(old) }}"></i>{% endif %}{% if low is not none %}<i class="range"
 style="left: {{ '{:.2%}'.format(low) }}; width: {{ '{:.2%}'.format(high - low) }}"></i>{% endif %}</div>
<span>{{ text }}</span></div>{% endmacro %}
<h1>Evaluation: <span class="{{ 'fine' if report.passed else 'error' }}">{{ 'passed' if report.passed else 'failed' }}
</span></h1>
<p class="soft">{{ report.model.name }}{% if report.baseline %} against {{ report.baseline.name }}{% endif %};
{% if report.model.endpoint %}asked at {{ report.model.endpoint }}, which renders prompts itself.{% else %}
{{ report.model.num_prompts_proven }} prompts proven equal to those that transformers sends; answers end with
{{ report.model.stop_tokens | join(' or ') }}.{% endif %}</p>
<h2>Gates</h2>
<table><thead><tr><th>gate</th><th class="text">measured</th><th>verdict</th></tr></thead><tbody>
{% for gate in report.gates | sort(attribute='passed') %}<tr><td class="gate">{{ gate.gate }}</td>
<td class="text">{{ gate.what }}</td>
<td class="{{ 'fine' if gate.passed else 'error' }}">{{ 'passed' if gate.passed else 'failed' }}</td></tr>
{% else %}<tr><td colspan="3">none was asked for</td></tr>{% endfor %}</tbody></table>
{% for title, groups in (('Suites', report.suites), ('Tags', report.tags), ('Sources', report.sources)) if groups %}
<h2>{{ title }}</h2>
<div role="img" aria-label="Pass rate by {{ title | lower }}">
{% for group in groups %}{% set other = group.against_baseline %}{{ bar(group.name, group.pass_rate,
 other.pass_rate if other else none, group.low, group.high,
 '{:.0%} of {}'.format(group.pass_rate, group.num_cases)) }}
{% endfor %}</div>
<p class="soft">Share of cases passed, with its 95 % interval{% if report.baseline %}; the thin bar is the
baseline's{% endif %}.{% if loop.first %} <i>Value</i> is the mean of the scorers' values, <i>stops</i> the share of
answers that the model ended by itself, <i>repeats</i> the share of 4-word runs that stood in the answer before.
{% if report.baseline %} <i>Lost</i> and <i>gained</i> are cases that only the baseline, or only the new model, passes;
<i>p</i> is McNemar's exact test of them, and below it, where values are more than passed or not, a sign-flip test
of the values; one test shows a difference below 5 %, one of two below half of that, less where several groups are
compared. <i>Difference</i> is that of the values, with its interval over cases.{% endif %}{% endif %}</p>
<div class="wide"><table><thead><tr><th>{{ title }}</th><th>cases</th><th>passed</th>{% if report.baseline
%}<th>baseline</th><th>verdict</th><th>lost</th><th>gained</th><th>p</th>{% endif %}<th>value</th>{% if report.baseline
%}<th>difference</th>{% endif %}<th>stops</th><th>repeats</th></tr></thead><tbody>
{% for group in groups %}{% set other = group.against_baseline %}<tr><td>{{ group.name }}</td>
<td>{{ group.num_cases }}</td><td>{{ '{:.1%}'.format(group.pass_rate) }}</td>{% if other %}
<td>{{ '{:.1%}'.format(other.pass_rate) }}</td><td class="{{ verdicts[other.verdict] }}">{{ other.verdict }}</td>
<td>{{ other.lost }}</td><td>{{ other.gained }}</td><td>{{ '{:.2g}'.format(other.p_value)
}}{% if other.p_of_values is not none %}<br>{{ '{:.2g}'.format(other.p_of_values) }}{% endif %}</td>{% endif %}
<td>{{ '{:.3f}'.format(group.mean_value) }}</td>{% if other %}
<td>{{ '{:+.3f} ({:+.3f} to {:+.3f})'.format(other.difference, other.low, other.high) }}</td>{% endif %}
<td>{{ '{:.0%}'.format(group.stops) }}</td><td>{{ '{:.1%}'.format(group.repetition) }}</td></tr>
{% endfor %}</tbody></table></div>
{% endfor %}
{% if report.likelihood %}<h2>Held-out loss</h2>
<div role="img" aria-label="Nats per token by source">
{% for name, loss in bars.items() %}{% set change = loss.change %}{{ bar(name, loss.per_token / most,
 change.baseline / most if change else none, (change.baseline + change.low) / most if change else none,
 (change.baseline + change.high) / most if change else none, '{:.4f}'.format(loss.per_token)) }}
{% endfor %}</div>
<p class="soft">{{ '{:,}'.format(report.likelihood.num_documents) }} documents of {{ report.likelihood.directory }}:
nats per trained token; less is better{% if report.baseline %}. The thin bar is the baseline's, the line
the 95 % interval of the change{% endif %}. <i>source:</i> is a file, <i>origin:</i> what rows say under
<i>source</i>.{% if report.likelihood.unread %} Not told apart, for the files are gone or another:
{{ report.likelihood.unread | join(', ') }}.{% endif %}</p>
<div class="wide"><table><thead><tr><th>category</th><th>tokens</th><th>nats per token</th><th>nats per byte</th>
{% if report.baseline %}<th>baseline</th><th>change</th>{% endif %}</tr></thead><tbody>
{% for name, loss in losses.items() %}<tr><td>{{ name }}</td><td>{{ '{:,}'.format(loss.num_tokens) }}</td>
<td>{{ '{:.4f}'.format(loss.per_token) }}</td>
<td>{{ '' if loss.per_byte is none else '{:.4f}'.format(loss.per_byte) }}</td>{% set change = loss.change %}
{% if change %}<td>{{ '{:.4f}'.format(change.baseline) }}</td>
<td>{{ '{:+.4f} ({:+.4f} to {:+.4f})'.format(change.difference, change.low, change.high) }}</td>{% endif %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% if report.harness %}<h2>Tasks of lm-evaluation-harness</h2>
<div class="wide"><table><thead><tr><th>task</th><th class="text">metric</th><th>documents</th><th>value</th>
<th>standard error</th>{% if report.baseline %}<th>baseline</th><th>difference</th><th>verdict</th>{% endif %}
</tr></thead><tbody>
{% for score in report.harness %}<tr><td>{{ score.task }}</td><td class="text">{{ score.metric
}}{% if score.filter != 'none' %} ({{ score.filter }}){% endif %}</td><td>{{ '{:,}'.format(score.num_documents) }}</td>
<td>{{ '{:.4f}'.format(score.value) }}</td>
<td>{{ '' if score.stderr is none else '{:.4f}'.format(score.stderr) }}</td>{% if report.baseline %}
<td>{{ '' if score.baseline is none else '{:.4f}'.format(score.baseline) }}</td>{% set other = score.against_baseline %}
<td>{% if other %}{{ '{:+.3f} ({:+.3f} to {:+.3f})'.format(other.difference, other.low, other.high) }}{% endif %}</td>
<td class="{{ verdicts[other.verdict] if other else '' }}">{{ other.verdict if other else '' }}</td>{% endif %}</tr>
{% endfor %}</tbody></table></div>
<p class="soft">{{ 'Through the chat template' if report.harness[0].chat_template else 'Without a chat template' }}.</p>
{% endif %}
{% if report.win_rate %}{% set won = report.win_rate %}<h2>Win-rate</h2>
<p>The judge {{ won.judge }} prefers the new answers in {{ '{:.1%}'.format(won.win_rate) }} of {{ won.num_cases }} pairs
({{ '{:.1%} to {:.1%}'.format(won.low, won.high) }}) against {{ won.against }}; at equal length in
{{ '{:.1%}'.format(won.length_controlled) }}. {{ won.wins }} won, {{ won.ties }} tied, {{ won.losses }} lost,
{{ won.num_unreadable }} unreadable; the answer shown first wins {{ '{:.1%}'.format(won.first_position) }}.</p>
{% endif %}
{% if report.suites %}<h2>Training data</h2>
<p>{% if report.contamination %}{{ '{:,}'.format(report.contamination.num_rows) }} training rows were compared;
matches: {{ report.contamination.found | length }}.{% else %}Not checked: no training rows were given.{% endif %}</p>
{% for found in (report.contamination.found if report.contamination else []) %}<p class="error">{{ found }}</p>
{% endfor %}{% endif %}
{% for title, cases, is_open in sections if cases %}<h2>{{ title }}: {{ cases | length }}</h2>
{% for case in cases %}<details{{ ' open' if is_open and loop.index <= 5 }}><summary>
<b class="{{ 'fine' if case.answer.passed else 'error' }}">{{ '{:.2f}'.format(case.answer.value) }}</b>
{% if case.baseline %}<span class="soft">was {{ '{:.2f}'.format(case.baseline.value) }}</span>{% endif %}
{{ case.suite }}/{{ case.id }} <span class="soft">{{ case.tags | join(', ') }}</span></summary>
<pre>{{ case.prompt }}</pre>{% if case.reference is not none %}<p class="soft">Reference: {{ case.reference }}</p>
{% endif %}<div class="sides">{% for name, answer in (('new', case.answer), ('baseline', case.baseline)) if answer %}
<div><b>{{ name }}</b> <span class="soft">{{ answer.num_tokens }} tokens, {{ 'ended by itself' if answer.stopped
else 'did not end by itself' }}</span><pre>{{ answer.text }}</pre>
{% for score in answer.scores %}<div class="{{ 'fine' if score.passed else 'error' }}">{{ score.kind }}
{{ '{:.2f}'.format(score.value) }} {{ score.note }}</div>{% endfor %}</div>{% endfor %}</div></details>
{% endfor %}{% endfor %}
</body>
</html>
"""


def evaluation_page(report: EvaluateReport) -> str:
    """The report as HTML. What a model or a suite says is text on the page and never markup."""
    loader = jinja2.DictLoader({"style": STYLE})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=loader)
    worse = report.regressions
    known = {(case.suite, case.id) for case in worse}
    rest = [case for case in report.cases if (case.suite, case.id) not in known]
    found = report.likelihood
    losses = {} if found is None else {"all": found.total, **found.categories}
    # Kinds of tokens differ more from each other than any two models: bars of files and origins are compared.
    bars = {name: loss for name, loss in losses.items() if not name.startswith("kind:")}
    return environment.from_string(_PAGE).render(
        report=report,
        losses=losses,
        bars=bars,
        most=max([max(loss.per_token, *_ends(loss.change)) for loss in bars.values()] or [1]),
        verdicts={"worse": "error", "better": "fine", "no difference shown": ""},
        sections=[
            ("Worse than the baseline", worse, True),
            ("Not passed", [case for case in rest if not case.answer.passed], not worse),
            ("Passed", [case for case in rest if case.answer.passed], False),
        ],
    )


def _ends(change: LossChange | None) -> tuple[float, float]:
    """The baseline's loss, and the upper end of what the new one may be."""
    return (0.0, 0.0) if change is None else (change.baseline, change.baseline + change.high)


def write_evaluation_page(report: EvaluateReport, path: Path) -> None:
    """Write the page, whole or not at all. OutputError where it cannot be written."""
    with publishing([path]) as publication:
        publication.files[0].write(evaluation_page(report).encode("utf-8", "backslashreplace"))
