"""The page of a run draws what metrics.jsonl says, and nothing of it can become markup."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftprep.reports.line_plot import Line, line_plot, nice_ticks
from sftprep.reports.loss_curve import write_loss_curve

A, B = "a <b>.jsonl", "b.jsonl"


def record(step: int, **changes: Any) -> dict[str, Any]:
    values = {"loss": 2.0 / step, "nll": 2.0 / step, "lr": 1e-4, "grad_norm": 1.0, "seconds": 0.5, "skipped": False}
    by_source = {"nll_by_source": {A: 3.0 / step, B: 1.0}, "trained_by_source": {A: 10, B: 30}}
    return {"step": step, "num_tokens": 100, "num_trained": 40, "eval_nll": None, **values, **by_source, **changes}


def page(tmp_path: Path, records: list[dict[str, Any]]) -> str:
    metrics, html = tmp_path / "metrics.jsonl", tmp_path / "loss.html"
    metrics.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    write_loss_curve(metrics, html, title="a <run>")
    return html.read_text(encoding="utf-8")


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def test_everything_of_a_run_is_drawn(tmp_path: Path) -> None:
    text = page(tmp_path, [record(step, eval_nll=1.5 if step == 20 else None, loss=1.0) for step in range(1, 21)])
    found = " ".join(headings(text))
    for what in ("Nats a trained token", "by source", "Loss", "Learning rate", "Gradient norm", "Tokens a second"):
        assert what in found
    assert "held out" in text
    assert "nats a trained token. Held out: 1.5000." in text
    twice = page(tmp_path, [record(step, eval_nll=1.0 + 1 / step) for step in (1, 2)])
    assert "Held out: from 2.0000 to 1.5000." in twice


def test_a_share_is_drawn_between_0_and_1_and_a_single_measurement_in_the_middle(tmp_path: Path) -> None:
    text = page(tmp_path, [record(1), record(2, eval_scores={"pass-rate": 0.75}, eval_answers=None)])
    plot = text.partition("Share of cases passed")[2].partition("</svg>")[0]
    assert re.findall(r'text-anchor="end">([^<]*)<', plot) == ["0", "0.25", "0.5", "0.75", "1"]
    assert re.findall(r'text-anchor="middle">([^<]*)<', plot) == ["step 2"]


@pytest.mark.parametrize(
    "values", [[1e-4, 1.02e-4, 1.5e-5], [2e-5], [0.0, 3e-7], [123456.0, 99e6], [0.5, 12.0], [4e3, 1e4]]
)
def test_the_numbers_beside_a_plot_have_room_there(values: list[float]) -> None:
    svg = line_plot([Line("", list(range(len(values))), values)], label="x")
    numbers = re.findall(r'text-anchor="end">([^<s]*)<', svg)
    assert max(map(len, numbers)) <= 8
    assert not any("e+" in number for number in numbers)
    assert len(set(numbers)) == len(numbers) >= 2
    assert [float(number) for number in numbers] == pytest.approx(nice_ticks(values), rel=1e-3)


def test_the_loss_by_source_is_weighted_by_tokens_in_the_table(tmp_path: Path) -> None:
    text = page(tmp_path, [record(step) for step in range(1, 11)])
    assert re.search(r"<td>a &lt;b&gt;.jsonl</td><td>100</td><td>3.0000</td><td>0.3000</td>", text)


def test_no_name_becomes_markup_and_nothing_is_loaded(tmp_path: Path) -> None:
    text = page(tmp_path, [record(step) for step in range(1, 4)])
    assert "<b>" not in text
    assert "<run>" not in text
    assert not re.search(r"<script|https?://|src=|url\(", text)


def test_skipped_steps_are_left_out_and_an_empty_run_says_so(tmp_path: Path) -> None:
    assert "No step trained anything." in page(tmp_path, [record(1, skipped=True, loss=0.0, nll=0.0)])
    assert "2 steps" in page(tmp_path, [record(1), record(2, skipped=True, nll=0.0), record(3)])


def test_one_source_is_not_drawn_twice(tmp_path: Path) -> None:
    one = {"nll_by_source": {B: 1.0}, "trained_by_source": {B: 40}}
    assert not any("source" in name for name in headings(page(tmp_path, [record(s, **one) for s in (1, 2)])))


def test_a_long_run_makes_a_light_page() -> None:
    steps = list(range(1, 200_001))
    svg = line_plot([Line("", steps, [1.0 / step for step in steps])], label="long")
    assert len(svg) < 40_000
    assert "step 200,000" in svg


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_ticks_enclose_the_values(values: list[float]) -> None:
    ticks = nice_ticks(values)
    slack = 1e-6 * (abs(ticks[0]) + abs(ticks[-1]) + 1e-12)
    assert ticks[0] <= min(values) + slack
    assert ticks[-1] >= max(values) - slack
    assert 2 <= len(ticks) <= 12
    assert ticks == sorted(set(ticks))


def test_values_that_are_not_finite_are_left_out() -> None:
    svg = line_plot([Line("", [1, 2, 3], [1.0, float("nan"), 2.0])], label="x")
    assert "nan" not in svg
    assert line_plot([Line("", [1], [float("inf")])], label="x") == ""


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_of_few_steps_is_drawn(tmp_path: Path, count: int) -> None:
    assert "<polyline" in page(tmp_path, [record(step) for step in range(1, count + 1)])


def test_values_that_differ_in_their_last_bits_still_have_ticks_apart() -> None:
    for values in ([1e-9, 1.0000000000000003e-9], [-1.0, -1.0000000000000002], [5e-324], [0.0]):
        ticks = nice_ticks(values)
        assert ticks[0] <= min(values) <= max(values) <= ticks[-1]
        assert ticks[0] < ticks[-1]
