"""The processes of a run: how many they are, what they must agree on, and how a model is split among them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from sftprep.errors import SftprepError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """One of `size` processes; alone, it talks to nobody."""

    rank: int = 0
    size: int = 1

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def on_first(self, call: Callable[[], T]) -> T:
        """What `call` returns, or raises, in the first process: in all of them."""
        if self.size == 1:
            return call()
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = call()
            except SftprepError as error:
                told[1] = error
        dist.broadcast_object_list(told)
        if told[1] is not None:
            raise told[1]
        result: T = told[0]
        return result

    def on_all(self, call: Callable[[], T]) -> T:
        """What `call` returns here; what it raises in any process, in all of them. It must not talk to the others."""
        if self.size == 1:
            return call()
        result, error = None, None
        try:
            result = call()
        except SftprepError as raised:
            error = raised
        told: list[SftprepError | None] = [None] * self.size
        dist.all_gather_object(told, error)
        for found in (error, *told):
            if found is not None:
                raise found
        return cast("T", result)


ALONE: Final = World()


@contextmanager
def joined() -> Iterator[World]:
    """The processes that `torchrun` started, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_cuda else "gloo")
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size())
        # Nobody leaves while another still talks: who hosts the meeting place would take it away from under the rest.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def split_model(model: PreTrainedModel, *, device: torch.device, world: World) -> None:
    """Split parameters, gradients and optimizer state among the processes, layer by layer (FSDP2); alone, nothing."""
    if world.size == 1:
        return
    mesh = init_device_mesh(device.type, (world.size,))
    layers = set(model._no_split_modules or ())
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    # The loss reads the head's weight after the forward pass: the root must stay whole until the backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for part in fsdp_parts(model):
        # Gradients are summed, not averaged: the objective is divided by the weight of all processes' tokens.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def fsdp_parts(model: torch.nn.Module) -> list[FSDPModule]:
    """The split modules of a model; none where one process trains."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def sync_gradients(model: torch.nn.Module, wanted: bool) -> None:
    """Whether the next backward pass exchanges gradients, or keeps them until a later one does."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may be split, gathered from all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
