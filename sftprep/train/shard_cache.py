"""The shards of a run that lie in an object store: copied ahead of the steps that need them."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from sftprep.config.train import TrainConfig
from sftprep.errors import SftprepError
from sftprep.shards import cache
from sftprep.shards.cache import ShardCache
from sftprep.shards.read import ShardSet
from sftprep.train.stream import Schedule


def open_set(place: Path, config: TrainConfig) -> ShardSet:
    """The verified shard set at a path or a URL; shards of a URL are verified when they are copied.

    Raises:
        as `shards.cache.open_set`, and ShardError where a local set's bytes are not the manifest's.
    """
    shards = cache.open_set(place, cache_dir=config.cache_dir, cache_gb=config.cache_gb)
    if shards.copies is None:
        shards.verify()
    return shards


class ReadAhead:
    """A context in which a thread copies the shards of the steps to come, in their order; nothing for a local set."""

    def __init__(self, shards: ShardSet, schedule: Schedule, *, step: int) -> None:
        self._cache = shards.copies if isinstance(shards.copies, ShardCache) else None
        self._schedule = schedule
        self._orders: dict[int, npt.NDArray[np.int64]] = {}
        # Looking ahead sorts all rows that are left: not oftener than shards come and go.
        self._stride = max(1, schedule.steps_per_epoch // (8 * max(1, len(shards.manifest.shards))))
        self._ends = np.cumsum([shard.num_rows for shard in shards.manifest.shards])
        self._step = step
        self._stopping = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._copy, name="shards-ahead", daemon=True)

    def __enter__(self) -> Self:
        if self._cache is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._news:
            self._stopping = True
            self._news.notify()

    def at(self, step: int) -> None:
        """Steps before this one are done."""
        if self._cache is None or step // self._stride == self._step // self._stride:
            return
        with self._news:
            self._step = step
            self._news.notify()

    def upcoming(self, step: int) -> list[int]:
        """The shards by when a step from `step` on needs a row of them, those of the next epoch behind this one's."""
        epoch, position = divmod(step, self._schedule.steps_per_epoch)
        rest = self._order(epoch)[position * self._schedule.rows_per_step :]
        order = np.concatenate([rest, self._order(epoch + 1)])
        numbers, first = np.unique(np.searchsorted(self._ends, order, side="right"), return_index=True)
        return [int(number) for number in numbers[np.argsort(first)]]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """As the schedule's, which keeps one epoch only, for the steps."""
        if epoch not in self._orders:
            self._orders = {kept: order for kept, order in self._orders.items() if abs(kept - epoch) == 1}
            self._orders[epoch] = self._schedule.order_of(epoch)
        return self._orders[epoch]

    def _copy(self) -> None:
        cache = self._cache
        while cache is not None and not self._stopping:
            with self._news:
                step = self._step
            shard = cache.next_missing(self.upcoming(step))
            # What goes wrong here goes wrong again, and is said, where the rows are read.
            with suppress(SftprepError):
                if shard is not None:
                    cache.fetch(shard)
                    continue
            with self._news:
                if self._step == step and not self._stopping:
                    self._news.wait()
