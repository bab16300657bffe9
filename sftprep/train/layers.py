"""A model's decoder layers: what is recomputed, and what is compiled, one by one."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sftprep.errors import TrainError


def layers_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The outermost layers that transformers itself can recompute.

    Raises:
        TrainError: `no-layers`.
    """
    found: list[torch.nn.Module] = []
    inner: set[torch.nn.Module] = set()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module not in inner:
            found.append(module)
            inner.update(module.modules())
    if not found:
        raise TrainError(
            "this model has no layers that could be recomputed or compiled",
            code="no-layers",
            hint="leave out --gradient-checkpointing, --keep-products, --keep-narrow and --compile",
        )
    return found
