"""Which rows a step takes, and what they become: tensors with labels shifted, here and nowhere else.

The order of rows is a pure function of seed and epoch, and a step's rows of its number, so a resumed run continues
where it stopped without reading what it skips.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch

from sftprep.data import IGNORE_INDEX
from sftprep.errors import TrainError

_FIRST_BUCKET_SHARE = 0.5
"""Rows that are shorter than this share of a batch's longest go into another batch: less than half is padding."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a shard: `ids` int32 `[T]`, `trained` bool `[T]` (not shifted), `lengths` int32 `[documents]`.

    `weights` is float32 `[T]`, 1 where the shards have none. `sources` int32 `[documents]` indexes the manifest's, and
    `messages` int32 `[T]` the document's; empty where nobody asked for them.
    """

    index: int
    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    sources: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    messages: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def source_of_each(self) -> npt.NDArray[np.int64]:
        """Each token's source, 0 where nobody asked. int64 `[T]`."""
        sources = self.sources if len(self.sources) else np.zeros(len(self.lengths), np.int32)
        return np.repeat(sources.astype(np.int64), self.lengths)

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
    """How rows become optimizer steps. The last step of an epoch takes what is left."""

    num_rows: int
    rows_per_step: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every row is taken once."""
        return -(-self.num_rows // self.rows_per_step)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """A permutation of all rows, int64 `[num_rows]`, the same on every machine."""
        return _order(self.num_rows, seed=self.seed, epoch=epoch)

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


@lru_cache(maxsize=2)
def _order(num_rows: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))
    return generator.permutation(num_rows)


def shifted_labels(row: Row) -> npt.NDArray[np.int64]:
    """What each position must predict: the next token where it is trained, else `IGNORE_INDEX`. int64 `[T]`.

    Raises:
        TrainError: `border-trained`: a document's first token is trained, so the document before would predict it.
    """
    starts = np.concatenate([[0], np.cumsum(row.lengths)[:-1]]).astype(np.int64)
    if row.trained[starts].any():
        raise TrainError(
            "a document's first token is marked as trained",
            code="border-trained",
            place=f"row {row.index}",
            hint="the shards are damaged: pack again",
        )
    labels = np.where(row.trained, row.ids, IGNORE_INDEX).astype(np.int64)
    return np.append(labels[1:], IGNORE_INDEX)


def collate_packed(rows: Sequence[Row]) -> MicroBatch:
    """Rows end to end in one row: documents are told apart by `offsets`, so nothing is padded."""
    lengths = np.concatenate([row.lengths for row in rows]).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = np.concatenate([shifted_labels(row) for row in rows])
    ids = np.concatenate([row.ids for row in rows]).astype(np.int64)
    weights = np.concatenate([row.weights for row in rows])
    positions = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)
    return _batch(
        [ids, positions, labels, np.append(weights[1:], 0.0), np.concatenate([row.source_of_each for row in rows])],
        shape=(1, len(ids)),
        offsets=tuple(offsets.tolist()),
        num_tokens=len(ids),
    )


def collate_padded(rows: Sequence[Row], *, pad_id: int) -> MicroBatch:
    """Each row's single document right-padded to the longest. What is padding is decided by length, never by id."""
    width = max(len(row.ids) for row in rows)

    def grid(values: Iterable[npt.NDArray[np.generic]], fill: float, dtype: type) -> npt.NDArray[np.generic]:
        filled: npt.NDArray[np.generic] = np.full((len(rows), width), fill, dtype=dtype)
        for line, value in zip(filled, values, strict=True):
            line[: len(value)] = value
        return filled.reshape(-1)

    return _batch(
        [
            grid((row.ids for row in rows), pad_id, np.int64),
            np.tile(np.arange(width), len(rows)),
            grid((shifted_labels(row) for row in rows), IGNORE_INDEX, np.int64),
            grid((np.append(row.weights[1:], 0.0) for row in rows), 0.0, np.float32),
            grid((row.source_of_each for row in rows), 0, np.int64),
        ],
        shape=(len(rows), width),
        offsets=(),
        num_tokens=sum(len(row.ids) for row in rows),
    )


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
    columns: Sequence[npt.NDArray[np.generic]], *, shape: tuple[int, int], offsets: tuple[int, ...], num_tokens: int
) -> MicroBatch:
    """The tensors of flat columns: ids, positions, shifted labels, weights shifted alike, and sources."""
    ids, positions, labels, weights, sources = columns
    rows = np.flatnonzero(labels != IGNORE_INDEX)
    return MicroBatch(
        input_ids=torch.from_numpy(ids.reshape(shape)),
        position_ids=torch.from_numpy(positions.reshape(shape)),
        offsets=offsets,
        rows=torch.from_numpy(rows),
        targets=torch.from_numpy(labels[rows]),
        weights=torch.from_numpy(weights[rows].astype(np.float32)),
        sources=torch.from_numpy(sources[rows]),
        num_tokens=num_tokens,
    )
