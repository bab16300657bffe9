"""The optimizer's state on the disk: each process writes its part, and any number of processes can read it."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
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


@dataclass(frozen=True, slots=True)
class State:
    """What a checkpoint holds beside the position: a model and its optimizer, split among processes or not."""

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    world: World


def write_optimizer(state: State, directory: Path) -> None:
    """OSError where the disk fails."""
    held = {OPTIMIZER: get_optimizer_state_dict(state.model, state.optimizer)}
    with _quiet_alone(), _as_file_errors(directory):
        state_dict_saver.save(held, checkpoint_id=directory, no_dist=state.world.size == 1)


def read_optimizer(state: State, directory: Path) -> None:
    """Into memory that nothing was written to before. OSError where the state cannot be read."""
    with _quiet_alone(), _as_file_errors(directory):
        saved = FileSystemReader(directory).read_metadata().state_dict_metadata
        _make_room(state, frozenset(saved))
        held = {OPTIMIZER: get_optimizer_state_dict(state.model, state.optimizer)}
        state_dict_loader.load(held, checkpoint_id=directory, no_dist=state.world.size == 1)
    # Not strict, for the same parameters.
    options = StateDictOptions(strict=False)
    set_optimizer_state_dict(state.model, state.optimizer, optim_state_dict=held[OPTIMIZER], options=options)


def _make_room(state: State, saved: frozenset[str]) -> None:
    """Places for what AdamW had of each parameter; of those that never had a gradient it had nothing.

    Torch itself would take a step with gradients of zero to get them: twice the time of reading, and more memory.
    """
    for name, parameter in state.model.named_parameters():
        if f"{OPTIMIZER}.state.{name}.step" not in saved:
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
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        if isinstance(cause, OSError):
            raise cause from error
        text = str(cause).strip().partition("\n")[0]
        raise OSError(errno.EIO, f"{type(cause).__name__}: {text}", str(directory)) from error
