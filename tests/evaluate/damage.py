"""Packed sets whose masks were changed, as a tool that guesses them would write them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftprep.data import SpanKind

Row = dict[str, Any]


def remasked(packed: Path, place: Path, mask: Callable[[Row], list[int]]) -> Path:
    """The same set with other masks, its checksums and counts made to fit."""
    (place / "shards").mkdir(parents=True)
    manifest = json.loads((packed / "manifest.json").read_bytes())
    for shard in manifest["shards"]:
        table = pq.read_table(packed / shard["file"])
        found = [mask(row) for row in table.to_pylist()]
        for name, values in (("assistant_masks", found), ("num_trained", [sum(own) for own in found])):
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
        sums = pa.array([float(sum(own)) for own in found], pa.float64())
        at = table.schema.get_field_index("weight_sum")
        table = table.set_column(at, table.schema.field(at), sums)
        pq.write_table(table, place / shard["file"])
        content = (place / shard["file"]).read_bytes()
        trained = sum(map(sum, found))
        shard |= {"sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content)}
        shard |= {"num_trained": trained, "weight_sum": float(trained)}
    manifest["counts"]["num_trained"] = sum(shard["num_trained"] for shard in manifest["shards"])
    manifest["counts"]["weight_sum"] = float(manifest["counts"]["num_trained"])
    (place / "model").mkdir()
    for path in (packed / "model").iterdir():
        (place / "model" / path.name).write_bytes(path.read_bytes())
    (place / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return place


def of_kinds(row: Row) -> list[int]:
    ends = [*row["span_starts"][1:], len(row["input_ids"])]
    spans = zip(row["span_starts"], ends, row["span_kinds"], strict=True)
    return [kind for start, stop, kind in spans for _ in range(stop - start)]


def without_stops(row: Row) -> list[int]:
    pairs = zip(row["assistant_masks"], of_kinds(row), strict=True)
    return [int(trained and kind != SpanKind.STOP) for trained, kind in pairs]


def with_prompts(row: Row) -> list[int]:
    pairs = zip(row["assistant_masks"], of_kinds(row), strict=True)
    return [int(trained or kind == SpanKind.USER) for trained, kind in pairs]


def unchanged(row: Row) -> list[int]:
    return list(row["assistant_masks"])
