"""Chooses where to compute and in which type; how much memory that took, and what to do where it is not enough."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from sftprep.config.train import TrainConfig
from sftprep.errors import TrainError, UsageError

_OUT_OF_MEMORY: Final = ("can't allocate memory", "out of memory", "not enough memory")


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


def set_up_torch(config: TrainConfig) -> None:
    """Threads, and whether operations of this process may give other bits in another run."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        # cuBLAS asks for it at its first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)


def peak_bytes(device: torch.device) -> int:
    """The most memory held so far: on a GPU by tensors, on a CPU by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what torch, on whatever device, or Python raises where memory ends."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


@contextmanager
def named_memory_failures(place: str) -> Iterator[None]:
    """Running out of memory becomes a TrainError that says what to turn."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainError(
            "the device has not enough memory",
            code="out-of-memory",
            place=place,
            hint="lower --batch-size and raise --grad-accum, add --keep-products or --gradient-checkpointing, or "
            "pack with a smaller --max-length; --dtype bfloat16 halves what activations take, --lora-rank keeps no "
            "optimizer state of the model's own weights, torchrun splits the model among processes",
        ) from error
