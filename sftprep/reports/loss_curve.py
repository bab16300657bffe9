"""A page with the numbers of a run: one self-contained HTML file, no scripts, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from sftprep.reports.answers_by_step import STYLE as ANSWERS_STYLE
from sftprep.reports.answers_by_step import answers_section, score_lines
from sftprep.reports.line_plot import COLOURS, STYLE, WIDTH, Line, line_plot
from sftprep.reports.wording import counted

_SMOOTHING: Final = 0.9
"""Share of the running mean that a new step keeps, in the bold lines."""
_MAX_SOURCES: Final = len(COLOURS)
_PARTS: Final = ("source", "tag")
"""What a step tells its trained tokens apart by."""
_SCORES: Final = {
    "pass-rate": "Share of cases passed",
    "value": "Mean value of cases",
    "stops": "Share of answers that end by themselves",
    "repetition": "Share of repeated words",
}

_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: {width}px; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }} h2 {{ font-size: 1.05rem; margin: 2rem 0 .3rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .15rem .9rem .15rem 0; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; overflow-wrap: anywhere; min-width: 7rem; }}
th {{ border-bottom: 1px solid #8888; font-weight: 600; }}
{style}</style>
<h1>{title}</h1>
<p>{summary}</p>
{sections}
</html>
"""


def write_loss_curve(metrics: Path, page: Path, *, title: str) -> None:
    """Draw the steps of a metrics.jsonl; skipped steps are left out."""
    lines = metrics.read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if not record["skipped"]]
    text = _PAGE.format(
        title=escape(title),
        width=WIDTH,
        style=STYLE + ANSWERS_STYLE,
        summary=escape(_summary(records)),
        sections=_sections(records),
    )
    page.write_text(text, encoding="utf-8")


def running_mean(values: Sequence[float]) -> list[float]:
    """Exponential mean, corrected for its start."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        means.append(total / weight)
    return means


Record = Mapping[str, Any]


def _sections(records: Sequence[Record]) -> str:
    parts = {what: _trained_by(records, what) for what in _PARTS}
    plots = (
        ("Nats a trained token", [*_smoothed(records, [r["nll"] for r in records]), *_held_out(records)]),
        *((f"Nats a trained token, by {what}", _part_lines(records, what, found)) for what, found in parts.items()),
        (
            "Loss: weighted mean, what is optimised",
            _smoothed(records, [r["loss"] for r in records]) if _differs(records) else [],
        ),
        ("Learning rate", [Line("", _steps(records), [r["lr"] for r in records])]),
        ("Gradient norm, before clipping", _smoothed(records, [r["grad_norm"] for r in records])),
        ("Tokens a second", _smoothed(records, [r["num_tokens"] / r["seconds"] for r in records])),
    )
    drawn = [_section(name, line_plot(lines, label=name)) for name, lines in plots]
    sections = [*drawn[:4], *_scores(records), *drawn[4:]]
    tables = [table for what, found in parts.items() for table in _part_table(records, what, found)]
    return "\n".join([*filter(None, sections), *tables, answers_section(records)])


def _section(name: str, svg: str) -> str:
    return f"<h2>{name}</h2>\n{svg}" if svg else ""


def _scores(records: Sequence[Record]) -> list[str]:
    """What the suites' sample scored, a plot a metric; all of them are shares."""
    found = [(f"{_SCORES[metric]}, on a sample of the suites", lines) for metric, lines in score_lines(records).items()]
    return [_section(name, line_plot(lines, label=name, bounds=(0, 1))) for name, lines in found]


def _steps(records: Sequence[Record]) -> list[int]:
    return [record["step"] for record in records]


def _smoothed(records: Sequence[Record], values: Sequence[float]) -> list[Line]:
    return [
        Line("each step", _steps(records), values, faint=True),
        Line("running mean", _steps(records), running_mean(values)),
    ]


def _held_out(records: Sequence[Record]) -> list[Line]:
    measured = [record for record in records if record.get("eval_nll") is not None]
    values = [record["eval_nll"] for record in measured]
    return [Line("held out", _steps(measured), values, colour=COLOURS[1], dotted=True)] if measured else []


def _differs(records: Sequence[Record]) -> bool:
    """With weights or another normalisation, the loss is another number than the nats of a token."""
    return any(abs(record.get("loss", record["nll"]) - record["nll"]) > 1e-4 * abs(record["nll"]) for record in records)


def _trained_by(records: Sequence[Record], what: str) -> dict[str, int]:
    """Trained tokens by source or tag, the most first."""
    totals: dict[str, int] = {}
    for record in records:
        for name, number in (record.get(f"trained_by_{what}") or {}).items():
            totals[name] = totals.get(name, 0) + number
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def _part_lines(records: Sequence[Record], what: str, parts: Mapping[str, int]) -> list[Line]:
    if len(parts) < 2:
        return []
    lines = []
    for name, colour in zip(list(parts)[:_MAX_SOURCES], COLOURS, strict=False):
        seen = [record for record in records if name in record[f"nll_by_{what}"]]
        means = running_mean([record[f"nll_by_{what}"][name] for record in seen])
        lines.append(Line(name, _steps(seen), means, colour=colour))
    return lines


def _part_table(records: Sequence[Record], what: str, parts: Mapping[str, int]) -> list[str]:
    if len(parts) < 2:
        return []
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{number:,}</td><td>{first:.4f}</td><td>{last:.4f}</td></tr>"
        for name, number in parts.items()
        for first, last in [_ends(records, what, name)]
    )
    head = f"<tr><th>{what}</th><th>trained tokens</th><th>first tenth</th><th>last tenth</th></tr>"
    return [f"<h2>Nats a trained token, by {what}, at the start and at the end</h2>\n<table>{head}{rows}</table>"]


def _ends(records: Sequence[Record], what: str, name: str) -> tuple[float, float]:
    """Mean nats a trained token of one source or tag, in the first and the last tenth of the steps that have it."""
    seen = [
        (record[f"nll_by_{what}"][name], record[f"trained_by_{what}"][name])
        for record in records
        if record[f"trained_by_{what}"].get(name)
    ]
    size = max(1, len(seen) // 10)
    first, last = (
        sum(nll * number for nll, number in part) / sum(number for _, number in part)
        for part in (seen[:size], seen[-size:])
    )
    return first, last


def _summary(records: Sequence[Record]) -> str:
    if not records:
        return "No step trained anything."
    tokens = sum(int(record["num_tokens"]) for record in records)
    trained = sum(int(record["num_trained"]) for record in records)
    seconds = sum(record["seconds"] for record in records)
    measured = [record["eval_nll"] for record in records if record.get("eval_nll") is not None]
    first = f"from {measured[0]:.4f} to " if len(measured) > 1 else ""
    held_out = f" Held out: {first}{measured[-1]:.4f}." if measured else ""
    return (
        f"{counted(len(records), 'step')}, {counted(tokens, 'token')}, {trained:,} of them trained, {seconds:.0f} s; "
        f"from {records[0]['nll']:.4f} to {records[-1]['nll']:.4f} nats a trained token.{held_out}"
    )
