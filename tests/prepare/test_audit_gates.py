"""Conditions on an audit: what fails it, what is waived, and what a command line says (K1, B4, G4)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sftprep.config.audit import AuditConfig, Gate
from sftprep.config.pack import OverLength, PackConfig
from sftprep.prepare.audit import audit
from sftprep.prepare.audit_report import gated, waived
from sftprep.prepare.pack import pack
from sftprep.reports.mask_json import AuditFinding, AuditReport
from sftprep.shards.read import open_shard_set


@pytest.fixture(scope="module")
def packed(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our samples in rows so short that some conversations are left out."""
    out = tmp_path_factory.mktemp("gates") / "set"
    files = tuple(sorted((samples / "good").glob("*.jsonl")))
    settings: dict[str, Any] = {"max_length": 300, "over_length": OverLength.DROP, "max_drop": "50%"}
    pack(PackConfig(files=files, model=str(samples / "model"), out=out, **settings))
    return out


def result(packed: Path, *gates: str) -> AuditReport:
    return audit(AuditConfig(directory=packed, fail_on=gates)).report


@pytest.mark.parametrize(
    ("gate", "passes"),
    [
        ("stop-untrained", True),
        ("scaffold-trained", True),
        ("other-role-trained", True),
        ("border-trained", True),
        ("count-mismatch", True),
        ("has-weights", True),
        ("trained-share=0.05..0.9", True),
        ("trained-share=0.9..", False),
        ("trained-share=..0.1", False),
        ("left-out=0", False),
        ("left-out=0%", False),
        ("left-out=1000", True),
        ("left-out=100%", True),
        ("trained-lost=0", False),
        ("trained-lost=0%", False),
        ("trained-lost=100%", True),
    ],
)
def test_a_gate_fails_the_audit_exactly_where_it_does_not_hold(packed: Path, gate: str, *, passes: bool) -> None:
    report = result(packed, gate)
    assert report.findings == [], "nothing but the gate decides"
    assert [g.passed for g in report.gates] == [passes]
    assert report.passed == passes


@pytest.mark.parametrize("gate", ["trained-share=0.9..0.1", "trained-share=nan..", "left-out=nan%", "trained-lost=-1"])
def test_a_gate_that_no_set_or_every_set_would_pass_is_refused(gate: str) -> None:
    with pytest.raises(ValueError, match="nothing can lie within"):
        Gate.parse(gate)


def test_every_row_left_out_is_counted_g4(packed: Path) -> None:
    report = result(packed, "left-out=0")
    lines = [json.loads(line) for line in (packed / "left_out.jsonl").read_text().splitlines()]
    assert report.num_left_out == len(lines) == sum(report.left_out.values()) > 0
    assert report.gates[0].found == f"{len(lines)} rows"


def test_what_too_long_rows_lose_is_counted_in_trained_tokens_g4(packed: Path) -> None:
    report = result(packed, "trained-lost=50%")
    record = open_shard_set(packed).manifest.over_length
    assert record is not None
    assert report.trained_lost == record.num_trained_lost > 0
    share = record.num_trained_lost / (report.num_trained + record.num_trained_lost)
    assert report.gates[0].found == f"{share:.4%}"


FINDINGS = ("stop-untrained", "scaffold-trained", "other-role-trained", "border-trained", "count-mismatch")


@pytest.mark.parametrize("code", FINDINGS)
def test_a_gate_sees_its_own_finding_and_waiving_it_does_not_help(packed: Path, code: str) -> None:
    clean = result(packed)
    finding = AuditFinding(code=code, message="planted", num_rows=3, rows=[0, 1, 2])
    faulty = clean.model_copy(
        update={"findings": [finding], "passed": False, "num_stopped": clean.num_stopped - 3, "num_turns": 50}
    )
    config = AuditConfig(directory=packed, fail_on=(code,), allow=(code,))
    allowed = waived(faulty, config.allow)
    assert allowed.passed, "a waived finding does not fail by itself (B4)"
    assert allowed.findings[0].allowed, "and is still reported"
    failed = gated(allowed, config.gates)
    assert not failed.passed
    assert not failed.gates[0].passed


def test_a_set_with_weights_is_refused_for_trainers_that_ignore_them(packed: Path) -> None:
    weighted = result(packed).model_copy(update={"has_weights": True})
    failed = gated(weighted, AuditConfig(directory=packed, fail_on=("has-weights",)).gates)
    assert not failed.passed
    assert "sftprep train" in failed.gates[0].found, "the hint says what to do"


@pytest.mark.parametrize(
    "gate",
    [
        "stop",
        "trained-share",
        "trained-share=0.5",
        "left-out",
        "left-out=x",
        "trained-lost",
        "trained-lost=x",
        "stop-untrained=1",
        "",
    ],
)
def test_a_gate_that_does_not_exist_is_refused(gate: str) -> None:
    with pytest.raises(ValidationError):
        AuditConfig(directory=Path(), fail_on=(gate,))


def test_the_stop_token_of_every_turn_is_counted_b2(packed: Path) -> None:
    report = result(packed)
    assert report.num_stopped == report.num_turns > 0
    assert [(stop.token, stop.num_turns) for stop in report.stops] == [("<|im_end|>", report.num_turns)]


def test_no_token_of_the_template_is_in_the_loss_a8(packed: Path) -> None:
    report = result(packed)
    assert report.scaffold_tokens_in_loss == 0
    assert all(k.num_trained == (k.num_tokens if k.trained else 0) for k in report.kinds)


def test_sources_bins_and_kinds_add_up_to_the_totals_f6(packed: Path) -> None:
    report = result(packed)
    assert sum(s.num_tokens for s in report.sources) == report.num_tokens == sum(k.num_tokens for k in report.kinds)
    assert sum(s.num_trained for s in report.sources) == report.num_trained
    assert all(sum(s.tokens_by_role.values()) == s.num_tokens for s in report.sources)
    for bins in (report.length_bins, report.share_bins):
        assert sum(b.count for b in bins) == report.num_documents
    assert sum(b.count for b in report.fill_bins) == report.num_rows
    assert report.documents_a_row > 1, "packable documents were packed"
    assert report.row_fill == report.num_tokens / (report.num_rows * 300)


def test_lengths_are_those_of_the_documents_that_are_there_g1(packed: Path) -> None:
    report = result(packed)
    rows = [row for batch in open_shard_set(packed).iter_batches() for row in batch.to_pylist()]
    lengths = sorted(size for row in rows for size in row["seq_lengths"])
    assert (report.lengths.max, report.num_documents) == (lengths[-1], len(lengths))
    assert report.lengths.mean == pytest.approx(sum(lengths) / len(lengths))
    assert report.lengths.p50 in (lengths[(len(lengths) - 1) // 2], lengths[len(lengths) // 2])
    assert report.trained_lengths.mean == pytest.approx(sum(map(sum, by_mask(rows))) / len(lengths))
    assert report.waste.padding_to_max_length == pytest.approx(1 - sum(lengths) / (300 * len(lengths)))


def by_mask(rows: list[dict[str, Any]]) -> list[list[int]]:
    return [row["assistant_masks"] for row in rows]


def run_cli(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sftprep", "audit", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"COLUMNS": "100"})


def test_the_command_names_the_gate_that_failed_and_exits_1(packed: Path) -> None:
    done = run_cli(packed, "--sample", "0", "--fail-on", "left-out=0", "--fail-on", "border-trained")
    assert done.returncode == 1
    assert "FAILED left-out=0: found" in done.stdout
    assert "holds border-trained: found 0 rows" in done.stdout


def test_a_wrong_gate_is_a_wrong_call(packed: Path) -> None:
    done = run_cli(packed, "--fail-on", "nonsense")
    assert done.returncode == 2
    assert "bad-option" in done.stderr
    assert "trained-share=LOW..HIGH" in done.stderr
