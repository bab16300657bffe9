"""Low-rank adapters (LoRA) on a frozen model: put in, saved, restored, merged without touching the model.

The adapters are injected into the model's own layers, so it stays the class that it was, and head, attention and
self-test work on it as on any other.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from sftprep.config.train import TrainConfig
from sftprep.errors import TrainError, UsageError
from sftprep.shards.read import ShardSet

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_DIRECTORY: Final = "adapter"
TRAINABLE: Final = "trainable.safetensors"
_ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_PEFT_PREFIX: Final = "base_model.model."
_BASE: Final = ".base_layer."
_NAME: Final = "default"
_UNTRAINED_SHARE: Final = 0.05
"""An embedding of less than this share of the median norm was never trained."""


def adapt(model: PreTrainedModel, config: TrainConfig) -> None:
    """Freeze the model and put adapters on all its linear layers but the head; embeddings too where asked.

    Raises:
        UsageError: `missing-extra`.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError("LoRA needs peft", code="missing-extra", hint="pip install 'sftprep[lora]'")
    # Its import takes a second, and full fine-tuning does not need it.
    from peft import inject_adapter_in_model

    torch.manual_seed(config.seed)
    inject_adapter_in_model(_lora_config(config), model, adapter_name=_NAME)
    if config.lora_embeddings:
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.requires_grad_(requires_grad=True)


def check_tokens(model: PreTrainedModel, shards: ShardSet) -> None:
    """Every token of the set has an embedding that was trained: adapters cannot give it one.

    Raises:
        TrainError: `untrained-tokens`.
    """
    used = _used_ids(shards)
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    untrained = sorted({i for module in embeddings for i in untrained_ids(module.weight, used)})
    if untrained:
        raise TrainError(
            f"{len(untrained)} tokens of the set have embeddings that were never trained, "
            f"the first: {', '.join(map(str, untrained[:5]))}",
            code="untrained-tokens",
            place=str(shards.place),
            hint="--lora-embeddings trains the embeddings too; full fine-tuning does without LoRA",
        )


@torch.no_grad()
def untrained_ids(weight: torch.Tensor, used: np.ndarray) -> list[int]:
    """Of the `used` ids (int64, sorted), those whose embedding in `weight` `[vocab, dim]` is as good as zero."""
    norms = weight.float().norm(dim=1).cpu().numpy()
    known = used[used < len(norms)]
    return [int(i) for i in known[norms[known] < _UNTRAINED_SHARE * np.median(norms)]]


def is_adapted(model: torch.nn.Module) -> bool:
    """Whether the model has adapters."""
    return any(True for _ in _adapted_layers(model))


@torch.no_grad()
def merged_state(model: PreTrainedModel, weights: dict[str, Any] | None) -> dict[str, Any] | None:
    """The weights of a plain model that computes the same, by name; `weights` themselves where nothing is adapted.

    `weights` stand for the model's own where it is split among processes. The model itself keeps its weights: adding
    and taking away again would round them.
    """
    if not is_adapted(model):
        return weights
    state = weights or model.state_dict()
    merged = {name.replace(_BASE, "."): value for name, value in state.items() if not _is_adapter_weight(name)}
    for name, layer in _adapted_layers(model):
        down, up = (state[f"{name}.lora_{part}.{_NAME}.weight"].float() for part in "AB")
        weight = state[f"{name}{_BASE}weight"]
        merged[f"{name}.weight"] = (weight.float() + layer.scaling[_NAME] * (up @ down)).to(weight.dtype)
    return merged


def save_adapter(
    model: PreTrainedModel, directory: Path, *, config: TrainConfig, weights: dict[str, Any] | None
) -> None:
    """The adapters alone, as `peft.PeftModel.from_pretrained` opens them on the model that was trained.

    `weights` as above.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        _PEFT_PREFIX + name.replace(f".{_NAME}.", "."): value.detach().cpu().contiguous()
        for name, value in (weights or model.state_dict()).items()
        if _is_adapter_weight(name)
    }
    save_file(weights, directory / _ADAPTER_WEIGHTS, metadata={"format": "pt"})
    found = _lora_config(config)
    found.base_model_name_or_path = config.model
    found.inference_mode = True
    found.save_pretrained(str(directory))


def save_trainable(model: torch.nn.Module, directory: Path, *, weights: dict[str, Any] | None) -> None:
    """The parameters that training changes, bit for bit, where the model has adapters; `weights` as above."""
    if not is_adapted(model):
        return
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    named = {name: (weights[name] if weights else p).cpu().contiguous() for name, p in trainable.items()}
    save_file(named, directory / TRAINABLE)


def saved_trainable(directory: Path) -> dict[str, torch.Tensor]:
    """What `save_trainable` wrote, by parameter; nothing where it wrote nothing."""
    path = directory / TRAINABLE
    return load_file(path) if path.is_file() else {}


@torch.no_grad()
def restore_trainable(model: torch.nn.Module, directory: Path) -> None:
    """Put back what `save_trainable` wrote.

    Raises:
        TrainError: `resume-differs`: the checkpoint's adapters are others.
    """
    saved = saved_trainable(directory)
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if {name: p.shape for name, p in wanted.items()} != {name: value.shape for name, value in saved.items()}:
        raise TrainError(
            "the checkpoint has other adapters",
            code="resume-differs",
            place=str(directory),
            hint="resume with the options of the first run",
        )
    for name, parameter in wanted.items():
        parameter.copy_(saved[name])


def _lora_config(config: TrainConfig) -> LoraConfig:
    # As in `adapt`.
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
    )


def _adapted_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    return (
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "base_layer") and hasattr(module, "lora_A")
    )


def _is_adapter_weight(name: str) -> bool:
    return ".lora_" in name


def _used_ids(shards: ShardSet) -> np.ndarray:
    """All token ids of the set, int64, sorted."""
    used: np.ndarray = np.empty(0, dtype=np.int64)
    for batch in shards.iter_batches(["input_ids"]):
        used = np.union1d(used, batch["input_ids"].flatten().to_numpy())
    return used.astype(np.int64)
