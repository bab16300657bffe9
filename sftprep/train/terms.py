"""What a run goes on with, beside its data: what must be as it was, and what may be another and is said."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from sftprep.config.train import TrainConfig
from sftprep.train.model import WEIGHT_FILES, ModelPlace

_FREE: Final = (
    "lr",
    "warmup",
    "schedule",
    "min_lr_ratio",
    "max_grad_norm",
    "epochs",
    "max_steps",
    "dtype",
)
"""Options that a resumption may change on purpose, as after a loss that was no number, and must not change unseen."""
_SLICES: Final = 4096
_SLICE_BYTES: Final = 512


def adapter_terms(config: TrainConfig, *, dtype: torch.dtype) -> str:
    """The form of the adapters, which no checkpoint holds, and the type of the weights under them; '' without any."""
    if not config.lora_rank:
        return ""
    alpha = config.lora_alpha or 2 * config.lora_rank
    return f"rank {config.lora_rank}, alpha {alpha}, dropout {config.lora_dropout} on {dtype} weights"


def model_terms(config: TrainConfig, place: ModelPlace) -> str:
    """The weights that a run begins with, wherever they lie and whatever they are called."""
    return f"{config.init} weights {_weights(config, place)[:12]}"


def free_options(config: TrainConfig) -> dict[str, Any]:
    """The options that a resumption may change, as JSON."""
    return config.model_dump(mode="json", include=set(_FREE))


def changed_options(before: Mapping[str, Any], config: TrainConfig) -> Iterator[str]:
    """A line for each option that is not what the checkpoint was made with."""
    for name, value in free_options(config).items():
        if name in before and before[name] != value:
            yield f"goes on with another --{name.replace('_', '-')}: {value}, was {before[name]}"


def _weights(config: TrainConfig, place: ModelPlace) -> str:
    """A hash of the weights: of their files by samples that no matrix lies between, or of how they are drawn."""
    if config.init == "random":
        return hashlib.sha256((place.directory / "config.json").read_bytes()).hexdigest()
    names = [place.gguf] if place.gguf else WEIGHT_FILES
    files = sorted({path for name in names for path in place.directory.glob(name)})
    return hashlib.sha256(b"".join(map(_sampled, files))).hexdigest()


def _sampled(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in np.linspace(0, max(0, size - _SLICE_BYTES), _SLICES).astype(int).tolist():
            file.seek(start)
            digest.update(file.read(_SLICE_BYTES))
    return digest.digest()
