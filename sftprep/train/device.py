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
    device = device_named(config.device)
    supported = device.type == "cpu" or torch.cuda.is_bf16_supported()
    if config.dtype == "bfloat16" and not supported:
        raise UsageError("the GPU has no bfloat16", code="no-bfloat16", hint="use --dtype float32")
    # A CPU can compute in bfloat16, but most do it many times slower than in float32.
    low = config.dtype == "bfloat16" or (config.dtype == "auto" and device.type == "cuda" and supported)
    return device, torch.bfloat16 if low else torch.float32


def device_named(name: str) -> torch.device:
    """`auto` is a GPU where there is one. UsageError `no-cuda`."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UsageError("there is no CUDA device", code="no-cuda", hint="use --device cpu")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")
