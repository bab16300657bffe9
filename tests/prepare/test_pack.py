"""Pack as one call: every row packed or listed, exact masks on disk, the same bytes, published whole or not at all."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sftprep.config.pack import PackConfig, SourceSpec
from sftprep.data import IGNORE_INDEX
from sftprep.engines.load import load_model
from sftprep.engines.model import ModelFiles
from sftprep.errors import DataError, SftprepError
from sftprep.prepare.pack import PackResult, pack
from sftprep.prepare.pack_report import RunReport
from sftprep.prepare.publish import _model_record
from sftprep.shards.manifest import ModelRecord
from sftprep.shards.read import open_shard_set


@dataclass(frozen=True)
class Doc:
    file: int
    line: int
    sample: int
    ids: tuple[int, ...]
    labels: tuple[int, ...]


def chat(*turns: str, **message: Any) -> dict[str, Any]:
    """A row of user and assistant turns by turns; `message` is set on every assistant turn."""
    roles = ("user", "assistant")
    return {
        "messages": [
            {"role": roles[index % 2], "content": text, **(message if index % 2 else {})}
            for index, text in enumerate(turns)
        ]
    }


GOOD = [chat(f"Question {n}?", f"Answer {n}, " + "and more of it " * n) for n in range(12)]
INJECTED = chat("Say <|im_end|> twice", "No.")
UNTRAINED = chat("Hello", "Hello yourself", weight=0)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def docs_of(out: Path) -> Iterator[Doc]:
    """Every document of a shard set, in order, cut from its rows."""
    for batch in open_shard_set(out).iter_batches():
        for row in batch.to_pylist():
            start = 0
            lineage = zip(row["seq_lengths"], row["doc_files"], row["doc_lines"], row["doc_samples"], strict=True)
            for length, file, line, sample in lineage:
                ids = row["input_ids"][start : start + length]
                mask = row["assistant_masks"][start : start + length]
                labels = (i if m else IGNORE_INDEX for i, m in zip(ids, mask, strict=True))
                yield Doc(file, line, sample, tuple(ids), tuple(labels))
                start += length


def left_out_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "left_out.jsonl").read_text(encoding="utf-8").splitlines()]


def bytes_of(out: Path) -> dict[str, bytes]:
    """Of all files but the one that is of the run, which tells how it came to them."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "run.json")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@dataclass(frozen=True)
class Bench:
    """A folder to pack in, and the repository's own small model."""

    folder: Path
    model: Path

    def pack(self, rows: Sequence[dict[str, Any]], out: str = "out", **options: Any) -> PackResult:
        path = write_rows(self.folder / "chats.jsonl", rows)
        return self.run(out, files=(path,), **options)

    def run(self, out: str = "out", **options: Any) -> PackResult:
        defaults = {"model": str(self.model), "max_length": 256}
        return pack(PackConfig(out=self.folder / out, **{**defaults, **options}))

    def refused(self, rows: Sequence[dict[str, Any]], **options: Any) -> tuple[SftprepError, list[str]]:
        """The error and every line that was told; nothing may be there afterwards."""
        path = write_rows(self.folder / "chats.jsonl", rows)
        config = PackConfig(
            **{"files": (path,), "out": self.folder / "out", "model": str(self.model), "max_length": 256, **options}
        )
        told: list[str] = []
        with pytest.raises(SftprepError) as caught:
            pack(config, on_left_out=told.append)
        assert sorted(p.name for p in self.folder.iterdir()) == ["chats.jsonl"]
        return caught.value, told


def _other_stop_id(model: ModelFiles) -> Callable[[ModelFiles], ModelRecord]:
    record = _model_record(replace(model, stop_ids=(0,)))
    return lambda _: record


@pytest.fixture
def bench(tmp_path: Path, samples: Path) -> Bench:
    return Bench(tmp_path, samples / "model")


def test_every_conversation_is_packed_exactly_once_or_listed_with_a_reason(bench: Bench) -> None:
    rows = [GOOD[0], INJECTED, *GOOD[1:6], UNTRAINED, *GOOD[6:]]
    bench.pack(rows, max_drop="2")
    out = bench.folder / "out"
    packed = Counter(doc.line for doc in docs_of(out))
    listed = {row["line"]: row["code"] for row in left_out_of(out)}
    assert listed == {2: "control-token", 8: "nothing-trained"}
    assert packed == Counter(line for line in range(1, len(rows) + 1) if line not in listed)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(words=st.lists(st.integers(1, 120), min_size=1, max_size=12), seed=st.integers(0, 5))
def test_tokens_in_are_tokens_packed_and_dropped_and_no_row_overflows_b7(
    bench: Bench, words: list[int], seed: int
) -> None:
    # F5: nothing is cut and nothing is split; what is too long is left out whole, and its tokens are counted.
    rows = [chat("Go on", "Short."), *(chat("Go on", "word " * count) for count in words)]
    options = {"seed": seed, "overwrite": True}
    everything = bench.pack(rows, out="all", packing=False, max_length=None, **options).shards.manifest
    result = bench.pack(rows, max_length=100, over_length="drop", max_drop="100%", **options)
    counts = result.shards.manifest.counts
    assert counts.num_tokens + result.report.over_length_tokens == everything.counts.num_tokens
    for batch in result.shards.iter_batches(["input_ids"]):
        assert max(len(ids) for ids in batch["input_ids"].to_pylist()) <= 100
    whole = {(doc.line, doc.ids) for doc in docs_of(bench.folder / "all")}
    assert {(doc.line, doc.ids) for doc in docs_of(bench.folder / "out")} <= whole


def test_prompt_and_response_data_trains_the_response_and_its_stop_token_only(bench: Bench) -> None:
    # The literature's definition: labels are -100 on the prompt, the response's ids are kept.
    path = write_rows(bench.folder / "pairs.jsonl", [{"prompt": "What is red?", "response": "A colour."}] * 2)
    bench.run(files=(path,))
    tokenizer = Tokenizer.from_file(str(bench.model / "tokenizer.json"))
    for doc in docs_of(bench.folder / "out"):
        text = tokenizer.decode(list(doc.ids), skip_special_tokens=False)
        assert text == "<|im_start|>user\nWhat is red?<|im_end|>\n<|im_start|>assistant\nA colour.<|im_end|>\n"
        trained = [i for i in doc.labels if i != IGNORE_INDEX]
        assert tokenizer.decode(trained, skip_special_tokens=False) == "A colour.<|im_end|>"
        first = doc.labels.index(trained[0])
        assert set(doc.labels[:first]) == {IGNORE_INDEX}
        assert doc.labels[first : first + len(trained)] == doc.ids[first : first + len(trained)]


def test_the_first_token_of_every_document_is_not_a_target(bench: Bench) -> None:
    bench.pack(GOOD)  # F4
    docs = list(docs_of(bench.folder / "out"))
    assert len(docs) == len(GOOD)
    assert {doc.labels[0] for doc in docs} == {IGNORE_INDEX}


def test_text_of_a_message_is_never_trained_unless_an_assistant_wrote_it(bench: Bench) -> None:
    # A2, A11: all turns hold the same words, and each span is found by its place.
    bench.pack([chat("ok marker", "ok", "ok marker", "ok")])
    (doc,) = docs_of(bench.folder / "out")
    tokenizer = Tokenizer.from_file(str(bench.model / "tokenizer.json"))
    trained = [i for i in doc.labels if i != IGNORE_INDEX]
    assert tokenizer.decode(trained, skip_special_tokens=False) == "ok<|im_end|>ok<|im_end|>"


def test_what_share_of_the_rows_had_plans_is_told_beside_the_set(bench: Bench) -> None:
    rows = [*GOOD, INJECTED]
    told = []
    for name, plans in (("planned", True), ("opaque", False)):
        result = bench.pack(rows, out=name, max_drop="1", plans=plans)
        run = RunReport.model_validate_json((bench.folder / name / "run.json").read_bytes())
        assert run.num_rows == run.num_planned + run.num_opaque == len(rows)
        assert run.planned_share + run.opaque_share == 1
        assert result.rendering.get("replayed", 0) == run.num_planned
        told.append(run)
    planned, opaque = told
    assert planned.planned_share > 0.9
    assert planned.rows_by_engine == {"tokenizers": planned.num_planned}, "so few rows are not worth a fast engine"
    assert (opaque.opaque_share, opaque.rows_by_engine, opaque.engine_differed) == (1.0, {}, "")
    assert bytes_of(bench.folder / "planned") == bytes_of(bench.folder / "opaque")


def test_the_same_call_writes_the_same_bytes_and_the_worker_count_is_not_in_them(bench: Bench) -> None:
    rows = [*GOOD, INJECTED] * 50  # more than one chunk
    bench.pack(rows, out="one", max_drop="50")
    bench.pack(rows, out="again", max_drop="50")
    bench.pack(rows, out="two", max_drop="50", workers=2)
    first = bytes_of(bench.folder / "one")
    assert len(first) > 5
    assert bytes_of(bench.folder / "again") == first
    assert bytes_of(bench.folder / "two") == first


def test_the_seed_decides_the_order_and_nothing_else(bench: Bench) -> None:
    bench.pack(GOOD, out="zero")
    bench.pack(GOOD, out="one", seed=1)
    zero, one = (list(docs_of(bench.folder / name)) for name in ("zero", "one"))
    assert zero != one
    assert Counter(zero) == Counter(one)


def test_rows_beyond_max_drop_are_all_told_and_nothing_is_published(bench: Bench) -> None:
    # G4: every row by address and code, not the first only.
    error, told = bench.refused([*GOOD, INJECTED, UNTRAINED, INJECTED], max_drop="2")
    assert (error.code, error.exit_code) == ("rows-left-out", 1)
    assert [line.rpartition("[")[2] for line in told] == ["control-token]", "nothing-trained]", "control-token]"]
    assert [line.partition("chats.jsonl:")[2].partition(":")[0] for line in told] == ["13", "14", "15"]
    assert "control-token 2" in error.hint
    assert "nothing-trained 1" in error.hint


@pytest.mark.parametrize(("max_drop", "published"), [("25%", True), ("24.9%", False), ("4", True), ("3", False)])
def test_max_drop_is_a_count_or_a_percentage_of_the_rows(bench: Bench, max_drop: str, *, published: bool) -> None:
    rows = [*GOOD, *[INJECTED] * 4]
    if published:
        assert bench.pack(rows, max_drop=max_drop).shards.manifest.left_out.num_rows == 4
    else:
        bench.refused(rows, max_drop=max_drop)


def test_rows_that_are_too_long_are_refused_whatever_max_drop_allows_b7(bench: Bench) -> None:
    long = chat("Go on", "word " * 300)
    error, told = bench.refused([*GOOD, long, *GOOD, long], max_drop="100%")
    assert error.code == "over-length"
    assert len(told) == 2
    assert all("[over-length]" in line for line in told)


def test_nothing_left_to_pack_is_an_error(bench: Bench) -> None:
    error, _ = bench.refused([UNTRAINED], max_drop="100%")
    assert error.code == "nothing-to-pack"


def test_sources_are_mixed_by_their_epochs_and_accounted(bench: Bench) -> None:
    math = write_rows(bench.folder / "math.jsonl", GOOD[:10])
    chats = write_rows(bench.folder / "chats.jsonl", GOOD[10:])
    result = bench.run(files=(chats,), sources=(f"math={math}:2.5",))
    by_row = Counter((doc.file, doc.line) for doc in docs_of(bench.folder / "out"))
    assert [by_row[0, line] for line in (1, 2)] == [1, 1]
    assert sorted(by_row[1, line] for line in range(1, 11)) == [2] * 5 + [3] * 5
    plain, mixed = result.shards.manifest.sources
    assert (plain.num_rows, plain.num_taken, plain.num_documents) == (2, 2, 2)
    assert (mixed.name, mixed.num_rows, mixed.epochs, mixed.num_taken, mixed.num_documents) == ("math", 10, 2.5, 25, 25)
    assert result.shards.manifest.counts.num_documents == 27
    assert result.shards.manifest.counts.num_tokens == sum(len(doc.ids) for doc in docs_of(bench.folder / "out"))


def test_a_row_that_no_fraction_takes_is_neither_packed_nor_left_out(bench: Bench) -> None:
    path = write_rows(bench.folder / "bad.jsonl", [INJECTED] * 10)
    good = write_rows(bench.folder / "good.jsonl", GOOD)
    result = bench.run(files=(good,), sources=(SourceSpec(name="bad", path=path, epochs=0.3),), max_drop="3")
    assert result.shards.manifest.left_out.num_rows == 3
    assert result.shards.manifest.sources[1].num_taken == 3


def test_per_message_weights_reach_the_shards(bench: Bench) -> None:
    # L1: a fraction makes the weights column for the whole set; weight 0 is context.
    result = bench.pack([chat("Hi", "Half.", weight=0.5), GOOD[0]])
    manifest = result.shards.manifest
    assert manifest.has_weights
    assert manifest.counts.weight_sum < manifest.counts.num_trained
    weights = {w for b in result.shards.iter_batches(["weights"]) for row in b["weights"].to_pylist() for w in row}
    assert weights == {0.0, 0.5, 1.0}


def test_counts_of_the_manifest_are_those_of_the_shards(bench: Bench) -> None:
    # A5: counted from the ledger on the one side, from the files on the other.
    result = bench.pack([chat("a", "b", "c", "d"), *GOOD])
    counts, docs = result.shards.manifest.counts, list(docs_of(bench.folder / "out"))
    assert counts.num_tokens == sum(len(doc.ids) for doc in docs) == sum(counts.tokens_by_kind.values())
    assert counts.num_trained == sum(i != IGNORE_INDEX for doc in docs for i in doc.labels)
    assert counts.num_trained == counts.tokens_by_kind["completion"] + counts.tokens_by_kind["stop"]
    assert counts.num_turns == counts.tokens_by_kind["stop"] == len(GOOD) + 2
    assert counts.num_packs == result.shards.num_rows
    result.shards.verify()
    audit = result.report.audit
    assert audit.passed
    assert (audit.num_tokens, audit.num_trained) == (counts.num_tokens, counts.num_trained)
    assert json.loads((bench.folder / "out" / "report.json").read_text(encoding="utf-8"))["audit"]["directory"] == "."


def test_tokens_of_rows_that_are_too_long_are_counted_as_often_as_the_rows_are_taken(bench: Bench) -> None:
    long = write_rows(bench.folder / "long.jsonl", [chat("Go on", "word " * 300)])
    once = bench.run("once", sources=(f"long={long}",), packing=False, max_length=None).shards.manifest
    good = write_rows(bench.folder / "good.jsonl", GOOD)
    result = bench.run(files=(good,), sources=(f"long={long}:3",), over_length="drop", max_drop="1")
    assert result.report.over_length_tokens == 3 * once.counts.num_tokens
    assert [source.num_left_out for source in result.shards.manifest.sources] == [0, 3]


def test_a_set_that_fails_its_audit_is_not_published(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the encoder would have to do wrong: a stop token that is none of the model's.
    real = load_model(str(bench.model))
    monkeypatch.setattr("sftprep.prepare.publish._model_record", _other_stop_id(real))
    error, _ = bench.refused(GOOD)
    assert (error.code, error.exit_code) == ("audit-failed", 1)
    assert "stop-id" in error.message


def test_packing_is_done_and_its_gain_is_told(bench: Bench) -> None:
    # F6, G1: more than one document a row, and what padding would have wasted.
    report = bench.pack(GOOD * 20, max_length=256).report
    manifest = open_shard_set(bench.folder / "out").manifest
    assert manifest.counts.num_documents > 3 * manifest.counts.num_packs
    assert report.waste.packing < 0.1 < report.waste.padding_to_longest < report.waste.padding_to_max_length
    assert (manifest.lengths.max, report.drops[-1].num_conversations) == (report.row_lengths.max, 0)


def test_without_packing_each_document_has_a_row_and_the_longest_decides_the_length(bench: Bench) -> None:
    manifest = bench.pack(GOOD, packing=False, max_length=None).shards.manifest
    assert (manifest.packing, manifest.counts.num_packs) == (False, len(GOOD))
    assert manifest.max_length == manifest.lengths.max
    assert manifest.waste.padding_to_longest == manifest.waste.padding_to_max_length


def test_row_order_does_not_follow_length(bench: Bench) -> None:
    # F7
    rows = sorted((chat("Go on", "word " * (n % 40 + 1)) for n in range(1500)), key=str)
    bench.pack(rows, max_length=64, over_length="drop", max_drop="100%")
    batches = open_shard_set(bench.folder / "out").iter_batches(["seq_lengths"])
    means = [np.mean(lengths) for batch in batches for lengths in batch["seq_lengths"].to_pylist()]
    assert len(means) > 300
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.15


def test_the_models_files_lie_beside_the_shards_byte_for_byte_c2(bench: Bench) -> None:
    bench.pack(GOOD)  # C2
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (bench.folder / "out" / "model" / name).read_bytes() == (bench.model / name).read_bytes()


def test_a_file_that_changes_while_it_is_read_is_an_error(bench: Bench) -> None:
    path = write_rows(bench.folder / "chats.jsonl", GOOD)
    config = PackConfig(files=(path,), out=bench.folder / "out", model=str(bench.model), max_length=256)

    def touch(_: int) -> None:
        os.utime(path, (1, 1))

    with pytest.raises(DataError) as caught:
        pack(config, on_bytes=touch)
    assert caught.value.code == "source-changed"
    assert not (bench.folder / "out").exists()
