"""Chooses where to compute, and in which type."""

from __future__ import annotations

import torch

from sftprep.config.train import TrainConfig
from sftprep.errors import UsageError


def choose_device(config: TrainConfig) -> tuple[torch.device, torch.dtype]:
    """Where to train, and the compute type.

    Raises:
        UsageError: `no-cuda`, `no-bfloat16`.
    """
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise UsageError("there is no CUDA device", code="no-cuda", hint="use --device cpu")
    device = torch.device("cuda" if has_cuda and config.device != "cpu" else "cpu")
    supported = device.type == "cpu" or torch.cuda.is_bf16_supported()
    if config.dtype == "bfloat16" and not supported:
        raise UsageError("the GPU has no bfloat16", code="no-bfloat16", hint="use --dtype float32")
    # A CPU can compute in bfloat16, but most do it many times slower than in float32.
    low = config.dtype == "bfloat16" or (config.dtype == "auto" and device.type == "cuda" and supported)
    return device, torch.bfloat16 if low else torch.float32
