"""Writes models that are whole or not there: a Hugging Face directory, under another name until it is complete.

A run works in `OUT.running`: metrics, and checkpoints, each renamed into place. At the end the model is written there
too, and the directory is renamed to `OUT`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from sftprep.config.train import TrainConfig
from sftprep.errors import ModelFilesError, OutputError, ShardError, TrainError
from sftprep.shards.place import holds_something, replace_directory, sync_directory
from sftprep.shards.read import ShardSet
from sftprep.train import lora
from sftprep.train.distributed import fsdp_parts
from sftprep.train.export import save_model, writing
from sftprep.train.optimizer_state import OPTIMIZER, State, read_optimizer, write_optimizer

_MODEL_CONFIG: Final = "config.json"
_POSITION: Final = "position.json"
RESUMED_FROM: Final = frozenset({_POSITION, OPTIMIZER, lora.TRAINABLE})
"""Of a checkpoint: what a resumption needs; all else of it is a model."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run is, and what decides its data; a checkpoint of other data or batches is refused.

    `epoch_trained` counts the targets seen since the epoch began. `best_step` is the best one so far by the metric
    `keep_best`, `best_cost` that metric with a sign by which lower is better; 0 and infinity before any was measured.
    `stop_cost` is the same for the metric `stop_early`, which the last `num_worse` measurements did not better.
    `model` is what the run began with, `adapter` the form of adapters, '' where all is trained; `options` may be
    others after a resumption.
    """

    step: int
    epoch_trained: int
    seed: int
    rows_per_step: int
    fingerprint: str
    loss: str = "token"
    best_step: int = 0
    best_cost: float = math.inf
    keep_best: str = ""
    stop_early: str = ""
    stop_cost: float = math.inf
    num_worse: int = 0
    model: str = ""
    adapter: str = ""
    options: dict[str, Any] = field(default_factory=dict)


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

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after a step is, or would be."""
        return self.directory / "checkpoints" / f"step-{step:08d}"

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
    _put_back(workspace)
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
        for path in workspace.directory.glob("checkpoints/.step-*"):  # a killed run was writing or removing it
            shutil.rmtree(path)
    return workspace


def _put_back(workspace: Workspace) -> None:
    """A model that a killed run had set aside for its own gets its name again; one that was replaced already goes."""
    aside = workspace.directory.with_name(f"{workspace.directory.name}.old")
    if not aside.is_dir():
        return
    with writing(workspace.out):
        if workspace.out.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(workspace.out)


def save_checkpoint(workspace: Workspace, state: State, *, position: Position, shards: ShardSet) -> Path:
    """A model directory with the optimizer's state, renamed into place when all of it is on the disk."""
    final = workspace.checkpoint(position.step)
    partial = final.with_name(f".{final.name}")
    state.world.on_first(lambda: _make_empty(partial))
    weights = whole_weights(state)
    with writing(final):
        write_optimizer(state, partial / OPTIMIZER)

    def finish() -> None:
        with writing(final):
            save_model(state.model, partial, shards=shards, weights=weights)
            lora.save_trainable(state.model, partial, weights=weights)
            (partial / _POSITION).write_text(json.dumps(asdict(position)), encoding="utf-8")
            _flush(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            sync_directory(final.parent)

    state.world.on_first(finish)
    return final


def prune_checkpoints(workspace: Workspace, *, keep_last: int, best_step: int) -> None:
    """Remove all checkpoints but the last ones and the best."""
    for path in workspace.checkpoints()[:-keep_last]:
        if path != workspace.checkpoint(best_step):
            # Under its own name it would look whole while it is being removed.
            leaving = path.rename(path.with_name(f".{path.name}.old"))
            shutil.rmtree(leaving)


def load_checkpoint(directory: Path, state: State, *, wanted: Position) -> Position:
    """The position of a checkpoint, after its optimizer state is loaded; it may be of another number of processes.

    Raises:
        TrainError: `resume-differs`: it was made with other data, weights, seed or batches.
        ShardError: `damaged-checkpoint`.
    """
    try:
        position = Position(**json.loads((directory / _POSITION).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(directory, error) from error
    for name in ("fingerprint", "seed", "rows_per_step", "loss", "keep_best", "stop_early", "model", "adapter"):
        if (found := getattr(position, name)) != (now := getattr(wanted, name)):
            raise TrainError(
                f"the checkpoint was made with another {name}: {found or 'none'}, now: {now or 'none'}",
                code="resume-differs",
                place=str(directory),
                hint="resume with the options and the shard set of the first run",
            )
    wanted_terms = _terms(state)
    try:
        read_optimizer(state, directory / OPTIMIZER)
    except OSError as error:
        raise _damaged(directory, error) from error
    if _terms(state) != wanted_terms:
        raise TrainError(
            f"the checkpoint was made with another --weight-decay, --beta1 or --beta2: {_terms(state)}",
            code="resume-differs",
            place=str(directory),
            hint="resume with the options of the first run",
        )
    return position


def _terms(state: State) -> list[tuple[float, ...]]:
    """What the optimizer's groups were made with, and a checkpoint would change without a word."""
    return [(group["weight_decay"], *group["betas"]) for group in state.optimizer.param_groups]


def whole_weights(state: State) -> dict[str, Any] | None:
    """The split model's weights gathered in the first process (empty in the others); None where nothing is split."""
    if not fsdp_parts(state.model):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = get_model_state_dict(state.model, options=options)
    single = dict(state.model.named_parameters())
    # A tied weight has two names and is written once, as a model that is not split writes it.
    tied = {name for name, _ in state.model.named_parameters(remove_duplicate=False)} - single.keys()
    return {name: value for name, value in gathered.items() if name not in tied}


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """What cannot be read of a checkpoint inside is a ShardError: `damaged-checkpoint`."""
    try:
        yield
    except (OSError, SafetensorError, ModelFilesError) as error:
        raise _damaged(checkpoint, error) from error


def _damaged(directory: Path, error: Exception) -> ShardError:
    return ShardError(
        f"the checkpoint cannot be read: {error.message if isinstance(error, ModelFilesError) else error}",
        code="damaged-checkpoint",
        place=str(directory),
        hint="remove it, and --resume takes the one before",
    )


def _make_empty(directory: Path) -> None:
    with writing(directory):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)


def publish(workspace: Workspace, *, report: Mapping[str, object]) -> None:
    """Make the finished run's directory appear at `out`; an old model there goes once the new one stands."""
    with writing(workspace.out):
        (workspace.directory / "train.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _flush(workspace.directory)
        replace_directory(workspace.directory, target=workspace.out)


def _check_out(out: Path, *, overwrite: bool) -> None:
    if not holds_something(out):
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
    for path in (*directory.rglob("*"), directory):
        sync_directory(path)
