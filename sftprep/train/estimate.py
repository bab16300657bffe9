"""What a run will take: memory, floating-point operations and time, from the first step's gradient and no update."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch

from sftprep.config.train import TrainConfig
from sftprep.shards.read import Scalars
from sftprep.train.loop import Feed, Trainee, accumulate, named_memory_failures
from sftprep.train.stream import Schedule
from sftprep.train.weighting import reweighted


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameters, and what attention costs: `attention_width` is layers · heads · head size."""

    body: int
    head: int
    trainable: int
    num_bytes: int
    attention_width: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of a whole run. Bytes are of one process; `peak_bytes` was measured, the optimizer's state added to it."""

    num_steps: int
    num_tokens: int
    num_trained: int
    flops: float
    seconds: float
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    peak_bytes: int

    def lines(self) -> list[str]:
        """For a terminal."""
        gib = 2**30
        return [
            f"{self.num_steps} steps, {self.num_tokens:,} tokens, {self.num_trained:,} of them trained",
            f"memory: weights {self.weight_bytes / gib:.2f} GiB, gradients {self.gradient_bytes / gib:.2f} GiB, "
            f"optimizer {self.optimizer_bytes / gib:.2f} GiB; at the most {self.peak_bytes / gib:.2f} GiB",
            f"work: {self.flops:.3g} floating-point operations (6 a weight and token, the head at trained tokens only)",
            f"time: about {self.seconds:,.0f} s, as fast as the first step here; nothing was changed or written",
        ]


def model_size(trainee: Trainee) -> ModelSize:
    """The size of a model that is not split."""
    model = trainee.model
    parameters = list(model.parameters())
    head = model.get_output_embeddings()
    num_head = 0 if head is None else head.weight.numel()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    # An embedding is looked up, which costs nothing; a tied one works as the head.
    looked_up = 0 if tied else model.get_input_embeddings().weight.numel()
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSize(
        body=sum(p.numel() for p in parameters) - num_head - looked_up,
        head=num_head,
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        num_bytes=sum(p.numel() * p.element_size() for p in parameters),
        attention_width=config.num_hidden_layers * config.num_attention_heads * size,
    )


def needed_flops(size: ModelSize, *, num_tokens: float, num_trained: float, sum_len2: float) -> float:
    """Of forward and backward passes in which every weight is trained, without recomputation.

    Attention takes half of its square, because it looks back only.
    """
    return 6.0 * (size.body * num_tokens + size.head * num_trained) + 6.0 * size.attention_width * sum_len2


def estimate(trainee: Trainee, feed: Feed, *, config: TrainConfig) -> Estimate:
    """The estimate of a run in one process; the model is as before, without gradients.

    Raises:
        TrainError: `out-of-memory`, and what reading rows raises.
    """
    size = model_size(trainee)
    numbers = feed.schedule.rows(0)
    rows = [reweighted(feed.reader.row(int(number)), config.loss) for number in numbers]
    weight_sum = sum(float(row.weights[row.trained].sum(dtype=np.float64)) for row in rows)
    began = time.perf_counter()
    with named_memory_failures("the first step"):
        accumulate(trainee, rows, weight_sum=weight_sum, step=0, config=config)
    seconds = time.perf_counter() - began
    peak = _peak_bytes(trainee.device)
    trainee.optimizer.zero_grad(set_to_none=True)
    first = _flops(size, feed.scalars, [numbers])
    taken = _taken(feed.schedule, feed.num_steps)
    flops = _flops(size, feed.scalars, taken)
    trainable = size.trainable * 4
    return Estimate(
        num_steps=feed.num_steps,
        num_tokens=sum(int(feed.scalars.num_tokens[part].sum()) for part in taken),
        num_trained=sum(int(feed.scalars.num_trained[part].sum()) for part in taken),
        flops=flops,
        seconds=seconds * flops / first,
        weight_bytes=size.num_bytes,
        gradient_bytes=trainable,
        optimizer_bytes=2 * trainable,
        peak_bytes=peak + 2 * trainable,
    )


def _taken(schedule: Schedule, num_steps: int) -> list[np.ndarray]:
    """The rows of a run: whole epochs, and the steps after them."""
    epochs, rest = divmod(num_steps, schedule.steps_per_epoch)
    return [np.arange(schedule.num_rows)] * epochs + [schedule.order(epochs)[: rest * schedule.rows_per_step]]


def _flops(size: ModelSize, scalars: Scalars, taken: list[np.ndarray]) -> float:
    return sum(
        needed_flops(
            size,
            num_tokens=float(scalars.num_tokens[part].sum()),
            num_trained=float(scalars.num_trained[part].sum()),
            sum_len2=float(scalars.sum_len2[part].sum()),
        )
        for part in taken
    )


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
