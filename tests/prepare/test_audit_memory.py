"""The audit streams: what it holds at most is one row group and its sums, however many rows a set has (K1)."""

from __future__ import annotations

import hashlib
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftprep.config.audit import AuditConfig
from sftprep.config.pack import PackConfig
from sftprep.prepare.audit import audit
from sftprep.prepare.pack import pack

FEW, MANY = 4, 64


@pytest.fixture(scope="module")
def packed(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("memory") / "set"
    sources = tuple(f"{path.stem}={path}:8" for path in sorted((samples / "good").glob("*.jsonl")))
    pack(PackConfig(sources=sources, model=str(samples / "model"), out=out, max_length=512))
    return out


def repeated(packed: Path, out: Path, *, times: int) -> Path:
    """The set with its rows many times over, a row group each time, and a manifest that says so."""
    shutil.copytree(packed, out)
    manifest = json.loads((out / "manifest.json").read_text())
    (shard,) = manifest["shards"]
    table = pq.read_table(out / shard["file"])
    with pq.ParquetWriter(out / shard["file"], table.schema) as writer:
        for _ in range(times):
            writer.write_table(table, row_group_size=table.num_rows)
    for counts, names in (
        (shard, ("num_rows", "num_tokens", "num_trained")),
        (manifest["counts"], ("num_documents", "num_tokens", "num_trained")),
    ):
        counts.update({name: counts[name] * times for name in names})
    shard["sha256"] = hashlib.sha256((out / shard["file"]).read_bytes()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def peak(directory: Path, **options: Any) -> tuple[int, int]:
    """Tokens counted, and the bytes that Python, numpy and Arrow held at most meanwhile."""
    own, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(own)
    tracemalloc.start()
    try:
        report = audit(AuditConfig(directory=directory, **options)).report
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert report.findings == []
    return report.num_tokens, held + int(own.max_memory())


def test_memory_does_not_grow_with_the_rows_k1(packed: Path, tmp_path: Path) -> None:
    few = repeated(packed, tmp_path / "few", times=FEW)
    many = repeated(packed, tmp_path / "many", times=MANY)
    peak(few)  # what is loaded once
    (few_tokens, few_bytes), (many_tokens, many_bytes) = peak(few), peak(many)
    assert many_tokens == few_tokens * MANY // FEW > 3_000_000
    assert few_bytes > few_tokens / FEW * 4, "a row group's ids at least were seen to be held"
    assert many_bytes < few_bytes * 1.1
    assert many_bytes < many_tokens * 2, "not even the ids of all rows"
