"""Reading rows: what was written comes back, each row group is decoded once an epoch, and damage is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftprep.errors import ShardError
from sftprep.shards.read import open_shard_set
from sftprep.train import rows as rows_module
from sftprep.train.rows import RowReader
from sftprep.train.stream import GROUPS_A_WINDOW, Schedule

ShardSetFactory = Callable[..., Path]


def _written(data: Path) -> list[dict[str, Any]]:
    files = sorted((data / "shards").glob("*.parquet"))
    return [line for file in files for line in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_are_what_was_written_in_any_order(shard_set: ShardSetFactory, *, weighted: bool) -> None:
    data = shard_set(num_rows=11, weighted=weighted)
    reader, written = RowReader(open_shard_set(data)), _written(data)
    assert sum(reader.group_rows) == len(written) == 11
    for index in (10, 0, 4, 3, 10, 5):
        row, wanted = reader.row(index), written[index]
        assert row.ids.tolist() == wanted["input_ids"]
        assert row.trained.tolist() == [bool(bit) for bit in wanted["assistant_masks"]]
        assert row.lengths.tolist() == wanted["seq_lengths"]
        assert row.sources.tolist() == wanted["doc_files"]
        assert row.weights.tolist() == (wanted["weights"] if weighted else [1.0] * len(row.ids))
        assert (row.ids.dtype, row.trained.dtype, row.weights.dtype) == (np.int32, np.bool_, np.float32)


def test_an_epoch_decodes_each_row_group_once_whatever_the_size_of_the_set(
    shard_set: ShardSetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_shard_set(shard_set(num_rows=3 * GROUPS_A_WINDOW, row_group=1))
    seen: Counter[tuple[str, int]] = Counter()
    real = rows_module.read_group

    def counted(file: Any, group: int, **keywords: Any) -> Any:
        seen[keywords["path"].name, group] += 1
        return real(file, group, **keywords)

    monkeypatch.setattr(rows_module, "read_group", counted)
    reader = RowReader(shards)
    schedule = Schedule(num_rows=shards.num_rows, rows_per_step=5, seed=2, group_rows=reader.group_rows)
    assert len(reader.group_rows) > 2 * GROUPS_A_WINDOW
    for index in schedule.order(0).tolist():
        reader.row(index)
    assert set(seen.values()) == {1}
    assert len(seen) == len(reader.group_rows)


def _damage(data: Path, change: Callable[[dict[str, Any]], None]) -> RowReader:
    """A set whose fifth row is changed."""
    shards = open_shard_set(data)
    path = data / shards.manifest.shards[0].file
    table = pq.read_table(path)
    lines = table.to_pylist()
    change(lines[4])
    pq.write_table(pa.Table.from_pylist(lines, schema=table.schema), path, row_group_size=3)
    return RowReader(shards)


FAULTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "a mask too short": lambda line: line["assistant_masks"].pop(),
    "a document too long": lambda line: line.update(seq_lengths=[*line["seq_lengths"][:-1], 99]),
    "an empty document": lambda line: line.update(
        seq_lengths=[0, *line["seq_lengths"]], doc_files=[0, *line["doc_files"]]
    ),
    "a document of no file": lambda line: line["doc_files"].pop(),
    "a weight too few": lambda line: line["weights"].pop(),
    "a mask of two": lambda line: line["assistant_masks"].__setitem__(-1, 2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_whose_columns_do_not_fit_together_is_named(shard_set: ShardSetFactory, fault: str) -> None:
    reader = _damage(shard_set(num_rows=12, weighted=True), FAULTS[fault])
    reader.row(1)
    with pytest.raises(ShardError) as raised:
        reader.row(4)
    assert (raised.value.code, raised.value.place) == ("damaged-row", "row 4")
