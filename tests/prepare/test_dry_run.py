"""A dry run writes nothing and foretells what the run makes, within the error that it states."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sftprep.config.pack import PackConfig
from sftprep.prepare import dry_run as dry_run_module
from sftprep.prepare.dry_run import dry_run
from sftprep.prepare.pack import pack
from sftprep.reports.dry_run import DryRunReport
from sftprep.shards.manifest import Manifest
from sftprep.stages.estimate import Estimate, RowSample

INJECTED = {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "No."}]}


@pytest.fixture
def call(tmp_path: Path, samples: Path) -> dict[str, Any]:
    draw = random.Random(3)
    path = tmp_path / "chats.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for n in range(600):
            words = int(draw.lognormvariate(2.5, 1)) + 1
            messages = [
                {"role": "user", "content": f"Tell me {n}"},
                {"role": "assistant", "content": "So it is. " * words},
            ]
            file.write(json.dumps(INJECTED if n % 20 == 3 else {"messages": messages}) + "\n")
    limits = {"max_length": 512, "over_length": "drop", "max_drop": "20%"}
    return {"sources": (f"chats={path}:1.5",), "model": str(samples / "model"), "out": tmp_path / "out", **limits}


def held(found: Estimate, value: float) -> bool:
    return found.low <= value <= found.high and found.low <= found.value <= found.high


def compared(report: DryRunReport, manifest: Manifest) -> dict[str, bool]:
    counts = manifest.counts
    return {
        "tokens": held(report.num_tokens, counts.num_tokens),
        "trained": held(report.num_trained, counts.num_trained),
        "documents": held(report.num_documents, counts.num_documents),
        "rows": held(report.num_rows, counts.num_packs),
        "shards": held(report.num_shards, len(manifest.shards)),
        "left out": held(report.num_left_out, manifest.left_out.num_rows),
    }


def test_nothing_is_written(call: dict[str, Any]) -> None:
    before = sorted(os.listdir(call["out"].parent))
    dry_run(PackConfig(**call))
    assert sorted(os.listdir(call["out"].parent)) == before


def test_where_all_rows_are_sampled_the_counts_are_those_of_the_run(call: dict[str, Any]) -> None:
    report = dry_run(PackConfig(**call))
    manifest = pack(PackConfig(**call)).shards.manifest
    counts = manifest.counts
    assert report.num_sampled == report.num_input_rows == 600
    for found, value in (
        (report.num_tokens, counts.num_tokens),
        (report.num_trained, counts.num_trained),
        (report.num_documents, counts.num_documents),
    ):
        assert (found.value, found.low, found.high) == pytest.approx((value, value, value))
    assert report.num_rows.value == pytest.approx(counts.num_packs, rel=0.03)
    assert report.num_bytes.value == pytest.approx(sum(shard.num_bytes for shard in manifest.shards), rel=0.35)


def test_the_bounds_of_most_samples_hold_the_run(call: dict[str, Any]) -> None:
    manifest = pack(PackConfig(**call)).shards.manifest
    # The seed draws the sample; the half of the rows that is taken twice is drawn by it too, and hardly matters.
    reports = [dry_run(PackConfig(**{**call, "seed": seed}), num_sampled=100) for seed in range(8)]
    assert len({report.num_tokens.value for report in reports}) == 8
    for name in compared(reports[0], manifest):
        hits = sum(compared(report, manifest)[name] for report in reports)
        assert hits >= 6, f"{name}: {hits} of 8"
    assert all(report.num_tokens.high < 2 * report.num_tokens.low for report in reports), "and they say something"


def test_a_run_that_would_be_refused_is_foretold(call: dict[str, Any]) -> None:
    report = dry_run(PackConfig(**{**call, "max_drop": "1%"}))
    assert report.may_be_refused
    assert report.left_out_by_code["control-token"] == 30
    assert not dry_run(PackConfig(**{**call, "max_drop": "60%"})).may_be_refused


def test_the_interval_holds_the_total_in_nineteen_of_twenty_samples() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(5, 1, 5000)
    values = sizes * rng.normal(0.25, 0.08, 5000) + 5
    hits = 0
    for _ in range(400):
        drawn = rng.choice(5000, 200, replace=False)
        hits += held(RowSample(sizes[drawn], 5000, sizes.sum()).total(values[drawn]), values.sum())
    assert 0.9 < hits / 400 < 0.99


def test_the_largest_rows_are_not_left_to_chance() -> None:
    # Conversations of which each turn is a sample: tokens grow with the square of the length, few rows have a third.
    rng = np.random.default_rng(1)
    turns = np.minimum(rng.geometric(0.4, 5000) + 20 * (rng.random(5000) < 0.01), 80)
    sizes = turns * rng.lognormal(5, 0.5, 5000)
    values = sizes * turns / 8
    assert np.sort(values)[-50:].sum() > values.sum() / 3
    order = np.argsort(-sizes)
    widths = {}
    for largest in (0, 100):
        hits, found = 0, []
        for _ in range(200):
            drawn = np.concatenate([order[:largest], rng.choice(order[largest:], 1000 - largest, replace=False)])
            sample = RowSample(sizes[drawn], 5000, sizes.sum(), np.arange(1000) < largest)
            found.append(sample.total(values[drawn]))
            hits += held(found[-1], values.sum())
        assert hits / 200 > 0.88
        widths[largest] = np.mean([one.high - one.low for one in found])
    assert widths[100] < widths[0] / 2


def test_rows_that_are_certain_are_counted_as_they_are() -> None:
    sizes = np.array([100.0, 1.0, 1.0])
    sample = RowSample(sizes, 12, 110.0, np.array([True, False, False]))
    found = sample.total(np.array([7.0, 2.0, 2.0]))
    assert (found.value, found.low, found.high) == (7 + 20, 27, 27), "what was drawn has no spread"
    hits = sample.count(np.array([True, False, False]))
    assert hits.value == 1
    assert hits.low >= 1
    assert hits.high > 2, "of those that were not drawn some may be"


def test_the_sample_has_the_largest_rows_and_as_many_as_are_asked_for(call: dict[str, Any]) -> None:
    sample, population = dry_run_module._sample(PackConfig(**call), on_bytes=None, size=100)
    sizes = sorted((row.size for row in sample), reverse=True)
    assert (len(sample), population.num_rows) == (100, 600)
    certain = [row.size for row in sample if row.is_certain]
    assert sorted(certain, reverse=True) == sizes[:10]
    everything, _ = dry_run_module._sample(PackConfig(**call), on_bytes=None, size=5000)
    assert sorted((row.size for row in everything), reverse=True)[:10] == sizes[:10]
    assert len({(row.source, row.row.address.line) for row in everything}) == len(everything) == 600
