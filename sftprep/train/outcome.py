"""What a run leaves: the model of its last step, or of its best one where `--keep-best` names a metric."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sftprep.config.train import TrainConfig
from sftprep.reports.loss_curve import write_loss_curve
from sftprep.shards.read import ShardSet
from sftprep.train import lora
from sftprep.train.checkpoint import RESUMED_FROM, Position, Workspace
from sftprep.train.export import save_model, writing
from sftprep.train.loggers import PAGE


def outcome_step(position: Position, config: TrainConfig) -> int:
    """The step whose weights are the run's result."""
    return position.best_step if config.keep_best and position.best_step else position.step


def write_outcome(
    model: PreTrainedModel,
    workspace: Workspace,
    *,
    shards: ShardSet,
    config: TrainConfig,
    weights: dict[str, Any] | None,
) -> None:
    """Write the last step's model into the run's directory; `weights` stand for a split model's own."""
    place = workspace.directory
    with writing(place):
        save_model(model, place, shards=shards, weights=weights)
        _write_rest(model, workspace, config=config, weights=weights)


def write_best_outcome(model: PreTrainedModel, workspace: Workspace, *, step: int, config: TrainConfig) -> None:
    """Write the model of an earlier step's checkpoint: the files of the checkpoint, byte for byte."""
    kept = workspace.checkpoint(step)
    with writing(workspace.directory):
        for path in sorted(kept.iterdir()):
            if path.name not in RESUMED_FROM:
                _copy(path, workspace.directory / path.name)
        weights = lora.saved_trainable(kept) if config.lora_rank else None
        _write_rest(model, workspace, config=config, weights=weights, note=f", the best step kept: {step}")


def _copy(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(path, target)


def _write_rest(
    model: PreTrainedModel, workspace: Workspace, *, config: TrainConfig, weights: dict[str, Any] | None, note: str = ""
) -> None:
    place = workspace.directory
    if config.lora_rank and not config.lora_embeddings:
        lora.save_adapter(model, place / lora.ADAPTER_DIRECTORY, config=config, weights=weights)
    write_loss_curve(workspace.metrics, place / PAGE, title=f"Training of {config.model}{note}")
