"""Reads single rows of a shard set in any order: a row group is decoded once and kept, and rows are views of it."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep import arrow
from sftprep.errors import ShardError
from sftprep.shards.manifest import ShardRecord
from sftprep.shards.part import read_group
from sftprep.shards.read import ShardSet
from sftprep.train.stream import GROUPS_A_WINDOW, Row
from sftprep.train.tags import UNTAGGED, Tags

_COLUMNS: Final = ("input_ids", "assistant_masks", "seq_lengths", "doc_files")
_MESSAGE_COLUMNS: Final = ("span_starts", "span_messages")
_LINE_COLUMN: Final = "doc_lines"


class RowReader:
    """Rows by number; memory is bounded by the row groups of a shuffling window, whatever the size of the set.

    Five bytes a token are kept (nine with weights): 170 MB at the most, with groups as the writer makes them. Not safe
    to be read by two threads at once.
    """

    def __init__(self, shards: ShardSet, *, with_messages: bool = False, tags: Tags = UNTAGGED) -> None:
        self._columns = [*_COLUMNS, "weights"] if shards.manifest.has_weights else list(_COLUMNS)
        self._columns += _MESSAGE_COLUMNS if with_messages else ()
        self._columns += (_LINE_COLUMN,) if tags.names else ()
        self.tags = tags
        """What sources are told apart by beside their number."""
        groups = shards.group_rows()
        self._shards = shards
        self._groups = [(shard, group) for shard, rows in enumerate(groups) for group in range(len(rows))]
        self.group_rows = tuple(chain.from_iterable(groups))
        """Rows of each row group, through all shards."""
        self.shard_groups = tuple(map(len, groups))
        """Row groups of each shard."""
        self._starts: list[int] = np.concatenate([[0], np.cumsum(self.group_rows)]).astype(int).tolist()
        self._kept: OrderedDict[int, _Group] = OrderedDict()
        self._states = {shard.file: self._state(shard) for shard in shards.manifest.shards}
        self._ones = np.ones(0, np.float32)

    def row(self, index: int) -> Row:
        """Row `index`, counted from 0 through all shards; its arrays are views that cannot be written.

        Raises:
            ShardError: `damaged-row`: its columns do not fit together. `damaged-shard`: it cannot be read.
                `shard-checksum`: its shard was changed since this reader began.
        """
        number = bisect_right(self._starts, index) - 1
        group, place = self._read(number), index - self._starts[number]
        ids = group.values("input_ids", place)
        return Row(
            index=index,
            ids=ids,
            trained=group.values("assistant_masks", place).view(np.bool_),
            lengths=group.values("seq_lengths", place),
            weights=group.values("weights", place) if "weights" in self._columns else self._ones_for(len(ids)),
            sources=self._sources(group, place),
            messages=self._messages(group, place, len(ids)),
        )

    def _sources(self, group: _Group, place: int) -> npt.NDArray[np.int32]:
        files = group.values("doc_files", place)
        return self.tags.joint(files, group.values(_LINE_COLUMN, place)) if self.tags.names else files

    def _messages(self, group: _Group, place: int, num_tokens: int) -> npt.NDArray[np.int32]:
        """Each token's message, int32 `[T]`; empty where the reader was not asked for them."""
        if "span_messages" not in self._columns:
            return np.zeros(0, np.int32)
        starts, messages = (group.values(name, place) for name in _MESSAGE_COLUMNS)
        return np.repeat(messages, np.diff([*starts, num_tokens])).astype(np.int32)

    def _ones_for(self, num_tokens: int) -> npt.NDArray[np.float32]:
        """The weights of a row where the set has none: the same memory for all rows. float32 `[T]`."""
        if num_tokens > len(self._ones):
            self._ones = np.ones(num_tokens, np.float32)
            self._ones.setflags(write=False)
        return self._ones[:num_tokens]

    def _state(self, shard: ShardRecord) -> tuple[int, ...]:
        """What changes with a local file that was checked; copies of a store are checked as they come."""
        if self._shards.copies is not None:
            return ()
        try:
            found = (self._shards.directory / shard.file).stat()
        except FileNotFoundError:
            return ()
        return found.st_size, found.st_mtime_ns, found.st_ino

    def _read(self, number: int) -> _Group:
        if number not in self._kept:
            place, group = self._groups[number]
            shard = self._shards.manifest.shards[place]
            # Opened for one group: a copy in a bounded cache is not held longer.
            with self._shards.open_shard(shard) as file:
                path = self._shards.directory / shard.file
                decoded = _Group.of(read_group(file, group, columns=self._columns, path=path))
            # Behind it: a change while it was read is seen too.
            if self._state(shard) != self._states[shard.file]:
                raise _changed(path)
            decoded.check(first_row=self._starts[number])
            self._kept[number] = decoded
            if len(self._kept) > GROUPS_A_WINDOW:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]


def _changed(path: Path) -> ShardError:
    return ShardError(
        "the shard was changed after its bytes were checked",
        code="shard-checksum",
        place=str(path),
        hint="pack to another directory while a run reads this one",
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group's list columns: flat values, and where each row's begin. int64 `[rows + 1]`."""

    flat: dict[str, npt.NDArray[Any]]
    offsets: dict[str, npt.NDArray[np.int64]]

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> _Group:
        """Views of Arrow's buffers: nothing is copied."""
        offsets = {name: arrow.flat(batch[name].offsets).astype(np.int64) for name in batch.schema.names}
        values = {name: arrow.flat(batch[name].flatten()) for name in batch.schema.names}
        return cls(values, {name: found - found[0] for name, found in offsets.items()})

    def values(self, name: str, place: int) -> npt.NDArray[Any]:
        """One row's values of a column."""
        start, stop = self.offsets[name][place : place + 2]
        return self.flat[name][start:stop]

    def check(self, *, first_row: int) -> None:
        """ShardError `damaged-row`: columns of different length, an empty document, or a mask that is not 0 or 1."""
        counts = {name: np.diff(offsets) for name, offsets in self.offsets.items()}
        totals = np.concatenate([[0], np.cumsum(self.flat["seq_lengths"], dtype=np.int64)])
        bad = np.diff(totals[self.offsets["seq_lengths"]]) != counts["input_ids"]
        bad |= counts["doc_files"] != counts["seq_lengths"]
        for name in {"assistant_masks", "weights"} & counts.keys():
            bad |= counts[name] != counts["input_ids"]
        lengths, masks = self.flat["seq_lengths"], self.flat["assistant_masks"]
        for name, wrong in (("seq_lengths", lengths < 1), ("assistant_masks", masks.view(np.uint8) > 1)):
            places = np.searchsorted(self.offsets[name], np.flatnonzero(wrong), side="right") - 1
            bad[places] = True
        if bad.any():
            row = first_row + int(bad.argmax())
            raise ShardError("the row's columns do not fit together", code="damaged-row", place=f"row {row}")
