"""The validation report as one self-contained page: no network, everything escaped, filtered by code, file and text.

The filter is in the address (`#code=mojibake&file=chats.jsonl&text=tide`), so a view of the page can be sent on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jinja2

from sftprep.data import Severity
from sftprep.records.codes import CODES
from sftprep.reports.findings import ValidationReport
from sftprep.reports.page_style import STYLE
from sftprep.reports.publication import publishing
from sftprep.reports.quality_html import SECTION, quality_view
from sftprep.reports.quality_json import QualityReport

_MAX_BARS: Final = 24
_BAR_HEIGHT: Final = 22
_LABEL_WIDTH: Final = 220
_PLOT_WIDTH: Final = 640

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Validation: {{ 'passed' if report.passed else 'failed' }}</title>
<style>
{% include "style" %}
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.cards div, article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .7rem .9rem; }
.cards b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
form { display: flex; gap: .7rem; flex-wrap: wrap; align-items: center; margin-bottom: .8rem; }
label { max-width: 100%; }
select, input { padding: .4rem .6rem; font: inherit; color: inherit; background: var(--card); max-width: 100%;
  border: 1px solid var(--line); border-radius: .4rem; } input { flex: 1 1 12rem; }
article { margin-bottom: .7rem; } article[hidden] { display: none; }
.files { overflow-x: auto; }
@media (max-width: 40rem) { .files :is(th, td) { padding-inline: .25rem; }
  .files td:first-child { max-width: 7rem; overflow-wrap: break-word; } }
article p { margin: .2rem 0; overflow-wrap: anywhere; }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>Validation:
<span class="{{ 'fine' if report.passed else 'error' }}">{{ 'passed' if report.passed else 'failed' }}</span></h1>
<p class="soft">Fails on: {{ report.fail_on | join(', ') }}.</p>
<div class="cards">
{% for name, value in cards %}<div><b>{{ '{:,}'.format(value) }}</b>{{ name }}</div>
{% endfor %}</div>
{% if bars %}<h2>Findings by code</h2>
<svg viewBox="0 0 {{ width }} {{ bars | length * height }}" width="{{ width }}" role="img"
 aria-label="Findings by code">
{% for bar in bars %}<g transform="translate(0 {{ loop.index0 * height }})"><text x="{{ label - 8 }}" y="15"
 text-anchor="end">{{ bar.code }}</text><rect class="{{ bar.severity }}" x="{{ label }}" y="3" width="{{ bar.width }}"
 height="{{ height - 6 }}" rx="2"/><text x="{{ label + bar.width + 6 }}"
 y="15">{{ '{:,}'.format(bar.count) }}</text></g>
{% endfor %}</svg>
{% if num_more_codes %}<p class="soft">and {{ num_more_codes }} codes more</p>{% endif %}{% endif %}
<h2>Files</h2>
<div class="files">
<table><thead><tr><th>file</th><th>formats</th><th>rows</th><th>good</th><th>bad</th></tr></thead><tbody>
{% for file in report.files %}<tr><td>{{ file.file }}{{ '' if file.complete else ' (not read to its end)' }}</td>
<td>{{ file.formats | join(', ') }}</td><td>{{ '{:,}'.format(file.rows_in) }}</td>
<td>{{ '{:,}'.format(file.good) }}</td><td>{{ '{:,}'.format(file.bad) }}</td></tr>
{% endfor %}</tbody></table></div>
{% if report.fit %}{% set fit = report.fit %}<h2>With {{ fit.model }}</h2>
<p>{{ '{:,}'.format(fit.num_exact) }} rows can be exact, with {{ '{:,}'.format(fit.num_trained) }} trained tokens.
Half of them have {{ '{:,}'.format(fit.p50) }} tokens or fewer, 90% {{ '{:,}'.format(fit.p90) }},
99% {{ '{:,}'.format(fit.p99) }}, the longest {{ '{:,}'.format(fit.longest) }}.
{% if fit.max_length %}{{ '{:,}'.format(fit.num_over_length) }} are over {{ '{:,}'.format(fit.max_length) }} tokens;
with them {{ '{:,}'.format(fit.num_trained_lost) }} trained tokens would be lost.{% endif %}</p>{% endif %}
{% if quality %}{% include "quality" %}{% endif %}<h2>Findings</h2>
{% if report.findings %}<form id="filter">
<label>code <select name="code"><option value="">all</option>
{% for code in codes %}<option>{{ code }}</option>{% endfor %}</select></label>
<label>file <select name="file"><option value="">all</option>
{% for name in names %}<option>{{ name }}</option>{% endfor %}</select></label>
<input name="text" type="search" placeholder="text" aria-label="text"><output id="shown"></output>
</form>{% endif %}
<main>
{% for item in report.findings %}{% set place = item.address ~ ':' ~ item.pointer %}
<article data-code="{{ item.code }}" data-file="{{ item.address.file }}">
<p><b class="{{ item.severity.value }}">{{ item.code }}</b> <code>{{ place }}</code></p>
<p>{{ item.message }}</p>{% if item.hint %}<p class="soft">{{ item.hint }}</p>{% endif %}
{% if place in report.excerpts %}<pre>{{ report.excerpts[place] }}</pre>{% endif %}</article>
{% else %}<p>None.</p>{% endfor %}
{% if report.num_unlisted %}<p class="soft">and {{ '{:,}'.format(report.num_unlisted) }} more, which are counted above
and not listed (--max-errors 0 lists all)</p>{% endif %}
</main>
<script>
"use strict";
const form = document.getElementById("filter");
if (form) {
  const articles = [...document.querySelectorAll("article")];
  const fields = ["code", "file", "text"];
  function show() {
    const [code, file, text] = fields.map((name) => form.elements[name].value);
    let shown = 0;
    for (const article of articles) {
      const fits = (!code || article.dataset.code === code) && (!file || article.dataset.file === file) &&
        (!text || article.textContent.toLowerCase().includes(text.toLowerCase()));
      article.hidden = !fits;
      shown += fits;
    }
    document.getElementById("shown").textContent = `${shown} of ${articles.length}`;
  }
  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const name of fields) form.elements[name].value = given.get(name) ?? "";
    show();
  }
  form.addEventListener("input", () => {
    const given = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
    history.replaceState(null, "", `#${given}`);
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", read);
  read();
}
</script>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class _Bar:
    code: str
    count: int
    severity: str
    width: int


def write_html(report: ValidationReport, *, path: Path, quality: QualityReport | None = None) -> None:
    """The report as a page, with that on quality where there is one, whole or not at all.

    OutputError where it cannot be written.
    """
    with publishing([path]) as publication:
        publication.files[0].write(page(report, quality=quality).encode("utf-8", "backslashreplace"))


def page(report: ValidationReport, *, quality: QualityReport | None = None) -> str:
    """The report as HTML. What a row holds is text on the page and never markup."""
    parts = jinja2.DictLoader({"quality": SECTION, "style": STYLE})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=parts)
    bars = _bars(report)
    return environment.from_string(_PAGE).render(
        report=report,
        quality=None if quality is None else quality_view(quality),
        cards=_cards(report),
        bars=bars,
        num_more_codes=len(report.by_code) - len(bars),
        codes=sorted({finding.code for finding in report.findings}),
        names=[file.file for file in report.files],
        width=_PLOT_WIDTH,
        height=_BAR_HEIGHT,
        label=_LABEL_WIDTH,
    )


def _cards(report: ValidationReport) -> Sequence[tuple[str, int]]:
    counts = (report.rows_in, report.good, report.bad, report.num_errors, report.num_warnings)
    return tuple(zip(("rows", "good", "bad", "errors", "warnings"), counts, strict=True))


def _bars(report: ValidationReport) -> list[_Bar]:
    """The most frequent codes, the longest bar first."""
    ranked = sorted(report.by_code.items(), key=lambda item: (-item[1], item[0]))[:_MAX_BARS]
    most = ranked[0][1] if ranked else 1
    warnings = {code for code, entry in CODES.items() if entry.severity is Severity.WARNING}
    room = _PLOT_WIDTH - _LABEL_WIDTH - 90
    return [
        _Bar(code, count, "warning" if code in warnings else "error", max(2, round(room * count / most)))
        for code, count in ranked
    ]
