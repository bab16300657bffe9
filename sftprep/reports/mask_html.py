"""The mask audit as one self-contained page: no network, everything escaped, readable in light and dark."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import jinja2

from sftprep.data import SpanKind
from sftprep.reports.findings import publishing
from sftprep.reports.mask_json import AuditReport
from sftprep.reports.mask_view import RowView, SpanView

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Mask audit of {{ report.directory }}</title>
<style>
:root { color-scheme: light dark; --ink: #1c2330; --page: #fbfbf9; --card: #fff; --line: #d9dce3; --soft: #5a6475;
  --trained: #b9e8c4; --trained-ink: #0b3d1c; --stop: #7fd196; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --page: #14171c; --card: #1c2128; --line: #343b46;
  --soft: #9aa5b5; --trained: #1f5a33; --trained-ink: #d6f5df; --stop: #2f8a4e; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2rem 0 .6rem; }
.sub, .meta { color: var(--soft); }
.verdict { font-weight: 600; } .failed { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.card, article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.bar { display: flex; height: 1.4rem; border-radius: .4rem; overflow: hidden; border: 1px solid var(--line); }
.bar span { background: var(--line); border-right: 1px solid var(--page); min-width: 1px; }
.bar span.t { background: var(--stop); }
table { border-collapse: collapse; width: 100%; margin-top: .7rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.t td:first-child { font-weight: 600; }
.tools { display: flex; gap: .8rem; flex-wrap: wrap; align-items: center; margin-bottom: .8rem; }
input[type=search] { flex: 1 1 16rem; padding: .4rem .6rem; font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: .4rem; }
article { margin-bottom: .9rem; }
article h3 { margin: 0 0 .4rem; font-size: .95rem; }
.text { font: 13px/1.75 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; color: var(--soft); }
.text span[title]:hover { outline: 1px solid currentColor; }
.text .t { background: var(--trained); color: var(--trained-ink); }
.text .s { background: var(--stop); color: var(--trained-ink); font-weight: 600; }
.doc { display: block; margin: .5rem 0 .2rem; padding-top: .35rem; border-top: 1px dashed var(--line);
  font: 12px system-ui, sans-serif; color: var(--soft); }
.only .text .u { display: none; }
</style>
</head>
<body>
<header>
<h1>Mask audit of {{ report.directory }}</h1>
<div class="sub">{{ report.model }} · fingerprint {{ report.fingerprint[:12] }} ·
  <span class="verdict{{ '' if report.passed else ' failed' }}">
  {{ 'every row keeps what the set promises' if report.passed else 'failed' }}</span></div>
</header>
<main>
{% if report.findings %}
<h2>What failed</h2>
<ul>{% for f in report.findings %}<li class="failed"><b>{{ f.code }}</b>: {{ '{:,}'.format(f.num_rows) }} rows,
  first {{ f.rows | join(', ') }}</li>{% endfor %}</ul>
{% endif %}
<div class="cards">
{% for value, name in cards %}<div class="card"><b>{{ value }}</b>{{ name }}</div>{% endfor %}
</div>
<h2>Tokens by reason</h2>
<div class="bar" role="img" aria-label="Share of tokens by reason; the table below has the numbers">
{% for k in report.kinds %}<span class="{{ 't' if k.trained }}" style="flex:{{ k.num_tokens }}"
  title="{{ k.kind }} {{ '{:.1%}'.format(k.share) }}"></span>{% endfor %}
</div>
<table>
<thead><tr><th>reason</th><th>role</th><th>trained</th><th>tokens</th><th>share</th></tr></thead>
<tbody>{% for k in report.kinds %}
<tr class="{{ 't' if k.trained }}"><td>{{ k.kind | replace('_', ' ') }}</td><td>{{ k.role }}</td>
<td>{{ 'yes' if k.trained else 'no' }}</td><td>{{ '{:,}'.format(k.num_tokens) }}</td>
<td>{{ '{:.1%}'.format(k.share) }}</td></tr>{% endfor %}
</tbody></table>
<h2>Lengths and padding</h2>
<table>
<thead><tr><th>tokens a document</th><th></th><th>mean</th><th>p50</th><th>p90</th><th>p99</th><th>max</th></tr></thead>
<tbody>{% for name, l in (('all', report.lengths), ('trained', report.trained_lengths)) %}
<tr><td>{{ name }}</td><td></td><td>{{ '{:,.0f}'.format(l.mean) }}</td>
{% for n in (l.p50, l.p90, l.p99, l.max) %}<td>{{ '{:,}'.format(n) }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table>
<p>Positions wasted on padding: to the longest document {{ '{:.1%}'.format(report.waste.padding_to_longest) }},
to {{ '{:,}'.format(report.max_length) }} {{ '{:.1%}'.format(report.waste.padding_to_max_length) }},
packed {{ '{:.1%}'.format(report.waste.packing) }}.</p>
{% if report.left_out %}<p>Rows left out when packing, all listed in left_out.jsonl:
{% for code, n in report.left_out | dictsort %}{{ code }} {{ '{:,}'.format(n) }}{{ '' if loop.last else ', ' }}
{%- endfor %}.</p>{% endif %}
<h2>Rows</h2>
<p class="meta">{{ rows | length }} of {{ '{:,}'.format(report.num_rows) }} rows, drawn at random.
<span class="text"><span class="t">Trained</span></span> tokens are on green, their
<span class="text"><span class="s">stop token</span></span> darker;
hover over a token for its id, reason and origin.</p>
<div class="tools">
<input type="search" id="filter" placeholder="Show rows that contain …" aria-label="Show rows that contain">
<label><input type="checkbox" id="only"> only trained tokens</label>
<span id="shown" class="meta" role="status"></span>
</div>
<div id="rows">
{% for row in rows %}
<article tabindex="0" aria-label="row {{ row.index }}">
<h3>Row {{ row.index }} <span class="meta">· {{ '{:,}'.format(row.num_tokens) }} tokens,
{{ '{:,}'.format(row.num_trained) }} trained</span></h3>
<div class="text">
{%- for span in row.spans -%}
{%- if span.starts_document %}<span class="doc">{{ span.origin }}</span>{% endif -%}
<span class="{{ classes(span) }}">
{%- for token in span.tokens -%}
<span title="id {{ token.ids | join(' ') }} · {{ span.kind.name | lower }}
{{- ' of message ' ~ span.message if span.message >= 0 }} · weight {{ '%g' % token.weight }}
{{ span.reason }}
{{ span.origin }}">{{ token.text }}</span>
{%- endfor -%}
</span>
{%- endfor -%}
</div>
</article>
{% endfor %}
</div>
</main>
<script>
const filter = document.getElementById("filter"), only = document.getElementById("only");
const rows = [...document.querySelectorAll("#rows article")], shown = document.getElementById("shown");
function update() {
  const wanted = filter.value.toLowerCase();
  let count = 0;
  for (const row of rows) { row.hidden = !row.textContent.toLowerCase().includes(wanted); count += !row.hidden; }
  shown.textContent = wanted ? count + " of " + rows.length + " rows" : "";
  document.body.classList.toggle("only", only.checked);
}
filter.addEventListener("input", update);
only.addEventListener("change", update);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== filter) { event.preventDefault(); filter.focus(); }
});
</script>
</body>
</html>
"""


def page_html(report: AuditReport, rows: Sequence[RowView]) -> str:
    """The page."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=False, undefined=jinja2.StrictUndefined)
    return environment.from_string(_PAGE).render(report=report, rows=rows, cards=_cards(report), classes=_classes)


def notebook_html(page: str) -> str:
    """The page in a frame."""
    return f'<iframe title="Mask audit" style="width:100%;height:640px;border:0" srcdoc="{html.escape(page)}"></iframe>'


def write_page(page: str, path: Path) -> None:
    """Write the page, whole or not at all. OutputError where it cannot be written."""
    with publishing([path]) as publication:
        publication.files[0].write(page.encode("utf-8"))


def _cards(report: AuditReport) -> list[tuple[str, str]]:
    return [
        (f"{report.num_tokens:,}", "tokens"),
        (f"{report.num_trained:,}", f"trained ({report.trained_share:.1%})"),
        (f"{report.num_documents:,}", "documents"),
        (f"{report.num_rows:,}", f"rows of {report.max_length:,}"),
        (f"{report.row_fill:.1%}", "of each row filled"),
        (f"{sum(report.left_out.values()):,}", "rows left out"),
    ]


def _classes(span: SpanView) -> str:
    if not span.trained:
        return "u"
    return "s" if span.kind is SpanKind.STOP else "t"
