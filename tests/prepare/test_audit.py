"""The audit reads the shards that the trainer reads, every row (K1), and finds each fault by its code."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftprep.config.audit import AuditConfig
from sftprep.config.pack import PackConfig
from sftprep.data import SpanKind
from sftprep.errors import ShardError
from sftprep.prepare.audit import audit
from sftprep.prepare.pack import pack
from sftprep.reports.mask_json import FINDING_TEXTS
from sftprep.shards.read import open_shard_set
from sftprep.stages import mask_audit
from sftprep.stages.mask_audit import AuditFacts, audit_batch

Edit = Callable[[list[dict[str, Any]]], None]


@pytest.fixture(scope="module")
def packed(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own samples, packed for our own model."""
    out = tmp_path_factory.mktemp("packed") / "set"
    files = tuple(sorted((samples / "good").glob("*.jsonl")))
    pack(PackConfig(files=files, model=str(samples / "model"), out=out, max_length=512))
    return out


def facts_of(directory: Path) -> AuditFacts:
    manifest = open_shard_set(directory).manifest
    return AuditFacts(
        stop_ids=frozenset(manifest.model.stop_ids),
        vocab_size=manifest.model.vocab_size,
        max_length=manifest.max_length,
        num_sources=len(manifest.sources),
    )


def first_stop(row: dict[str, Any]) -> int:
    return int(row["span_starts"][row["span_kinds"].index(SpanKind.STOP)])


def train_the_border(rows: list[dict[str, Any]]) -> None:
    rows[2]["assistant_masks"][0] = 1


def mask_the_stop_token(rows: list[dict[str, Any]]) -> None:
    rows[2]["assistant_masks"][first_stop(rows[2])] = 0


def span_of(row: dict[str, Any], kind: SpanKind) -> int:
    """A token inside a span of this kind that begins no document."""
    stops = [*row["span_starts"][1:], len(row["input_ids"])]
    borders = {sum(row["seq_lengths"][:n]) for n in range(len(row["seq_lengths"]))}
    spans = zip(row["span_starts"], stops, row["span_kinds"], strict=True)
    return next(at for start, stop, own in spans if own == kind for at in range(start, stop) if at not in borders)


def train_a_header(rows: list[dict[str, Any]]) -> None:
    rows[2]["assistant_masks"][span_of(rows[2], SpanKind.HEADER)] = 1


def train_the_user(rows: list[dict[str, Any]]) -> None:
    rows[2]["assistant_masks"][span_of(rows[2], SpanKind.USER)] = 1


def train_history(rows: list[dict[str, Any]]) -> None:
    rows[2]["span_kinds"][rows[2]["span_kinds"].index(SpanKind.COMPLETION)] = int(SpanKind.HISTORY)


def mask_the_first_answer_token(rows: list[dict[str, Any]]) -> None:
    rows[2]["assistant_masks"][span_of(rows[2], SpanKind.COMPLETION)] = 0


def double_the_mask(rows: list[dict[str, Any]]) -> None:
    rows[2]["assistant_masks"][first_stop(rows[2])] = 2


def forget_the_stop_span(rows: list[dict[str, Any]]) -> None:
    rows[2]["span_kinds"][rows[2]["span_kinds"].index(SpanKind.STOP)] = int(SpanKind.SEPARATOR)


def stop_with_another_token(rows: list[dict[str, Any]]) -> None:
    rows[2]["input_ids"][first_stop(rows[2])] = 300


def shorten_the_mask(rows: list[dict[str, Any]]) -> None:
    rows[2]["assistant_masks"].pop()


def miscount(rows: list[dict[str, Any]]) -> None:
    rows[2]["num_trained"] += 1


def begin_spans_late(rows: list[dict[str, Any]]) -> None:
    rows[2]["span_starts"][0] = 1


def invent_a_reason(rows: list[dict[str, Any]]) -> None:
    rows[2]["span_kinds"][0] = 99


def invent_a_source(rows: list[dict[str, Any]]) -> None:
    rows[2]["doc_files"][0] = 99


def begin_a_span_after_the_end(rows: list[dict[str, Any]]) -> None:
    rows[2]["span_starts"][-1] = 10**6


def empty_a_document(rows: list[dict[str, Any]]) -> None:
    rows[2]["seq_lengths"][:2] = [sum(rows[2]["seq_lengths"][:2]), 0]


def invent_an_id(rows: list[dict[str, Any]]) -> None:
    rows[2]["input_ids"][3] = 1_000_000


FAULTS: dict[str, tuple[Edit, str]] = {
    "border-trained (F4)": (train_the_border, "border-trained"),
    "stop masked (B2)": (mask_the_stop_token, "stop-untrained"),
    "header trained (A8)": (train_a_header, "scaffold-trained"),
    "user trained (A2)": (train_the_user, "other-role-trained"),
    "history trained": (train_history, "context-trained"),
    "answer's first token masked (A9)": (mask_the_first_answer_token, "completion-untrained"),
    "mask of 2": (double_the_mask, "mask-not-binary"),
    "stop span lost (B2)": (forget_the_stop_span, "stop-untrained"),
    "another token stops (B2)": (stop_with_another_token, "stop-id-unknown"),
    "columns of two lengths (F9)": (shorten_the_mask, "column-length-mismatch"),
    "scalar wrong (A5)": (miscount, "scalar-mismatch"),
    "spans do not cover the row": (begin_spans_late, "span-order"),
    "a span begins after the end": (begin_a_span_after_the_end, "span-order"),
    "unknown reason": (invent_a_reason, "span-kind-unknown"),
    "unknown source": (invent_a_source, "source-unknown"),
    "empty document": (empty_a_document, "document-empty"),
    "id out of range": (invent_an_id, "id-out-of-range"),
}


def test_every_code_has_a_text() -> None:
    codes = set(re.findall(r"\(\"([a-z]+-[a-z-]+)\", ", Path(mask_audit.__file__).read_text(encoding="utf-8")))
    assert codes | {"count-mismatch"} == set(FINDING_TEXTS)


@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_is_found_at_its_row_by_its_code(packed: Path, name: str) -> None:
    edit, code = FAULTS[name]
    batch = next(iter(open_shard_set(packed).iter_batches()))
    assert audit_batch(batch, facts=facts_of(packed)).faults == []
    rows = batch.to_pylist()
    edit(rows)
    damaged = pa.RecordBatch.from_pylist(rows, schema=batch.schema)
    assert (code, 2) in audit_batch(damaged, facts=facts_of(packed)).faults


UNREADABLE = ("column-length-mismatch", "span-order", "span-kind-unknown", "source-unknown", "document-empty")


@pytest.mark.parametrize("name", [name for name, (_, code) in FAULTS.items() if code in UNREADABLE])
def test_a_row_that_cannot_be_read_leaves_only_itself_uncounted(packed: Path, name: str) -> None:
    batch = next(iter(open_shard_set(packed).iter_batches()))
    rows = batch.to_pylist()
    FAULTS[name][0](rows)
    rows[5]["assistant_masks"][0] = 1
    damaged = audit_batch(pa.RecordBatch.from_pylist(rows, schema=batch.schema), facts=facts_of(packed))
    assert damaged.num_rows == len(rows) - 1
    assert damaged.num_tokens == sum(len(row["input_ids"]) for number, row in enumerate(rows) if number != 2)
    assert ("border-trained", 5) in damaged.faults, "rows after it keep their numbers"
    assert {row for _, row in damaged.faults} == {2, 5}


@pytest.fixture(scope="module")
def weighted(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.RecordBatch:
    """A set of which one answer weighs a half."""
    folder = tmp_path_factory.mktemp("weighted")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Aye.", "weight": 0.5}]
    (folder / "rows.jsonl").write_text(json.dumps({"messages": messages}))
    config = PackConfig(files=(folder / "rows.jsonl",), model=str(samples / "model"), out=folder / "set", max_length=64)
    return next(iter(pack(config).shards.iter_batches()))


def test_weights_where_nothing_is_trained_are_found_l1(weighted: pa.RecordBatch, packed: Path) -> None:
    facts = facts_of(packed)
    assert audit_batch(weighted, facts=facts).faults == []
    rows = weighted.to_pylist()
    rows[0]["weights"][1] = 0.25
    damaged = pa.RecordBatch.from_pylist(rows, schema=weighted.schema)
    assert set(audit_batch(damaged, facts=facts).faults) == {("scalar-mismatch", 0), ("weight-mismatch", 0)}


def test_a_row_over_the_maximum_is_found_f5(packed: Path) -> None:
    batch = next(iter(open_shard_set(packed).iter_batches()))
    facts = replace(facts_of(packed), max_length=8)
    assert {code for code, _ in audit_batch(batch, facts=facts).faults} == {"row-over-max-length"}


def test_the_report_counts_what_the_manifest_says_a3(packed: Path) -> None:
    report = audit(AuditConfig(directory=packed)).report
    counts = open_shard_set(packed).manifest.counts
    assert report.passed
    assert (report.num_tokens, report.num_trained) == (counts.num_tokens, counts.num_trained)
    assert {k.kind: k.num_tokens for k in report.kinds} == {k: n for k, n in counts.tokens_by_kind.items() if n}
    assert sum(k.num_tokens for k in report.kinds if k.trained) == report.num_trained
    assert {k.role for k in report.kinds if k.trained} == {"assistant"}, "no other role is ever trained (A2)"


def rewrite(directory: Path, edit: Edit) -> None:
    """Damage the first shard and make the manifest's checksum agree with the damage."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    shard = directory / manifest["shards"][0]["file"]
    table = pq.read_table(shard)
    rows = table.to_pylist()
    edit(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shard)
    manifest["shards"][0]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))


@pytest.fixture
def damaged(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "damaged"))


def test_a_changed_shard_is_refused_by_its_checksum(damaged: Path) -> None:
    rewrite(damaged, miscount)
    (damaged / "manifest.json").write_text(
        (damaged / "manifest.json").read_text().replace('"sha256": "', '"sha256": "0')
    )
    with pytest.raises(ShardError) as caught:
        audit(AuditConfig(directory=damaged))
    assert caught.value.code == "shard-checksum"


def run_cli(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sftprep", "audit", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"COLUMNS": "100", **environment})


def test_the_command_exits_1_and_names_what_failed(damaged: Path) -> None:
    rewrite(damaged, mask_the_stop_token)
    done = run_cli(damaged, "--sample", "0")
    assert done.returncode == 1
    assert "FAILED stop-untrained" in done.stdout


def test_the_command_shows_trained_tokens_without_colour_too(packed: Path) -> None:
    done = run_cli(packed, "--row", "0", NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"⟦[^⟦⟧]+⟧⟦<\|im_end\|>⟧", done.stdout)
    assert "\x1b[" not in done.stdout


def test_a_directory_that_is_no_shard_set_is_an_error_with_a_name(tmp_path: Path) -> None:
    done = run_cli(tmp_path)
    assert done.returncode == 1
    assert "no-manifest" in done.stderr


def test_json_and_page_are_written(packed: Path, tmp_path: Path) -> None:
    page, report = tmp_path / "audit.html", tmp_path / "audit.json"
    done = run_cli(packed, "--html", page, "--json", report)
    assert done.returncode == 0, done.stderr
    assert json.loads(report.read_text())["passed"] is True
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_row_that_cannot_be_read_or_holds_no_known_token_is_shown_as_such(damaged: Path, tmp_path: Path) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        shorten_the_mask(rows)
        rows[3]["input_ids"][:2] = [-1, 10**6]

    rewrite(damaged, edit)
    found = audit(AuditConfig(directory=damaged, html=tmp_path / "page.html", prove=True))
    unread, unknown = found.rows([2, 3])
    assert (unread.chosen, unread.spans) == ("column-length-mismatch", ())
    assert "".join(token.text for token in unknown.spans[0].tokens).startswith("‹no such token›" * 2)
    done = run_cli(damaged, "--row", "2")
    assert "row 2: cannot be shown: column-length-mismatch" in done.stdout


def test_tokens_that_share_a_character_are_shown_as_that_character(tmp_path: Path, samples: Path) -> None:
    source = tmp_path / "wide.jsonl"
    source.write_text(json.dumps({"prompt": "日本語 🙂", "response": "潮 🌊 é"}, ensure_ascii=False), encoding="utf-8")
    pack(PackConfig(files=(source,), model=str(samples / "model"), out=tmp_path / "set", max_length=512))
    (row,) = audit(AuditConfig(directory=tmp_path / "set")).rows([0])
    text = "".join(token.text for span in row.spans for token in span.tokens)
    assert "日本語 🙂" in text
    assert "潮 🌊 é" in text
    assert "\ufffd" not in text
    assert row.num_tokens == sum(len(token.ids) for span in row.spans for token in span.tokens)


def test_the_audit_says_what_a_template_that_rewrites_history_costs_e1(samples: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(samples / "model", tmp_path / "model"))
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content and loop.last %}"
        "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    asked = {"role": "user", "content": "How deep is the harbour at low tide?"}
    turn = {"role": "assistant", "content": "Four fathoms.", "reasoning_content": "The table says so."}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": [asked, turn, asked, turn]}) + "\n")
    out = tmp_path / "set"
    pack(PackConfig(files=(rows,), model=str(model), out=out, max_length=512))
    report = audit(AuditConfig(directory=out)).report
    first, second = sorted(
        pa.concat_tables([pq.read_table(p) for p in (out / "shards").iterdir()])["seq_lengths"][0].as_py()
    )
    assert (report.num_conversations, report.num_documents) == (1, 2)
    assert report.classes == {"packed": 1, "rewritten": 1}
    assert 0 < report.repeated_tokens < first < second
    done = subprocess.run(
        [sys.executable, "-m", "sftprep", "audit", str(out), "--sample", "0"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"1 conversation in 2 documents: {report.repeated_tokens} of the tokens" in done.stdout
