"""What a run will take: memory, operations and time, from the gradient of its largest step and no update."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.console import Console

from sftprep.config.train import TrainConfig
from sftprep.reports.console import terminal_console
from sftprep.reports.wording import counted, sized
from sftprep.train.device import named_memory_failures, peak_bytes
from sftprep.train.distributed import ALONE
from sftprep.train.flops import cost_of, needed_flops
from sftprep.train.heldout import open_held_out
from sftprep.train.loop import Feed, Trainee, accumulate, local_batches
from sftprep.train.setup import build, open_all
from sftprep.train.stream import Schedule
from sftprep.train.weighting import reweighted


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of a whole run. Bytes are of one process; `peak_bytes` was measured, the optimizer's state added to it.

    `flops` is None where they cannot be counted (fused experts); time then goes by tokens.
    """

    num_steps: int
    num_tokens: int
    num_trained: int
    flops: float | None
    seconds: float
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    peak_bytes: int

    def lines(self) -> list[str]:
        """For a terminal."""
        work = "not counted: this model's matrices are not plain linear layers"
        if self.flops is not None:
            count = f"{self.flops:.3g} floating-point operations"
            work = f"{count} (6 a weight and token, 4 a frozen one; the head at trained tokens only)"
        return [
            f"{counted(self.num_steps, 'step')}, {counted(self.num_tokens, 'token')}, "
            f"{self.num_trained:,} of them trained",
            f"memory: weights {sized(self.weight_bytes)}, gradients {sized(self.gradient_bytes)}, "
            f"optimizer {sized(self.optimizer_bytes)}; at the most {sized(self.peak_bytes)}",
            f"work: {work}",
            f"time: about {self.seconds:,.0f} s, as fast as the largest step here; nothing was changed or written",
        ]


def rehearse(config: TrainConfig, *, console: Console | None = None) -> Estimate:
    """Everything that `train` does before its first step, and the largest step's gradient; nothing is written.

    Raises:
        UsageError, ModelFilesError, ShardError, TrainError.
    """
    console = console or terminal_console(stderr=True)
    shards, where = open_all(config, world=ALONE, console=console)
    open_held_out(config, trained=shards.manifest)
    trainee, feed = build(config, shards=shards, where=where, resumed=None)
    found = estimate(trainee, feed, config=config)
    for line in found.lines():
        console.print(line, soft_wrap=True)
    return found


def estimate(trainee: Trainee, feed: Feed, *, config: TrainConfig) -> Estimate:
    """The estimate of a run in one process; the model is as before, without gradients.

    The memory is that of the step with the longest forward pass: what a run cannot hold it would meet there.

    Raises:
        TrainError: `out-of-memory`, and what reading rows raises.
    """
    parameters = list(trainee.model.parameters())
    step = _largest_step(feed, batch_size=config.batch_size)
    numbers = feed.schedule.rows(step)
    rows = [reweighted(feed.reader.row(int(number)), config.loss) for number in numbers]
    weight_sum = sum(float(row.weights[row.trained].sum(dtype=np.float64)) for row in rows)
    began = time.perf_counter()
    with named_memory_failures(f"step {step + 1}, the largest"):
        batches = local_batches(trainee, rows, size=config.batch_size)
        accumulate(trainee, batches, weight_sum=weight_sum, step=step, config=config)
    seconds = time.perf_counter() - began
    peak = peak_bytes(trainee.device)
    trainee.optimizer.zero_grad(set_to_none=True)
    taken = _taken(feed.schedule, feed.num_steps)
    num_tokens = sum(int(feed.scalars.num_tokens[part].sum()) for part in taken)
    flops, cost = None, cost_of(trainee.model)
    ratio = num_tokens / int(feed.scalars.num_tokens[numbers].sum())
    if cost is not None:
        flops = sum(needed_flops(cost, feed.scalars, part) for part in taken)
        ratio = flops / needed_flops(cost, feed.scalars, numbers)
    trainable = sum(p.numel() for p in parameters if p.requires_grad) * 4
    return Estimate(
        num_steps=feed.num_steps,
        num_tokens=num_tokens,
        num_trained=sum(int(feed.scalars.num_trained[part].sum()) for part in taken),
        flops=flops,
        seconds=seconds * ratio,
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
        gradient_bytes=trainable,
        optimizer_bytes=2 * trainable,
        peak_bytes=peak + 2 * trainable,
    )


def _largest_step(feed: Feed, *, batch_size: int) -> int:
    """The step, of the first epoch's, with the forward pass over the most tokens."""
    schedule = feed.schedule
    order = schedule.order(0)[: feed.num_steps * schedule.rows_per_step]
    passes = np.add.reduceat(feed.scalars.num_tokens[order].astype(np.int64), np.arange(0, len(order), batch_size))
    return int(passes.argmax()) * batch_size // schedule.rows_per_step


def _taken(schedule: Schedule, num_steps: int) -> list[npt.NDArray[np.int64]]:
    """The rows of a run: whole epochs, and the steps after them."""
    epochs, rest = divmod(num_steps, schedule.steps_per_epoch)
    return [np.arange(schedule.num_rows)] * epochs + [schedule.order(epochs)[: rest * schedule.rows_per_step]]
