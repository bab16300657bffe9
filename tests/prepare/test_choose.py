"""Rows by an expression: exactly those with a document for which it holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftprep.config.audit import AuditConfig
from sftprep.config.pack import PackConfig
from sftprep.errors import UsageError
from sftprep.prepare.audit import audit
from sftprep.prepare.choose import matching_rows
from sftprep.prepare.pack import pack
from sftprep.shards.read import ShardSet, open_shard_set


@pytest.fixture(scope="module")
def shards(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    out = tmp_path_factory.mktemp("choose") / "set"
    files = tuple(sorted((samples / "good").glob("*.jsonl")))
    return pack(PackConfig(files=files, model=str(samples / "model"), out=out, max_length=400)).shards


def rows_where(shards: ShardSet, where: str) -> list[int]:
    return [int(row) for row in matching_rows(shards, where)]


def plain_rows(shards: ShardSet) -> list[dict[str, object]]:
    return [row for batch in shards.iter_batches() for row in batch.to_pylist()]


def test_length_is_of_a_document_and_any_document_decides(shards: ShardSet) -> None:
    expected = [n for n, row in enumerate(plain_rows(shards)) if any(size > 150 for size in row["seq_lengths"])]
    assert 0 < len(expected) < shards.num_rows
    assert rows_where(shards, "length > 150") == expected


def test_file_and_line_find_one_conversation(shards: ShardSet) -> None:
    names = [source.path for source in shards.manifest.sources]
    number = next(n for n, name in enumerate(names) if name.endswith("tools.jsonl"))
    expected = [
        n
        for n, row in enumerate(plain_rows(shards))
        if (number, 2) in zip(row["doc_files"], row["doc_lines"], strict=True)
    ]
    assert rows_where(shards, "file LIKE '%tools.jsonl' AND line = 2") == expected
    assert len(expected) == 1


def test_density_trained_and_share_are_numbers(shards: ShardSet) -> None:
    full = [n for n, row in enumerate(plain_rows(shards)) if len(row["input_ids"]) / 400 >= 0.99]
    assert rows_where(shards, "density >= 0.99") == full
    assert rows_where(shards, "trained > length") == []
    assert rows_where(shards, "share BETWEEN 0 AND 1") == list(range(shards.num_rows))


def test_code_finds_the_rows_with_a_finding_also_those_that_cannot_be_read(shards: ShardSet, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(shards.directory, tmp_path / "set"))
    path = damaged / shards.manifest.shards[0].file
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[1]["assistant_masks"][0] = 1
    rows[3]["assistant_masks"].pop()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    broken = open_shard_set(damaged)
    assert rows_where(broken, "code LIKE '%border-trained%'") == [1]
    assert rows_where(broken, "code = 'column-length-mismatch'") == [3]
    assert 3 not in rows_where(broken, "length > 0"), "it has no length"


@pytest.mark.parametrize("where", ["length >", "nothing = 1", "length = 'x", "length + 1", "file > 3"])
def test_an_expression_that_is_none_is_a_wrong_call(shards: ShardSet, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        matching_rows(shards, where)
    assert caught.value.code == "bad-expression"


def test_the_audit_shows_a_draw_of_the_matching_rows(shards: ShardSet) -> None:
    found = audit(AuditConfig(directory=shards.directory, where="length > 150", sample=2))
    assert set(found.chosen()) <= set(rows_where(shards, "length > 150"))
    assert len(found.chosen()) == 2
    assert [view.index for view in found.rows(found.chosen())] == found.chosen()
