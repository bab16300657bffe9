"""Reads single rows of a shard set in any order, by row group, with a few groups kept."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sftprep.errors import ShardError
from sftprep.shards.read import ShardSet
from sftprep.train.stream import Row

_COLUMNS: Final = ("input_ids", "assistant_masks", "seq_lengths", "doc_files")
_MESSAGE_COLUMNS: Final = ("span_starts", "span_messages")
_KEPT_GROUPS: Final = 16


class RowReader:
    """Rows by number; memory is bounded by a few row groups, whatever the size of the set."""

    def __init__(self, shards: ShardSet, *, with_messages: bool = False) -> None:
        self._columns = [*_COLUMNS, "weights"] if shards.manifest.has_weights else list(_COLUMNS)
        self._columns += _MESSAGE_COLUMNS if with_messages else ()
        self._files = [
            pq.ParquetFile(shards.directory / shard.file, memory_map=True) for shard in shards.manifest.shards
        ]
        self._groups = [(file, group) for file in self._files for group in range(file.num_row_groups)]
        sizes = [file.metadata.row_group(group).num_rows for file, group in self._groups]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int).tolist()
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()

    def row(self, index: int) -> Row:
        """Row `index`, counted from 0 through all shards.

        Raises:
            ShardError: `damaged-row`: its columns do not fit together.
        """
        group = bisect_right(self._starts, index) - 1
        table = self._read(group).slice(index - self._starts[group], 1)
        ids, trained, lengths, sources = (_values(table, name) for name in _COLUMNS)
        weights = _values(table, "weights") if "weights" in self._columns else np.ones(len(ids))
        uneven = len({len(ids), len(trained), len(weights), int(lengths.sum())}) != 1 or len(sources) != len(lengths)
        if uneven or (lengths < 1).any():
            raise ShardError("the row's columns differ in length", code="damaged-row", place=f"row {index}")
        return Row(
            index=index,
            ids=ids.astype(np.int32),
            trained=trained.astype(bool),
            lengths=lengths.astype(np.int32),
            weights=weights.astype(np.float32),
            sources=sources.astype(np.int32),
            messages=self._messages(table, len(ids)),
        )

    def _messages(self, table: pa.Table, num_tokens: int) -> npt.NDArray[np.int32]:
        """Each token's message, int32 `[T]`; empty where the reader was not asked for them."""
        if "span_messages" not in self._columns:
            return np.zeros(0, np.int32)
        starts, messages = (_values(table, name) for name in _MESSAGE_COLUMNS)
        return np.repeat(messages, np.diff([*starts, num_tokens])).astype(np.int32)

    def _read(self, group: int) -> pa.Table:
        if group not in self._kept:
            file, number = self._groups[group]
            self._kept[group] = file.read_row_group(number, columns=self._columns, use_threads=False)
            if len(self._kept) > _KEPT_GROUPS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        return self._kept[group]


def _values(table: pa.Table, name: str) -> np.ndarray:
    values: np.ndarray = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values
