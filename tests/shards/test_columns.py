"""What lies in a shard is what every Parquet reader can read: numbers, and flat lists of them (D8)."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from sftprep.shards.schema import SHARD_SCHEMA
from tests.shards.test_write_read import DOCS, write

_NUMBERS = {"INT32", "INT64", "FLOAT", "DOUBLE"}


def test_every_column_is_a_number_or_a_flat_list_of_numbers_d8(tmp_path: Path) -> None:
    write(DOCS, tmp_path / "set")
    stored = pq.ParquetFile(tmp_path / "set" / "shards" / "part-00000.parquet").schema
    columns = [stored.column(index) for index in range(len(stored))]
    # A struct would have a column for each of its fields.
    assert [column.path.split(".")[0] for column in columns] == SHARD_SCHEMA.names
    assert {column.physical_type for column in columns} <= _NUMBERS
    assert max(column.max_repetition_level for column in columns) == 1
    assert next(column.physical_type for column in columns if column.path.startswith("input_ids.")) == "INT32"
