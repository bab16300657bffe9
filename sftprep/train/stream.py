"""Which rows a step takes, and what they become: tensors with labels shifted, here and nowhere else.

The order of rows is a pure function of seed and epoch, and a step's rows of its number, so a resumed run continues
where it stopped without reading what it skips.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from sftprep.errors import TrainError

GROUPS_A_WINDOW: Final = 32
"""Row groups that are decoded at a time, and whose rows are shuffled together: 33 million tokens, as `pack` writes."""
SHARDS_A_WINDOW: Final = 16
"""Shards whose row groups are shuffled together: a billion tokens, 2.2 GB, as `pack` writes."""
_FIRST_BUCKET_SHARE: Final = 0.5
"""Rows that are shorter than this share of a batch's longest go into another batch: less than half is padding."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a shard: `ids` int32 `[T]`, `trained` bool `[T]` (not shifted), `lengths` int32 `[documents]`.

    `weights` is float32 `[T]`, 1 where the shards have none. `sources` int32 `[documents]` indexes the manifest's (with
    tags: see `Tags.joint`), and `messages` int32 `[T]` the document's; empty where nobody asked for them.
    """

    index: int
    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    sources: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    messages: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def documents(self) -> list[Row]:
        """Each document as a row of its own."""
        borders = [0, *np.cumsum(self.lengths).tolist()]
        return [
            Row(
                index=self.index,
                ids=self.ids[start:stop],
                trained=self.trained[start:stop],
                lengths=np.array([stop - start], dtype=np.int32),
                weights=self.weights[start:stop],
                sources=self.sources[number : number + 1],
                messages=self.messages[start:stop],
            )
            for number, (start, stop) in enumerate(pairwise(borders))
        ]


class MicroBatch(TypedDict):
    """What one forward pass takes; B is 1 for packed rows, and K positions are trained."""

    input_ids: torch.Tensor
    """int64 `[B, L]`."""
    position_ids: torch.Tensor
    """int64 `[B, L]`, from 0 in every document."""
    offsets: tuple[int, ...]
    """Of the documents in the packed row; empty where every document has a row."""
    cu_seqlens: torch.Tensor
    """int32: the same numbers, for the device; longer where all packs are made alike, the last one repeated."""
    rows: torch.Tensor
    """int64 `[K]`: flat positions in `[B, L]` whose successor is a target."""
    targets: torch.Tensor
    """int64 `[K]`."""
    weights: torch.Tensor
    """float32 `[K]`."""
    sources: torch.Tensor
    """int64 `[K]`: of the target's document, by index into the manifest's list."""
    num_tokens: int
    """Without padding."""
    filled_up: bool
    """Whether this packed batch is as long as every other."""


class Layout(StrEnum):
    """How rows become the batches of forward passes."""

    SEGMENTS = "segments"
    """Packed rows stay packed; attention keeps their documents apart."""
    UNPACKED = "unpacked"
    """Packed rows are taken apart: a padded row for each document, similar lengths together."""
    PADDED = "padded"
    """The shards hold one document a row; as many rows as asked for are padded together."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How rows become optimizer steps. The last step of an epoch takes what is left.

    `group_rows` are the rows of each row group, in the set's order. Where there are more than GROUPS_A_WINDOW, the
    groups are shuffled first, and then the rows of each GROUPS_A_WINDOW of them: a group is decoded once an epoch.
    `shard_groups` are the row groups of each shard. Where there are more than SHARDS_A_WINDOW, shards are shuffled
    before that, and then the groups of each SHARDS_A_WINDOW of them: a shard is fetched once an epoch.
    """

    num_rows: int
    rows_per_step: int
    seed: int
    group_rows: tuple[int, ...] = ()
    shard_groups: tuple[int, ...] = ()
    _orders: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every row is taken once."""
        return -(-self.num_rows // self.rows_per_step)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """A permutation of all rows, int64 `[num_rows]`, the same on every machine."""
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = self.order_of(epoch)
        return self._orders[epoch]

    def order_of(self, epoch: int) -> npt.NDArray[np.int64]:
        """The same, computed anew."""
        generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)))
        rows = np.array(self.group_rows or (self.num_rows,), dtype=np.int64)
        if len(rows) <= GROUPS_A_WINDOW:
            return generator.permutation(self.num_rows)
        groups = generator.permutation(len(rows))
        if len(self.shard_groups) > SHARDS_A_WINDOW:
            shards = generator.permutation(len(self.shard_groups))
            sizes = np.array(self.shard_groups, dtype=np.int64)
            groups = _shuffled(sizes, shards, window=SHARDS_A_WINDOW, generator=generator)
        return _shuffled(rows, groups, window=GROUPS_A_WINDOW, generator=generator)

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """The rows of a step, counted from 0 over all epochs. int64 `[<= rows_per_step]`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.rows_per_step
        return self.order(epoch)[start : start + self.rows_per_step]

    def share(self, step: int, *, rank: int, size: int) -> npt.NDArray[np.int64]:
        """The rows of a step that one of `size` processes takes: disjoint, and together all. May be empty."""
        return self.rows(step)[rank::size]

    def num_steps(self, *, epochs: float, max_steps: int | None) -> int:
        """Steps of a run: at least one, whole epochs exactly."""
        steps = max(1, round(epochs * self.steps_per_epoch))
        return steps if max_steps is None else min(steps, max_steps)


def _shuffled(
    sizes: npt.NDArray[np.int64], order: npt.NDArray[np.int64], *, window: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """The items of parts of these sizes, part by part in `order`, shuffled within each `window` parts."""
    starts, ends = (np.cumsum(sizes) - sizes)[order], np.cumsum(sizes[order])
    items = np.repeat(starts - (ends - sizes[order]), sizes[order]) + np.arange(ends[-1])
    for part in np.split(items, ends[window - 1 : -1 : window]):
        generator.shuffle(part)
    return items


def collate_packed(rows: Sequence[Row]) -> MicroBatch:
    """Rows end to end in one row: documents are told apart by `offsets`, so nothing is padded.

    Raises:
        TrainError: `border-trained`: a document's first token is trained, so the document before would predict it.
    """
    lengths = _joined([row.lengths for row in rows]).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sizes = [len(row.ids) for row in rows]
    positions = np.arange(offsets[-1])
    positions -= offsets[:-1].repeat(lengths)
    return _batch(
        rows,
        ids=_joined([row.ids for row in rows]).astype(np.int64)[None],
        positions=positions[None],
        firsts=[sum(sizes[:number]) for number in range(len(rows))],
        offsets=tuple(offsets.tolist()),
    )


def collate_padded(rows: Sequence[Row], *, pad_id: int) -> MicroBatch:
    """Each row's single document right-padded to the longest. What is padding is decided by length, never by id.

    Raises:
        TrainError: `border-trained`, as above.
    """
    width = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row.ids)] = row.ids
    positions = np.tile(np.arange(width), (len(rows), 1))
    return _batch(rows, ids=ids, positions=positions, firsts=range(0, len(rows) * width, width), offsets=())


def micro_batches(rows: Sequence[Row], *, size: int, layout: Layout, pad_id: int) -> Iterator[MicroBatch]:
    """The forward passes of one optimizer step: `size` rows each, more passes where packs are taken apart."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        if layout is Layout.SEGMENTS:
            yield collate_packed(part)
        elif layout is Layout.PADDED:
            yield collate_padded(part, pad_id=pad_id)
        else:
            documents = [document for row in part for document in row.documents()]
            yield from (collate_padded(bucket, pad_id=pad_id) for bucket in buckets(documents))


def buckets(documents: Iterable[Row]) -> list[list[Row]]:
    """Documents of similar length together, longest first, so that less than half of a padded batch is padding."""
    groups: list[list[Row]] = []
    for document in sorted(documents, key=lambda row: -len(row.ids)):
        if groups and len(document.ids) >= _FIRST_BUCKET_SHARE * len(groups[-1][0].ids):
            groups[-1].append(document)
        else:
            groups.append([document])
    return groups


def _batch(
    rows: Sequence[Row],
    *,
    ids: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    firsts: Iterable[int],
    offsets: tuple[int, ...],
) -> MicroBatch:
    """The tensors of a batch; `firsts` says where in it each row's first token lies."""
    trained = [_trained_positions(row) for row in rows]
    # The shift: a token is predicted at the position before it, which is never another document's.
    before = [where + (first - 1) for where, first in zip(trained, firsts, strict=True)]
    pairs = list(zip(rows, trained, strict=True))
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        offsets=offsets,
        # By way of numpy: torch takes three times as long over a tuple.
        cu_seqlens=torch.from_numpy(np.array(offsets, np.int32)),
        rows=torch.from_numpy(_joined(before)),
        targets=torch.from_numpy(_joined([row.ids[where] for row, where in pairs]).astype(np.int64)),
        weights=torch.from_numpy(_joined([row.weights[where] for row, where in pairs])),
        sources=torch.from_numpy(_joined([_sources(row, where) for row, where in pairs])),
        num_tokens=sum(len(row.ids) for row in rows),
        filled_up=False,
    )


def _trained_positions(row: Row) -> npt.NDArray[np.int64]:
    """Where the row's targets are, not shifted. int64 `[K]`."""
    starts = row.lengths.cumsum() - row.lengths
    if row.trained[starts].any():
        raise TrainError(
            "a document's first token is marked as trained",
            code="border-trained",
            place=f"row {row.index}",
            hint="the shards are damaged: pack again",
        )
    return row.trained.nonzero()[0]


def _sources(row: Row, trained: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Each target's source, 0 where nobody asked. int64 `[K]`."""
    if not len(row.sources):
        return np.zeros(len(trained), np.int64)
    if (row.sources == row.sources[0]).all():
        return np.full(len(trained), row.sources[0], np.int64)
    counts = trained.searchsorted(row.lengths.cumsum())
    counts[1:] -= counts[:-1].copy()
    return row.sources.astype(np.int64).repeat(counts)


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The parts end to end; a single one is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
