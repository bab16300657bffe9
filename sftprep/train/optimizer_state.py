"""The optimizer's state on the disk, for any number of processes to read: one writes a file, of several each its part.

One process's file is read in a third of the time that parts of its size take: torch copies them twice, and unpickles
each of their tensors.
"""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import PreTrainedModel

from sftprep.train.distributed import World

OPTIMIZER: Final = "optimizer"
"""What a checkpoint calls the state, and its directory."""
_WHOLE: Final = "state.safetensors"


@dataclass(frozen=True, slots=True)
class State:
    """What a checkpoint holds beside the position: a model and its optimizer, split among processes or not."""

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    world: World


def write_optimizer(state: State, directory: Path) -> None:
    """OSError where the disk fails."""
    held: Any = get_optimizer_state_dict(state.model, state.optimizer)
    with _as_file_errors(directory):
        if state.world.size == 1:
            _write_whole(held, directory)
        else:
            state_dict_saver.save({OPTIMIZER: held}, checkpoint_id=directory)


def read_optimizer(state: State, directory: Path) -> None:
    """Into memory that nothing was written to before. OSError where the state cannot be read."""
    with _quiet_alone(), _as_file_errors(directory):
        is_whole = (directory / _WHOLE).exists()
        held = _read_whole(state, directory / _WHOLE) if is_whole else _read_parts(state, directory)
    # Not strict, for the same parameters.
    options = StateDictOptions(strict=False, full_state_dict=is_whole and state.world.size > 1)
    set_optimizer_state_dict(state.model, state.optimizer, optim_state_dict=held, options=options)


def _write_whole(held: dict[str, Any], directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    values = {f"{name}.{key}": value for name, kept in held["state"].items() for key, value in kept.items()}
    groups = {"param_groups": json.dumps(held["param_groups"])}
    save_file({name: value.contiguous() for name, value in values.items()}, directory / _WHOLE, metadata=groups)


def _read_whole(state: State, path: Path) -> dict[str, Any]:
    """What one process wrote, as `get_optimizer_state_dict` would give it; of a split model, the whole of it."""
    kept: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        groups = json.loads((file.metadata() or {})["param_groups"])
        names = sorted(file.keys())
        _make_room(state, frozenset(names))
        room: Any = get_optimizer_state_dict(state.model, state.optimizer)["state"]
        for name in names:
            parameter, _, key = name.rpartition(".")
            found, place = file.get_tensor(name), room[parameter][key]
            if found.shape != place.shape:
                raise SafetensorError(f"{name} has another shape than the model's")
            # Found are pages of the file, which the first step would copy one by one.
            kept.setdefault(parameter, {})[key] = found if state.world.size > 1 else place.copy_(found)
    return {"state": kept, "param_groups": groups}


def _read_parts(state: State, directory: Path) -> dict[str, Any]:
    """What several processes wrote, or one of an earlier version."""
    saved = FileSystemReader(directory).read_metadata().state_dict_metadata
    _make_room(state, {name.removeprefix(f"{OPTIMIZER}.state.") for name in saved})
    held: dict[str, Any] = {OPTIMIZER: get_optimizer_state_dict(state.model, state.optimizer)}
    state_dict_loader.load(held, checkpoint_id=directory, no_dist=state.world.size == 1)
    found: dict[str, Any] = held[OPTIMIZER]
    return found


def _make_room(state: State, saved: AbstractSet[str]) -> None:
    """Places for what AdamW had of each parameter; of those that never had a gradient it had nothing.

    Torch itself would take a step with gradients of zero to get them: twice the time of reading, and more memory.
    """
    for name, parameter in state.model.named_parameters():
        if f"{name}.step" not in saved:
            continue
        state.optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.empty_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.empty_like(parameter, requires_grad=False),
        }


@contextmanager
def _quiet_alone() -> Iterator[None]:
    """One process is no mistake, and torch warns that it could be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextmanager
def _as_file_errors(directory: Path) -> Iterator[None]:
    """What torch wraps in an exception of its own, as an OSError again: the first process's failure."""
    try:
        yield
    except (SafetensorError, KeyError) as error:
        raise OSError(errno.EIO, str(error), str(directory)) from error
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        # Ctrl-C, too, arrives wrapped where the first process saves.
        if isinstance(cause, OSError | KeyboardInterrupt):
            raise cause from error
        text = str(cause).strip().partition("\n")[0]
        raise OSError(errno.EIO, f"{type(cause).__name__}: {text}", str(directory)) from error
