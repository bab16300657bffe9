"""Shards hold exactly the documents that were gathered, exist whole or not at all, and any reader opens them."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.data import TOKEN_BATCH_SCHEMA, TRAINED_KINDS, PackPlan, SpanKind
from sftprep.errors import OutputError, ShardError
from sftprep.shards import gather as gather_module
from sftprep.shards.gather import Documents, distinct_kwargs, needs_weights, shard_rows
from sftprep.shards.manifest import Counts, LeftOut, Lengths, Manifest, ModelRecord, ShardRecord, Waste
from sftprep.shards.part import write_shard
from sftprep.shards.place import named_failures
from sftprep.shards.read import open_shard_set
from sftprep.shards.write import ShardWriter
from sftprep.stages.pack import plan

KINDS = st.sampled_from([SpanKind.USER, SpanKind.HEADER, SpanKind.COMPLETION, SpanKind.STOP])


@st.composite
def documents(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Documents of random spans; the first span of each is a header, as a prompt always precedes a completion."""
    found = []
    for number in range(draw(st.integers(1, 12))):
        sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
        kinds = [SpanKind.HEADER, *draw(st.lists(KINDS, min_size=len(sizes) - 1, max_size=len(sizes) - 1))]
        found.append(
            {
                "input_ids": draw(st.lists(st.integers(0, 999), min_size=sum(sizes), max_size=sum(sizes))),
                "span_starts": np.cumsum([0, *sizes[:-1]]).tolist(),
                "span_kinds": [int(kind) for kind in kinds],
                "span_messages": [-1, *range(len(sizes) - 1)],
                "span_weights": [0.5 if kind in TRAINED_KINDS and draw(st.booleans()) else 1.0 for kind in kinds],
                "doc_file": 0,
                "doc_line": number + 1,
                "doc_sample": 0,
                "doc_kwargs": draw(st.sampled_from(["{}", '{"enable_thinking": false}'])),
            }
        )
    return found


def rows_of(docs: list[dict[str, Any]], packs: PackPlan, *, weights: bool) -> list[dict[str, Any]]:
    """The obvious slow version of gathering."""
    rows = []
    for first, last in zip(packs.offsets[:-1].tolist(), packs.offsets[1:].tolist(), strict=True):
        row: dict[str, Any] = {name: [] for name in ("input_ids", "assistant_masks", "seq_lengths", "span_starts")}
        row |= {
            name: [] for name in ("span_kinds", "span_messages", "doc_files", "doc_lines", "doc_samples", "doc_kwargs")
        }
        row_weights: list[float] = []
        for doc in (docs[i] for i in packs.order[first:last].tolist()):
            stops = [*doc["span_starts"][1:], len(doc["input_ids"])]
            for start, stop, kind, weight in zip(
                doc["span_starts"], stops, doc["span_kinds"], doc["span_weights"], strict=True
            ):
                trained = kind in TRAINED_KINDS
                row["assistant_masks"] += [int(trained)] * (stop - start)
                row_weights += [weight if trained else 0.0] * (stop - start)
            row["span_starts"] += [start + len(row["input_ids"]) for start in doc["span_starts"]]
            row["input_ids"] += doc["input_ids"]
            row["seq_lengths"].append(len(doc["input_ids"]))
            row["span_kinds"] += doc["span_kinds"]
            row["span_messages"] += doc["span_messages"]
            row["doc_files"].append(doc["doc_file"])
            row["doc_lines"].append(doc["doc_line"])
            row["doc_samples"].append(doc["doc_sample"])
            row["doc_kwargs"].append(list(dict.fromkeys(d["doc_kwargs"] for d in docs)).index(doc["doc_kwargs"]))
        row["num_trained"] = sum(row["assistant_masks"])
        row["weight_sum"] = float(sum(row_weights))
        row["sum_len2"] = sum(length**2 for length in row["seq_lengths"])
        if weights:
            row["weights"] = row_weights
        rows.append(row)
    return rows


def manifest_of(shards: list[ShardRecord], *, weights: bool = False) -> Manifest:
    lengths = Lengths(mean=1, p50=1, p90=1, p99=1, max=1)
    totals = {"num_conversations": 1, "num_documents": 1, "num_packs": 1, "num_turns": 1}
    return Manifest(
        fingerprint="f" * 64,
        versions={},
        model=ModelRecord(
            name="m",
            tokenizer_sha256="t",
            template_sha256="t",
            template="",
            stop_ids=[1],
            stop_tokens=["</s>"],
            vocab_size=1000,
            pad_id=0,
        ),
        config={},
        packing=True,
        max_length=32,
        has_weights=weights,
        mask="assistant",
        template_kwargs=[{}],
        sources=[],
        shards=shards,
        counts=Counts(**totals, num_tokens=1, num_trained=1, weight_sum=1, tokens_by_kind={}),
        lengths=lengths,
        trained_lengths=lengths,
        waste=Waste(padding_to_longest=0, padding_to_max_length=0, packing=0),
        left_out=LeftOut(num_rows=0, by_code={}, max_drop="0"),
    )


def write(docs: list[dict[str, Any]], out: Path, *, shard_tokens: int = 1 << 20) -> PackPlan:
    table = pa.Table.from_pylist(docs, schema=TOKEN_BATCH_SCHEMA)
    packs = plan(np.array([len(d["input_ids"]) for d in docs], np.int32), capacity=32, seed=0)
    weights = needs_weights(table)
    source = Documents.of(table, distinct_kwargs(table))
    with pytest.MonkeyPatch.context() as patch, ShardWriter(out, fingerprint="f" * 64) as writer, named_failures(out):
        patch.setattr(gather_module, "BATCH_TOKENS", 1)  # every row is a row group
        for number, rows in enumerate(shard_rows(packs, source.lengths, shard_tokens=shard_tokens)):
            batches = source.rows(rows, weights=weights)
            writer.add(write_shard(writer.directory, batches, number=number, weights=weights))
        writer.publish(manifest_of(writer.records, weights=weights))
    return packs


@settings(max_examples=40, deadline=None)
@given(docs=documents())
def test_what_is_read_is_what_was_gathered_and_gathering_is_the_obvious_loop(
    docs: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("s") / "set"
    packs = write(docs, out)
    shards = open_shard_set(out)
    shards.verify(checksums=True)
    read = [row for batch in shards.iter_batches() for row in batch.to_pylist()]
    assert read == rows_of(docs, packs, weights=shards.manifest.has_weights)
    assert all(row["assistant_masks"][0] == 0 for row in read), "a border is never a target (F4)"
    assert shards.row(len(read) - 1).to_pylist() == read[-1:]
    assert shards.scalars().num_trained.tolist() == [row["num_trained"] for row in read]


DOCS: list[dict[str, Any]] = [
    {
        "input_ids": [5, 6, 7, 8, 1],
        "span_starts": [0, 2, 4],
        "span_kinds": [int(SpanKind.USER), int(SpanKind.COMPLETION), int(SpanKind.STOP)],
        "span_messages": [0, 1, 1],
        "span_weights": [0.0, 1.0, 1.0],
        "doc_file": 0,
        "doc_line": line,
        "doc_sample": 0,
        "doc_kwargs": "{}",
    }
    for line in range(1, 20)
]


def test_pandas_polars_and_datasets_read_a_shard_d8(tmp_path: Path) -> None:
    write(DOCS, tmp_path / "set")
    path = tmp_path / "set" / "shards" / "part-00000.parquet"
    expected = pq.read_table(path)["input_ids"].to_pylist()
    assert pl.read_parquet(path)["input_ids"].to_list() == expected
    import pandas as pd
    from datasets import Dataset

    assert [row.tolist() for row in pd.read_parquet(path)["input_ids"]] == expected
    assert Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))["input_ids"][:] == expected


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(DOCS, tmp_path / name, shard_tokens=30)
    first, second = (sorted((tmp_path / name / "shards").iterdir()) for name in ("a", "b"))
    assert len(first) > 1, "it was cut into several files"
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pq.ParquetWriter, "write_batch", fail)
    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)) as caught:
        write(DOCS, tmp_path / "set")
    if isinstance(caught.value, OutputError):
        assert caught.value.code == "disk-full"
    assert list(tmp_path.iterdir()) == [], "nothing half-written is left, under any name"


def test_a_directory_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError) as caught:
        write(DOCS, tmp_path)
    assert (caught.value.code, caught.value.exit_code) == ("output-not-empty", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def damage(out: Path, how: str) -> None:
    manifest, shard = out / "manifest.json", out / "shards" / "part-00000.parquet"
    content = json.loads(manifest.read_text())
    if how == "no-manifest":
        manifest.unlink()
    elif how == "damaged-manifest":
        manifest.write_text(manifest.read_text()[:-20])
    elif how == "missing-shard":
        shard.unlink()
    elif how == "shard-checksum":
        shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    elif how == "unknown-format-version":
        manifest.write_text(json.dumps({**content, "format_version": 999}))
    else:
        content["shards"][0]["num_rows"] += 1
        manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "code",
    ["no-manifest", "damaged-manifest", "missing-shard", "shard-checksum", "unknown-format-version", "shard-count"],
)
def test_every_damage_is_refused_by_its_code(tmp_path: Path, code: str) -> None:
    write(DOCS, tmp_path / "set")
    damage(tmp_path / "set", code)
    with pytest.raises(ShardError) as caught:
        open_shard_set(tmp_path / "set").verify(checksums=True)
    assert caught.value.code == code
