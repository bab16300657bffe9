"""Activations that the backward pass computes again in place of keeping them: all of a layer's, or the cheap ones."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from sftprep.train.layers import layers_of

_DEAR: Final = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "sftprep::packed_attention",
    }
)
"""Operations whose results are kept where only the rest is computed again: matrix products, and attention."""


def recompute_activations(model: PreTrainedModel, *, keep_products: bool) -> None:
    """Keep only the input of each layer, and with `keep_products` what its matrix products and attention gave.

    Gradients are the same; the whole costs a third more operations, the rest only element-wise work.

    Raises:
        TrainError: `no-layers`.
    """
    layers = layers_of(model)
    # One class of each kind: layers that share a class share a compiled graph too.
    kinds = {kind: _recomputing(kind, keep_products) for kind in dict.fromkeys(map(type, layers))}
    for layer in layers:
        layer.__class__ = kinds[type(layer)]


def _recomputing(kind: type[torch.nn.Module], keep_products: bool) -> type[torch.nn.Module]:
    """A layer's class with a forward pass that is run again in the backward pass.

    Of the forward pass alone: hooks that gather a split layer must not run again.
    """
    context: dict[str, Any] = {"context_fn": _keeping} if keep_products else {}

    def forward(self: torch.nn.Module, *arguments: Any, **keywords: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return kind.forward(self, *arguments, **keywords)
        return checkpoint(kind.forward, self, *arguments, use_reentrant=False, **context, **keywords)

    # Under the same name: which layers are split is told by the names of their classes.
    return type(kind.__name__, (kind,), {"forward": forward})


def _keeping() -> Any:
    contexts: Any = create_selective_checkpoint_contexts
    return contexts(_policy)


def _policy(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    name = str(getattr(operation, "_schema", operation)).partition("(")[0].partition(".")[0]
    return CheckpointPolicy.MUST_SAVE if name in _DEAR else CheckpointPolicy.PREFER_RECOMPUTE
