"""The optimizer steps: read rows, sum gradients over micro-batches, clip, step, and count what was trained."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from sftprep.config.train import TrainConfig
from sftprep.errors import TrainError
from sftprep.shards.manifest import Manifest
from sftprep.shards.read import Scalars
from sftprep.train.ahead import ahead
from sftprep.train.checkpoint import Position
from sftprep.train.device import named_memory_failures
from sftprep.train.distributed import ALONE, World, sync_gradients
from sftprep.train.filling import filled_up
from sftprep.train.flops import Meter, Reading
from sftprep.train.forward import Head, pinned, to_device, token_loss
from sftprep.train.loss import TokenLoss
from sftprep.train.optim import ClippingAdamW, clip_and_step, learning_rate, set_learning_rate
from sftprep.train.record import StepRecord
from sftprep.train.rows import RowReader
from sftprep.train.seeds import dropout_seed
from sftprep.train.stream import Layout, MicroBatch, Row, Schedule, micro_batches
from sftprep.train.tags import told_apart
from sftprep.train.weighting import reweighted

_WEIGHT_TOLERANCE: Final = 1e-4
"""Relative: the shards' sums are of float32 weights, in another order."""


@dataclass(frozen=True, slots=True)
class Trainee:
    """The model, and how its batches are made."""

    model: PreTrainedModel
    optimizer: ClippingAdamW
    head: Head | None
    layout: Layout
    device: torch.device
    dtype: torch.dtype
    pad_id: int
    world: World = ALONE
    num_sources: int = 1
    pack_length: int = 0
    """Tokens that every packed batch is filled up to, so that compiled layers see one shape; 0 fills nothing up."""


@dataclass(frozen=True, slots=True)
class Feed:
    """The rows of the run: read by number, ordered by the schedule, with their small columns."""

    reader: RowReader
    schedule: Schedule
    scalars: Scalars
    manifest: Manifest
    num_steps: int


@dataclass(frozen=True, slots=True)
class StepSums:
    """Over micro-batches: `loss` is already a mean, `nll` is not. `by_source` float64 `[2, sources]`: nll, targets."""

    by_source: npt.NDArray[np.float64]
    loss: float = 0.0
    weight: float = 0.0
    num_tokens: int = 0

    @property
    def nll(self) -> float:
        """Nats of all trained tokens."""
        return float(self.by_source[0].sum())

    @property
    def num_trained(self) -> int:
        """Trained tokens."""
        return int(self.by_source[1].sum())

    def __add__(self, other: StepSums) -> StepSums:
        return StepSums(
            by_source=self.by_source + other.by_source,
            loss=self.loss + other.loss,
            weight=self.weight + other.weight,
            num_tokens=self.num_tokens + other.num_tokens,
        )

    def over(self, world: World) -> StepSums:
        """Summed over all processes."""
        flat = world.sums([self.loss, self.weight, self.num_tokens, *self.by_source.ravel().tolist()])
        by_source = np.array(flat[3:]).reshape(self.by_source.shape)
        return StepSums(by_source, loss=flat[0], weight=flat[1], num_tokens=int(flat[2]))


def run_steps(
    trainee: Trainee, feed: Feed, *, start: Position, config: TrainConfig
) -> Iterator[tuple[StepRecord, Position]]:
    """Each step's record, and the position after it.

    Raises:
        TrainError: `epoch-count`, `weight-sum`, `id-out-of-range`, `not-finite`, `no-gradient`, `out-of-memory`.
    """
    position, meter = start, Meter(trainee.model, device=trainee.device, size=trainee.world.size)
    steps = range(start.step, feed.num_steps)
    with closing(ahead(partial(_batches_of, trainee, feed, config=config), steps)) as made:
        for step in steps:
            began = time.perf_counter()
            rate = learning_rate(step, num_steps=feed.num_steps, config=config)
            set_learning_rate(trainee.optimizer, rate)
            sums, norm = _step(trainee, feed, batches=next(made), step=step, config=config)
            position = _advance(position, feed, num_trained=sums.num_trained)
            seconds = time.perf_counter() - began
            reading = meter.reading(feed.scalars, feed.schedule.rows(step), seconds=seconds)
            yield _record(sums, feed, step=step, measured=(rate, norm, reading)), position


def _record(sums: StepSums, feed: Feed, *, step: int, measured: tuple[float, float, Reading]) -> StepRecord:
    """A step's line; `measured` are the learning rate, the gradient's norm, and the meter's reading."""
    rate, norm, reading = measured
    return StepRecord(
        step=step + 1,
        epoch=(step + 1) / feed.schedule.steps_per_epoch,
        loss=sums.loss,
        nll=sums.nll / max(1, sums.num_trained),
        lr=rate,
        grad_norm=norm,
        num_tokens=sums.num_tokens,
        num_trained=sums.num_trained,
        seconds=reading.seconds,
        skipped=sums.weight == 0,
        **told_apart(sums.by_source, feed.manifest, feed.reader.tags),
        flops=reading.flops,
        mfu=reading.mfu,
        peak_bytes=reading.peak_bytes,
    )


def accumulate(
    trainee: Trainee, batches: list[MicroBatch], *, weight_sum: float, step: int, config: TrainConfig
) -> StepSums:
    """Add the gradient of the step's mean loss to the parameters; with a `weight_sum` of 0 only count.

    The mean is over all micro-batches of all processes, so how rows are cut into batches does not change it.
    """
    batches = even_batches(trainee, batches)
    total, done = no_sums(trainee), []
    for number, batch in enumerate(batches):
        total += _counted(trainee, batch)
        if weight_sum == 0 or not (len(batch["targets"]) or trainee.world.size > 1):
            continue
        sync_gradients(trainee.model, number == len(batches) - 1)
        # Dropout is a function of seed, step and batch: a resumed run draws the same without any stored state.
        slot = number * trainee.world.size + trainee.world.rank
        torch.manual_seed(dropout_seed(config.seed, step=step, slot=slot))
        with torch.autocast(trainee.device.type, dtype=torch.bfloat16, enabled=trainee.dtype is torch.bfloat16):
            moved = to_device(batch, trainee.device)
            loss = token_loss(trainee.model, moved, head=trainee.head, normaliser=weight_sum)
        torch.autograd.backward(loss.objective)
        done.append((batch, TokenLoss(loss.objective.detach(), loss.nll)))
    # Only now are numbers asked for: a GPU would stand still after each micro-batch to answer.
    return total + _losses(trainee, done) if done else total


def _losses(trainee: Trainee, done: list[tuple[MicroBatch, TokenLoss]]) -> StepSums:
    """What the batches lost, without counts."""
    nll = torch.cat([loss.nll for _, loss in done]).double().cpu().numpy()
    sources = torch.cat([batch["sources"] for batch, _ in done]).numpy()
    sums = np.bincount(sources, weights=nll, minlength=trainee.num_sources)
    loss = float(torch.stack([loss.objective for _, loss in done]).double().sum())
    return StepSums(np.stack([sums, np.zeros(len(sums))]), loss=loss)


def local_batches(trainee: Trainee, rows: list[Row], *, size: int) -> list[MicroBatch]:
    """The forward passes of this process, `size` rows each."""
    batches = micro_batches(rows, size=size, layout=trainee.layout, pad_id=trainee.pad_id)
    if not trainee.pack_length:
        return list(batches)
    return [filled_up(batch, pad_id=trainee.pad_id, length=trainee.pack_length) for batch in batches]


def even_batches(trainee: Trainee, batches: list[MicroBatch]) -> list[MicroBatch]:
    """The same, and empty ones at the end, so that all processes have equally many."""
    missing = trainee.world.largest(len(batches)) - len(batches)
    two = np.full(2, trainee.pad_id, np.int32)
    nothing = Row(-1, two, np.zeros(2, bool), np.array([2], np.int32), np.zeros(2, np.float32))
    empty = local_batches(trainee, [nothing] * missing, size=1)
    for batch in empty:
        batch["num_tokens"] = 0
    return batches + empty


def no_sums(trainee: Trainee) -> StepSums:
    """Where adding up begins."""
    return StepSums(np.zeros((2, trainee.num_sources)))


def _counted(trainee: Trainee, batch: MicroBatch) -> StepSums:
    counts = np.bincount(batch["sources"].numpy(), minlength=trainee.num_sources).astype(np.float64)
    return StepSums(
        np.stack([np.zeros(len(counts)), counts]),
        weight=float(batch["weights"].sum(dtype=torch.float64)),
        num_tokens=batch["num_tokens"],
    )


def _batches_of(trainee: Trainee, feed: Feed, step: int, *, config: TrainConfig) -> list[MicroBatch]:
    """This process's batches of a step, on the CPU."""
    mine = feed.schedule.share(step, rank=trainee.world.rank, size=trainee.world.size)
    rows = [reweighted(feed.reader.row(int(number)), config.loss) for number in mine]
    _check_rows(rows, trainee)
    batches = local_batches(trainee, rows, size=config.batch_size)
    return [pinned(batch) for batch in batches] if trainee.device.type == "cuda" else batches


def _step(
    trainee: Trainee, feed: Feed, *, batches: list[MicroBatch], step: int, config: TrainConfig
) -> tuple[StepSums, float]:
    world, numbers = trainee.world, feed.schedule.rows(step)
    weight_sum = float(feed.scalars.weight_sum[numbers].sum())
    if config.loss != "token":
        weight_sum = world.sums([sum(float(batch["weights"].sum(dtype=torch.float64)) for batch in batches)])[0]
    place = f"step {step + 1}, rows {', '.join(map(str, numbers))}"
    with named_memory_failures(place):
        sums = accumulate(trainee, batches, weight_sum=weight_sum, step=step, config=config).over(world)
    if not math.isclose(sums.weight, weight_sum, rel_tol=_WEIGHT_TOLERANCE, abs_tol=1e-9):
        raise TrainError(
            f"the trained tokens weigh {sums.weight:g}, the shards say {weight_sum:g}",
            code="weight-sum",
            place=place,
            hint="the shards are damaged: pack again",
        )
    if weight_sum == 0:
        return sums, 0.0
    with named_memory_failures(place):
        norm = clip_and_step(trainee.optimizer, max_norm=config.max_grad_norm, place=place, loss=sums.loss)
    return sums, norm


def _advance(position: Position, feed: Feed, *, num_trained: int) -> Position:
    """The position after a step; at an epoch's end every trained token of the set has been seen exactly once."""
    step, seen = position.step + 1, position.epoch_trained + num_trained
    if step % feed.schedule.steps_per_epoch:
        return replace(position, step=step, epoch_trained=seen)
    wanted = feed.manifest.counts.num_trained
    if seen != wanted:
        raise TrainError(
            f"the epoch trained {seen} tokens, the manifest says {wanted}",
            code="epoch-count",
            hint="the shards are not what the manifest describes: pack again",
        )
    return replace(position, step=step, epoch_trained=0)


def _check_rows(rows: list[Row], trainee: Trainee) -> None:
    check_ids(rows, trainee.model)
    for row in rows:
        if len(row.sources) and not 0 <= int(row.sources.min()) <= int(row.sources.max()) < trainee.num_sources:
            raise TrainError("a document of no source", code="source-unknown", place=f"row {row.index}")


def check_ids(rows: list[Row], model: PreTrainedModel) -> None:
    """Every token has an embedding. TrainError `id-out-of-range`."""
    size = model.get_input_embeddings().weight.shape[0]
    for row in rows:
        if int(row.ids.max()) >= size or int(row.ids.min()) < 0:
            raise TrainError(
                f"token id {int(row.ids.max())} has no embedding: the model has {size}",
                code="id-out-of-range",
                place=f"row {row.index}",
                hint="the model's vocabulary is smaller than the tokenizer's",
            )
