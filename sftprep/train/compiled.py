"""Layers as compiled graphs: one for all layers of a kind and for all packs, which are filled up to one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import torch
from transformers import PreTrainedModel

from sftprep.errors import TrainError
from sftprep.train.distributed import whole
from sftprep.train.forward import to_device, token_loss
from sftprep.train.layers import layers_of
from sftprep.train.loop import Trainee, local_batches
from sftprep.train.stream import Row

_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Of a token's loss, in nats, and of a gradient's norm, as a share of all gradients' norm: rounding stays far below."""


def compile_layers(model: PreTrainedModel, *, backend: str = "inductor") -> None:
    """Compile each layer at its first call; before the model is split, so that what splits it stays outside."""
    if not all(parameter.requires_grad for parameter in model.get_input_embeddings().parameters()):
        # Else the first layer alone had an input without a gradient, and a graph of its own for that.
        model.enable_input_require_grads()
    for layer in layers_of(model):
        layer.compile(fullgraph=True, dynamic=False, backend=backend)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled layers run as they were written: whatever is not a training step has other shapes."""
    with torch.compiler.set_stance("force_eager"):
        yield


def check_compiled(trainee: Trainee, documents: Sequence[Row]) -> float:
    """How far tokens' losses are, in nats (root mean square), in compiled layers from the model as it was written.

    The documents are learnt twice, filled up and compiled and as they are, and the gradients are compared too.

    Raises:
        TrainError: `compile-differs`, `compile-failed`, `compile-unsupported`. In all processes alike.
    """
    if trainee.world.size > 1:
        # One that failed within its layers would leave the others waiting for their share of the next layer.
        trainee.world.on_all(partial(_try_compiler, trainee.device))
    rows = [_trained(row) for row in _fitting(documents, trainee.pack_length)]
    # Dropout draws other numbers in a compiled graph.
    has_dropout = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in trainee.model.modules())
    trainee.model.train(not has_dropout)
    try:
        with uncompiled():
            wanted, wanted_norms = _learnt(replace(trainee, pack_length=0), rows)
            # What cannot be one operation says so here: from within a graph its name would not be heard.
            _learnt(trainee, rows)
        with _named_failures():
            found, norms = _learnt(trainee, rows)
    finally:
        trainee.model.train()
    # Not the farthest token: of many, one rounds to four times as much as they do on the whole.
    difference = float((found - wanted).square().mean().sqrt())
    apart = float((norms - wanted_norms).abs().max() / wanted_norms.norm())
    return trainee.world.on_all(partial(_judged, difference, apart, tolerance=_TOLERANCE[trainee.dtype]))


def _judged(difference: float, apart: float, *, tolerance: float) -> float:
    if not (difference <= tolerance and apart <= tolerance):
        raise TrainError(
            f"compiled layers give other losses (by {difference:.2g} nats) or gradients (by {apart:.2g})",
            code="compile-differs",
            hint="leave out --compile",
        )
    return difference


def _try_compiler(device: torch.device) -> None:
    """Whether this machine compiles at all. TrainError `compile-failed`."""
    with _named_failures():
        torch.compile(_small_graph, fullgraph=True)(torch.ones(2, device=device))


def _small_graph(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor * 3 + 1).sin()


def _fitting(documents: Sequence[Row], length: int) -> list[Row]:
    """The first documents that fit into a pack together; one always does."""
    ends = np.cumsum([len(row.ids) for row in documents])
    return [row for row, end in zip(documents, ends, strict=True) if end <= length]


def _trained(row: Row) -> Row:
    """The same document with every token trained that can be."""
    return replace(row, trained=np.arange(len(row.ids)) > 0, weights=np.ones(len(row.ids), np.float32))


def _learnt(trainee: Trainee, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's loss, and each parameter's gradient norm. The gradients are forgotten."""
    (batch,) = local_batches(trainee, rows, size=len(rows))
    with torch.autocast(trainee.device.type, dtype=torch.bfloat16, enabled=trainee.dtype is torch.bfloat16):
        moved = to_device(batch, trainee.device)
        loss = token_loss(trainee.model, moved, head=trainee.head, normaliser=float(len(batch["targets"])))
    torch.autograd.backward(loss.objective)
    gradients = [parameter.grad for parameter in trainee.model.parameters() if parameter.grad is not None]
    norms = torch.stack([whole(gradient.norm()) for gradient in gradients])
    trainee.model.zero_grad(set_to_none=True)
    return loss.nll, norms


@contextmanager
def _named_failures() -> Iterator[None]:
    # The compiler takes seconds to import, which runs without it must not wait for.
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        raise TrainError(
            f"this model's layers cannot be compiled: {str(error).strip().partition(chr(10))[0]}",
            code="compile-failed",
            hint="leave out --compile; compiling needs a C++ compiler on a CPU, and Triton on a GPU",
        ) from error
