"""The optimizer steps: read rows, sum gradients over micro-batches, clip, step, and count what was trained."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from sftprep.config.train import TrainConfig
from sftprep.errors import TrainError
from sftprep.shards.manifest import Manifest
from sftprep.shards.read import Scalars
from sftprep.train.checkpoint import Position
from sftprep.train.distributed import ALONE, World, sync_gradients
from sftprep.train.forward import Head, to_device, token_loss
from sftprep.train.optim import clip_and_step, learning_rate, set_learning_rate
from sftprep.train.rows import RowReader
from sftprep.train.samples import ShownAnswer
from sftprep.train.seeds import dropout_seed
from sftprep.train.stream import Layout, MicroBatch, Row, Schedule, micro_batches
from sftprep.train.weighting import reweighted

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
    world: World = ALONE
    num_sources: int = 1


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
    """One line of metrics.jsonl, over all processes. `loss` is weighted, `nll` is nats a trained token; both are means.

    `skipped`: no trained token of the step has weight, so nothing was changed; `loss` and `nll` are then 0.
    `nll_by_source` and `trained_by_source` tell the trained tokens apart by the source that they came from.
    `eval_nll` is nats a trained token of the held-out set after the step, `eval_scores` and `eval_answers` are of the
    suites' sample, where they were measured.
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
    nll_by_source: dict[str, float]
    trained_by_source: dict[str, int]
    eval_nll: float | None = None
    eval_scores: dict[str, float] | None = None
    eval_answers: tuple[ShownAnswer, ...] | None = None


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
    position = start
    for step in range(start.step, feed.num_steps):
        began = time.perf_counter()
        rate = learning_rate(step, num_steps=feed.num_steps, config=config)
        set_learning_rate(trainee.optimizer, rate)
        sums, norm = _step(trainee, feed, step=step, config=config)
        position = _advance(position, feed, num_trained=sums.num_trained)
        nll, trained = _by_source(sums, feed.manifest)
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
            nll_by_source=nll,
            trained_by_source=trained,
        )
        yield record, position


def _by_source(sums: StepSums, manifest: Manifest) -> tuple[dict[str, float], dict[str, int]]:
    """Nats a trained token, and trained tokens, of every source that the step trained."""
    names = [source.name for source in manifest.sources] or ["all"]
    found = {name: (float(nll), int(count)) for name, nll, count in zip(names, *sums.by_source, strict=True) if count}
    return {name: nll / count for name, (nll, count) in found.items()}, {name: n for name, (_, n) in found.items()}


def accumulate(trainee: Trainee, rows: list[Row], *, weight_sum: float, step: int, config: TrainConfig) -> StepSums:
    """Add the gradient of the step's mean loss to the parameters; with a `weight_sum` of 0 only count.

    The mean is over all micro-batches of all processes, so how rows are cut into batches does not change it.
    """
    total = no_sums(trainee)
    batches = even_batches(trainee, rows, size=config.batch_size)
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
        total += StepSums(source_nll(trainee, batch, loss.nll), loss=float(loss.objective.detach()))
    return total


def even_batches(trainee: Trainee, rows: list[Row], *, size: int) -> list[MicroBatch]:
    """The forward passes of this process; empty ones at the end, so that all processes have equally many."""
    layout, pad_id = trainee.layout, trainee.pad_id
    batches = list(micro_batches(rows, size=size, layout=layout, pad_id=pad_id))
    missing = trainee.world.largest(len(batches)) - len(batches)
    two = np.full(2, pad_id, np.int32)
    nothing = Row(-1, two, np.zeros(2, bool), np.array([2], np.int32), np.zeros(2, np.float32))
    for batch in micro_batches([nothing] * missing, size=1, layout=layout, pad_id=pad_id):
        batch["num_tokens"] = 0
        batches.append(batch)
    return batches


def no_sums(trainee: Trainee) -> StepSums:
    """Where adding up begins."""
    return StepSums(np.zeros((2, trainee.num_sources)))


def source_nll(trainee: Trainee, batch: MicroBatch, nll: torch.Tensor) -> npt.NDArray[np.float64]:
    """The batch's losses by source, without counts. float64 `[2, sources]`."""
    sums = np.bincount(batch["sources"].numpy(), weights=nll.cpu().numpy(), minlength=trainee.num_sources)
    return np.stack([sums, np.zeros(len(sums))])


def _counted(trainee: Trainee, batch: MicroBatch) -> StepSums:
    counts = np.bincount(batch["sources"].numpy(), minlength=trainee.num_sources).astype(np.float64)
    return StepSums(
        np.stack([np.zeros(len(counts)), counts]),
        weight=float(batch["weights"].sum(dtype=torch.float64)),
        num_tokens=batch["num_tokens"],
    )


def _step(trainee: Trainee, feed: Feed, *, step: int, config: TrainConfig) -> tuple[StepSums, float]:
    world = trainee.world
    numbers = feed.schedule.rows(step)
    mine = feed.schedule.share(step, rank=world.rank, size=world.size)
    rows = [reweighted(feed.reader.row(int(number)), config.loss) for number in mine]
    _check_rows(rows, trainee)
    weight_sum = float(feed.scalars.weight_sum[numbers].sum())
    if config.loss != "token":
        weight_sum = world.sums([sum(float(row.weights[row.trained].sum(dtype=np.float64)) for row in rows)])[0]
    place = f"step {step + 1}, rows {', '.join(map(str, numbers))}"
    with named_memory_failures(place):
        sums = accumulate(trainee, rows, weight_sum=weight_sum, step=step, config=config).over(world)
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
    size = trainee.model.get_input_embeddings().weight.shape[0]
    for row in rows:
        if len(row.sources) and not 0 <= int(row.sources.min()) <= int(row.sources.max()) < trainee.num_sources:
            raise TrainError("a document of no source", code="source-unknown", place=f"row {row.index}")
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
