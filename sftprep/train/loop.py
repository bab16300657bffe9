"""The optimizer steps: read rows, sum gradients over micro-batches, clip, step, and count what was trained."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch
from transformers import PreTrainedModel

from sftprep.config.train import TrainConfig
from sftprep.errors import TrainError
from sftprep.shards.manifest import Manifest
from sftprep.shards.read import Scalars
from sftprep.train.checkpoint import Position
from sftprep.train.forward import Head, to_device, token_loss
from sftprep.train.optim import learning_rate, set_learning_rate
from sftprep.train.rows import RowReader
from sftprep.train.stream import Layout, Row, Schedule, micro_batches

_WEIGHT_TOLERANCE: Final = 1e-4
"""Relative: the shards' sums are of float32 weights, in another order."""
_OUT_OF_MEMORY: Final = ("can't allocate memory", "out of memory", "not enough memory")


@dataclass(frozen=True, slots=True)
class Trainee:
    """The model, and how its batches are made."""

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    head: Head | None
    layout: Layout
    device: torch.device
    dtype: torch.dtype
    pad_id: int


@dataclass(frozen=True, slots=True)
class Feed:
    """The rows of the run: read by number, ordered by the schedule, with their small columns."""

    reader: RowReader
    schedule: Schedule
    scalars: Scalars
    manifest: Manifest
    num_steps: int


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One line of metrics.jsonl. `loss` is weighted, `nll` is nats a trained token; both are means.

    `skipped`: no trained token of the step has weight, so nothing was changed; `loss` and `nll` are then 0.
    """

    step: int
    epoch: float
    loss: float
    nll: float
    lr: float
    grad_norm: float
    num_tokens: int
    num_trained: int
    seconds: float
    skipped: bool


@dataclass(frozen=True, slots=True)
class _Sums:
    """Over the micro-batches of a step; `loss` is already a mean, `nll` is not."""

    loss: float = 0.0
    nll: float = 0.0
    weight: float = 0.0
    num_tokens: int = 0
    num_trained: int = 0

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            loss=self.loss + other.loss,
            nll=self.nll + other.nll,
            weight=self.weight + other.weight,
            num_tokens=self.num_tokens + other.num_tokens,
            num_trained=self.num_trained + other.num_trained,
        )


def run_steps(
    trainee: Trainee, feed: Feed, *, start: Position, config: TrainConfig
) -> Iterator[tuple[StepRecord, Position]]:
    """Each step's record, and the position after it.

    Raises:
        TrainError: `epoch-count`, `weight-sum`, `id-out-of-range`, `not-finite`, `no-gradient`, `out-of-memory`.
    """
    position = start
    for step in range(start.step, feed.num_steps):
        began = time.perf_counter()
        rate = learning_rate(step, num_steps=feed.num_steps, config=config)
        set_learning_rate(trainee.optimizer, rate)
        sums, norm = _step(trainee, feed, step=step, config=config)
        position = _advance(position, feed, num_trained=sums.num_trained)
        record = StepRecord(
            step=step + 1,
            epoch=(step + 1) / feed.schedule.steps_per_epoch,
            loss=sums.loss,
            nll=sums.nll / max(1, sums.num_trained),
            lr=rate,
            grad_norm=norm,
            num_tokens=sums.num_tokens,
            num_trained=sums.num_trained,
            seconds=time.perf_counter() - began,
            skipped=sums.weight == 0,
        )
        yield record, position


def accumulate(trainee: Trainee, rows: list[Row], *, weight_sum: float, step: int, config: TrainConfig) -> _Sums:
    """Add the gradient of the step's mean loss to the parameters; with a `weight_sum` of 0 only count.

    The mean is over all micro-batches of the step, so how rows are cut into batches does not change it.
    """
    total = _Sums()
    batches = micro_batches(rows, size=config.batch_size, layout=trainee.layout, pad_id=trainee.pad_id)
    for number, batch in enumerate(batches):
        counted = _Sums(
            weight=float(batch["weights"].sum(dtype=torch.float64)),
            num_tokens=batch["num_tokens"],
            num_trained=len(batch["targets"]),
        )
        total += counted
        if weight_sum == 0 or not len(batch["targets"]):
            continue
        # Dropout is a function of seed, step and batch: a resumed run draws the same without any stored state.
        torch.manual_seed(hash((config.seed, step, number)) & 0x7FFF_FFFF_FFFF_FFFF)
        with torch.autocast(trainee.device.type, dtype=torch.bfloat16, enabled=trainee.dtype is torch.bfloat16):
            moved = to_device(batch, trainee.device)
            loss = token_loss(trainee.model, moved, head=trainee.head, normaliser=weight_sum)
        torch.autograd.backward(loss.objective)
        total += _Sums(loss=float(loss.objective.detach()), nll=float(loss.nll.sum()))
    return total


def _step(trainee: Trainee, feed: Feed, *, step: int, config: TrainConfig) -> tuple[_Sums, float]:
    numbers = feed.schedule.rows(step)
    weight_sum = float(feed.scalars.weight_sum[numbers].sum())
    rows = [feed.reader.row(int(number)) for number in numbers]
    _check_ids(rows, trainee.model)
    place = f"step {step + 1}, rows {', '.join(map(str, numbers))}"
    with named_memory_failures(place):
        sums = accumulate(trainee, rows, weight_sum=weight_sum, step=step, config=config)
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
        norm = _update(trainee, max_norm=config.max_grad_norm, place=place, loss=sums.loss)
    return sums, norm


def _update(trainee: Trainee, *, max_norm: float, place: str, loss: float) -> float:
    """Clip, step, and forget the gradient; its norm before clipping."""
    norm = float(torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), max_norm))
    if not math.isfinite(norm) or not math.isfinite(loss):
        raise TrainError(
            f"the loss is {loss}, the gradient norm {norm}",
            code="not-finite",
            place=place,
            hint="lower --lr, lengthen --warmup, or look at these rows with sftprep audit --row",
        )
    if norm == 0:
        raise TrainError(
            "the gradient is zero although tokens are trained",
            code="no-gradient",
            place=place,
            hint="are all weights frozen?",
        )
    trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)
    return norm


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


def _check_ids(rows: list[Row], model: PreTrainedModel) -> None:
    size = model.get_input_embeddings().weight.shape[0]
    for row in rows:
        if int(row.ids.max()) >= size or int(row.ids.min()) < 0:
            raise TrainError(
                f"token id {int(row.ids.max())} has no embedding: the model has {size}",
                code="id-out-of-range",
                place=f"row {row.index}",
                hint="the model's vocabulary is smaller than the tokenizer's",
            )


@contextmanager
def named_memory_failures(place: str) -> Iterator[None]:
    """Running out of memory becomes a TrainError that says what to turn."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in _OUT_OF_MEMORY):
            raise
        raise TrainError(
            "the device has not enough memory for this step",
            code="out-of-memory",
            place=place,
            hint="lower --batch-size and raise --grad-accum, add --gradient-checkpointing, or pack with a smaller "
            "--max-length; --dtype bfloat16 halves what activations take",
        ) from error
