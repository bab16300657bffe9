"""Line plots as SVG text, for pages without scripts and without a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 860
_HEIGHT: Final = 300
_LEFT: Final = 92
_RIGHT: Final = 16
_TOP: Final = 14
_BOTTOM: Final = 34
_SAME: Final = 1e-9
_NUM_TICKS: Final = 5
_MAX_POINTS: Final = 1200
"""More would not be seen, and would make the page of a long run too heavy to open."""
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by colour-blind readers too."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a plot; `faint` for the noisy values behind their mean, `dotted` for single measurements."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    colour: str = COLOURS[0]
    faint: bool = False
    dotted: bool = False


STYLE: Final = """
svg { width: 100%; height: auto; font-size: 12px; fill: currentColor; }
polyline { vector-effect: non-scaling-stroke; }
.grid { stroke: #8884; fill: none; }
.legend span { display: inline-flex; align-items: center; margin-right: 1.4rem; overflow-wrap: anywhere; }
.legend { margin: 0; font-size: 13px; }
.legend i { flex: none; width: 1.1rem; height: .25rem; margin-right: .4rem; }
@media (max-width: 640px) { svg { font-size: 21px; } circle { r: 6px; } }
@media (prefers-color-scheme: dark) { polyline, circle, .legend i { filter: brightness(1.45); } }
"""
"""Of a page with plots. Narrow screens shrink a plot as a whole, so its text is written larger there."""


def line_plot(lines: Sequence[Line], *, label: str, bounds: Sequence[float] = ()) -> str:
    """An SVG with axes and a legend; values that are not finite are left out. Empty where there is nothing to draw.

    `bounds` are values that the axis holds whether a line has them or not, such as 0 and 1 of a share.
    """
    drawn = [line for line in map(_thinned, lines) if line.steps]
    if not drawn:
        return ""
    steps = [step for line in drawn for step in line.steps]
    ticks = nice_ticks([*bounds, *(value for line in drawn for value in line.values)])
    frame = _Frame(first=min(steps), last=max(steps), low=ticks[0], high=ticks[-1])
    named = [line for line in drawn if line.name]
    return (
        f'<svg viewBox="0 0 {WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(_tick(tick, frame) for tick in ticks)}{_step_labels(frame)}"
        f"{''.join(_shape(line, frame) for line in drawn)}</svg>" + (_legend(named) if len(named) > 1 else "")
    )


def nice_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, evenly apart, that enclose the values."""
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    # Values that differ in their last bits alone would have ticks that are one and the same number.
    spread = high - low if high - low > largest * _SAME else 0.0
    rough = spread / (_NUM_TICKS - 1) or largest / 10 or 1.0
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(size for size in (1, 2, 2.5, 5, 10) if size * magnitude >= rough * 0.999) * magnitude
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True, slots=True)
class _Frame:
    first: int
    last: int
    low: float
    high: float

    def x(self, step: float) -> float:
        share = (step - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.low) / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM)


def _thinned(line: Line) -> Line:
    """At most so many points, the last one among them."""
    pairs = [pair for pair in zip(line.steps, line.values, strict=True) if math.isfinite(pair[1])]
    stride = -(-len(pairs) // _MAX_POINTS) or 1
    kept = pairs[::-1][::stride][::-1]
    return Line(
        name=line.name,
        steps=[step for step, _ in kept],
        values=[value for _, value in kept],
        colour=line.colour,
        faint=line.faint,
        dotted=line.dotted,
    )


def _shape(line: Line, frame: _Frame) -> str:
    points = [(frame.x(step), frame.y(value)) for step, value in zip(line.steps, line.values, strict=True)]
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.colour}"/>' for x, y in points)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    style = 'stroke-width="1" opacity=".5"' if line.faint else 'stroke-width="2"'
    stroke = f'<polyline points="{path}" fill="none" stroke="{line.colour}" {style}/>'
    return stroke + (dots if line.dotted or len(points) == 1 else "")


def _tick(value: float, frame: _Frame) -> str:
    y = frame.y(value)
    return (
        f'<path class="grid" d="M{_LEFT},{y:.1f} H{WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>'
    )


def _number(value: float) -> str:
    """Four digits, or five before the point, and a power of ten in as few characters as there is room for."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    mantissa, _, power = f"{value:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(power)}"


def _step_labels(frame: _Frame) -> str:
    y = _HEIGHT - 10
    if frame.first == frame.last:
        return f'<text x="{frame.x(frame.first):.1f}" y="{y}" text-anchor="middle">step {frame.first:,}</text>'
    return (
        f'<text x="{_LEFT}" y="{y}">step {frame.first:,}</text>'
        f'<text x="{WIDTH - _RIGHT}" y="{y}" text-anchor="end">step {frame.last:,}</text>'
    )


def _legend(lines: Sequence[Line]) -> str:
    entries = "".join(
        f'<span><i style="background:{line.colour}{"59" if line.faint else ""}"></i>{escape(line.name)}</span>'
        for line in lines
    )
    return f'<p class="legend">{entries}</p>'
