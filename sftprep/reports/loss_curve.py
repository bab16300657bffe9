"""A page with the loss of a run: one self-contained HTML file, no scripts, no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

_WIDTH: Final = 860
_HEIGHT: Final = 320
_MARGIN: Final = 56
_SMOOTHING: Final = 0.9
"""Share of the running mean that a new step keeps, in the bold line."""

_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: {width}px; padding: 0 1rem; }}
svg {{ width: 100%; height: auto; font-size: 12px; fill: currentColor; color: inherit; }}
.axis {{ stroke: #8888; fill: none; }} .raw {{ stroke: #88a8; fill: none; }}
.mean {{ stroke: #c0392b; stroke-width: 2; fill: none; }}
:root {{ color-scheme: light dark; }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
<h2>Nats a trained token</h2>
{loss}
<h2>Learning rate</h2>
{rate}
<h2>Gradient norm, before clipping</h2>
{norm}
</html>
"""


def write_loss_curve(metrics: Path, page: Path, *, title: str) -> None:
    """Draw the steps of a metrics.jsonl; skipped steps are left out."""
    lines = metrics.read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if not record["skipped"]]
    steps = [record["step"] for record in records]
    nll = [record["nll"] for record in records]
    page.write_text(
        _PAGE.format(
            title=escape(title),
            width=_WIDTH,
            summary=escape(_summary(records)),
            loss=_plot(steps, nll, mean=running_mean(nll)),
            rate=_plot(steps, [record["lr"] for record in records]),
            norm=_plot(steps, [record["grad_norm"] for record in records]),
        ),
        encoding="utf-8",
    )


def running_mean(values: Sequence[float]) -> list[float]:
    """Exponential mean, corrected for its start."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        means.append(total / weight)
    return means


def _summary(records: Sequence[dict[str, float]]) -> str:
    if not records:
        return "No step trained anything."
    tokens = sum(int(record["num_tokens"]) for record in records)
    trained = sum(int(record["num_trained"]) for record in records)
    seconds = sum(record["seconds"] for record in records)
    return (
        f"{len(records)} steps, {tokens:,} tokens, {trained:,} of them trained, {seconds:.0f} s; "
        f"from {records[0]['nll']:.4f} to {records[-1]['nll']:.4f} nats a trained token."
    )


def _plot(steps: Sequence[int], values: Sequence[float], *, mean: Sequence[float] = ()) -> str:
    if not steps:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    first, length = steps[0], max(1, steps[-1] - steps[0])

    def points(line: Sequence[float]) -> str:
        pairs = (
            (_MARGIN + (step - first) / length * (_WIDTH - 2 * _MARGIN), _y((value - low) / span))
            for step, value in zip(steps, line, strict=True)
        )
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)

    bold = f'<polyline class="mean" points="{points(mean)}"/>' if mean else ""
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        f'<path class="axis" d="M{_MARGIN},{_y(1):.1f} V{_y(0):.1f} H{_WIDTH - _MARGIN}"/>'
        f'<text x="{_MARGIN - 6}" y="{_y(1) + 4:.1f}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{_MARGIN - 6}" y="{_y(0) + 4:.1f}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{_MARGIN}" y="{_HEIGHT - 20}">step {first}</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 20}" text-anchor="end">step {steps[-1]}</text>'
        f'<polyline class="raw" points="{points(values)}"/>{bold}</svg>'
    )


def _y(share: float) -> float:
    """The height of a value: 0 is the axis, 1 the top."""
    return _HEIGHT - _MARGIN + 10 - share * (_HEIGHT - _MARGIN - 10)
