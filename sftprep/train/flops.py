"""How many floating-point operations a step needs: what a model must compute, not what an implementation does.

Padding, recomputed activations and logits that nobody trains are not needed, and do not count. The
count leaves out element-wise work, as is usual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from sftprep.shards.read import Scalars
from sftprep.train.device import peak_bytes

_PEAKS: Final = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
}
"""Dense bfloat16 operations a second by a part of the device's name, as their maker states; longer names first."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a token costs: weights of matrices by how they are trained, and the width of attention.

    `attention` is layers x heads x head dimension.
    """

    trained: int
    frozen: int
    head: int
    head_trained: bool
    attention: int

    def step(self, *, num_tokens: int, num_trained: int, sum_len2: int) -> float:
        """Forward and backward over documents whose squared lengths sum to `sum_len2`.

        A trained matrix takes three products, a frozen one two; causal attention half of the full square.
        """
        body = (6 * self.trained + 4 * self.frozen) * num_tokens
        head = (6 if self.head_trained else 4) * self.head * num_trained
        return float(body + head + 6 * self.attention * sum_len2)


def cost_of(model: PreTrainedModel) -> Cost | None:
    """The cost of a model; None where its matrices are not plain linear layers, as in fused experts."""
    linear = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not linear]
    config = model.config.get_text_config()
    if not isinstance(linear, torch.nn.Linear) or hasattr(config, "num_experts_per_tok"):
        return None
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Cost(
        trained=sum(m.weight.numel() for m in layers if m.weight.requires_grad),
        frozen=sum(m.weight.numel() for m in layers if not m.weight.requires_grad),
        head=linear.weight.numel(),
        head_trained=linear.weight.requires_grad,
        attention=config.num_hidden_layers * config.num_attention_heads * width,
    )


def needed_flops(cost: Cost, scalars: Scalars, rows: npt.NDArray[np.int64]) -> float:
    """The operations of a pass over these rows."""
    return cost.step(
        num_tokens=int(scalars.num_tokens[rows].sum()),
        num_trained=int(scalars.num_trained[rows].sum()),
        sum_len2=int(scalars.sum_len2[rows].sum()),
    )


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 operations that the device can do in a second; None where that is not known, as of CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


@dataclass(frozen=True, slots=True)
class Reading:
    """How fast a step was. `flops` are needed operations, `mfu` their share of what the devices could do meanwhile."""

    seconds: float
    flops: float | None
    mfu: float | None
    peak_bytes: int


class Meter:
    """Reads steps of a model that `size` devices of one kind train."""

    def __init__(self, model: PreTrainedModel, *, device: torch.device, size: int) -> None:
        self._cost = cost_of(model)
        self._device = device
        self._peak, self._size = peak_flops(device), size

    def reading(self, scalars: Scalars, rows: npt.NDArray[np.int64], *, seconds: float) -> Reading:
        """Of a step over these rows that took so long."""
        flops = None if self._cost is None else needed_flops(self._cost, scalars, rows)
        mfu = None if flops is None or self._peak is None else flops / (self._peak * self._size * seconds)
        return Reading(seconds, flops=flops, mfu=mfu, peak_bytes=peak_bytes(self._device))
