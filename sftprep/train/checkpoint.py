"""Writes models that are whole or not there: a Hugging Face directory, under another name until it is complete.

A run works in `OUT.running`: metrics, and checkpoints, each renamed into place. At the end the model is written there
too, and the directory is renamed to `OUT`.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel

from sftprep.config.train import TrainConfig
from sftprep.errors import OutputError, ShardError, TrainError
from sftprep.shards.place import replace_directory, sync_directory
from sftprep.shards.read import ShardSet
from sftprep.train import lora

_GENERATION_CONFIG: Final = "generation_config.json"
_MODEL_CONFIG: Final = "config.json"
_STATE: Final = "trainer_state.pt"
_NOT_COPIED: Final = frozenset({_GENERATION_CONFIG, _MODEL_CONFIG})
"""Of the packed set's `model/`: these two are the trained model's own."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run is, and what decides its data; a checkpoint of other data or batches is refused.

    `epoch_trained` counts the targets seen since the epoch began.
    """

    step: int
    epoch_trained: int
    seed: int
    rows_per_step: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Workspace:
    """The directory of a run while it runs, and the place where it will be."""

    out: Path

    @property
    def directory(self) -> Path:
        """Beside `out`, so that the last rename is atomic."""
        return self.out.with_name(f"{self.out.name}.running")

    @property
    def metrics(self) -> Path:
        """One JSON object a step."""
        return self.directory / "metrics.jsonl"

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, the oldest first."""
        return sorted(self.directory.glob("checkpoints/step-*"))

    def discard(self) -> None:
        """Remove everything that this run wrote."""
        shutil.rmtree(self.directory, ignore_errors=True)


def open_workspace(config: TrainConfig) -> Workspace:
    """The run's directory; what an earlier run left there is kept for `--resume`, and never lost without asking.

    Raises:
        OutputError: `output-not-a-directory`, `output-not-empty`, `output-not-a-model`, `unfinished-run`,
            `nothing-to-resume`, `output-not-writable`.
    """
    workspace = Workspace(config.out)
    _check_out(config.out, overwrite=config.overwrite)
    found = workspace.checkpoints()
    if config.resume and not found:
        raise OutputError(
            "there is no checkpoint to resume from",
            code="nothing-to-resume",
            place=str(workspace.directory),
            hint="checkpoints are written by --save-every; start without --resume",
        )
    if found and not config.resume and not config.overwrite:
        raise OutputError(
            f"an unfinished run has a checkpoint here: {found[-1].name}",
            code="unfinished-run",
            place=str(workspace.directory),
            hint="go on with --resume, or start anew with --overwrite",
        )
    with writing(workspace.directory):
        if not config.resume and workspace.directory.exists():
            shutil.rmtree(workspace.directory)
        workspace.directory.mkdir(parents=True, exist_ok=True)
    return workspace


def save_checkpoint(
    workspace: Workspace,
    model: PreTrainedModel,
    *,
    optimizer: torch.optim.Optimizer,
    position: Position,
    shards: ShardSet,
) -> Path:
    """A model directory with the optimizer's state, renamed into place when it is whole."""
    final = workspace.directory / "checkpoints" / f"step-{position.step:08d}"
    partial = final.with_name(f".{final.name}")
    with writing(final):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_model(model, partial, shards=shards)
        lora.save_trainable(model, partial)
        torch.save({"position": asdict(position), "optimizer": optimizer.state_dict()}, partial / _STATE)
        _flush(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    return final


def load_checkpoint(
    directory: Path, optimizer: torch.optim.Optimizer, *, wanted: Position, device: torch.device
) -> Position:
    """The position of a checkpoint, after its optimizer state is loaded.

    Raises:
        TrainError: `resume-differs`: it was made with other data, seed or batches.
    """
    state = torch.load(directory / _STATE, map_location=device, weights_only=True)
    position = Position(**state["position"])
    for name in ("fingerprint", "seed", "rows_per_step"):
        if getattr(position, name) != getattr(wanted, name):
            raise TrainError(
                f"the checkpoint was made with another {name}: {getattr(position, name)}",
                code="resume-differs",
                place=str(directory),
                hint="resume with the options and the shard set of the first run",
            )
    optimizer.load_state_dict(state["optimizer"])
    return position


def publish(workspace: Workspace, *, report: Mapping[str, object]) -> None:
    """Make the finished run's directory appear at `out`; an old model there goes once the new one stands."""
    with writing(workspace.out):
        (workspace.directory / "train.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _flush(workspace.directory)
        replace_directory(workspace.directory, target=workspace.out)


def save_model(model: PreTrainedModel, directory: Path, *, shards: ShardSet) -> None:
    """Weights and configuration of the model, text files of the packed set byte for byte, stop ids as trained."""
    stop_ids = list(shards.manifest.model.stop_ids)
    tokens = {
        "eos_token_id": stop_ids[0] if len(stop_ids) == 1 else stop_ids,
        "pad_token_id": shards.manifest.model.pad_id,
    }
    for name, value in tokens.items():
        setattr(model.config, name, value)
    # The model's own generation settings may be ones that transformers refuses to save; the file is written below.
    model.generation_config = GenerationConfig(**tokens)
    model.save_pretrained(directory, state_dict=lora.merged_state(model))
    source = shards.directory / "model"
    for path in sorted(path for path in source.rglob("*") if path.is_file() and path.name not in _NOT_COPIED):
        target = directory / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    settings = _generation_settings(shards) | tokens
    (directory / _GENERATION_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """A failure of the file system inside is an OutputError: `disk-full`, `output-not-writable`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        raise OutputError(
            f"cannot write: {error}",
            code="disk-full" if full else "output-not-writable",
            place=str(place),
            hint="free some space or name another place" if full else "name a directory that can be written",
        ) from error


def _generation_settings(shards: ShardSet) -> dict[str, Any]:
    path = shards.directory / "model" / _GENERATION_CONFIG
    if not path.is_file():
        return {}
    settings = json.loads(path.read_bytes())
    if not isinstance(settings, dict):
        raise ShardError("not a JSON object", code="damaged-model-file", place=str(path), hint="pack again")
    return settings


def _check_out(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(
            "the output is a file", code="output-not-a-directory", place=str(out), hint="name a directory"
        )
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise OutputError(
            "the directory is not empty",
            code="output-not-empty",
            place=str(out),
            hint="name another, or use --overwrite",
        )
    if not (out / _MODEL_CONFIG).is_file():
        raise OutputError(
            "the directory is not empty and is not a model",
            code="output-not-a-model",
            place=str(out),
            hint="name an empty or new directory; only a model directory is ever replaced",
        )


def _flush(directory: Path) -> None:
    """What is in the directory is on the disk before it gets its name."""
    for path in (*directory.iterdir(), directory):
        sync_directory(path)
