"""Activations that the backward pass computes again in place of keeping them: all of a layer's, or the cheap ones."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

_DEAR: Final = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "torch_attn::_varlen_attn",
    }
)
"""Operations whose results are kept where only the rest is computed again: matrix products, and attention."""


def recompute_activations(model: PreTrainedModel, *, keep_products: bool) -> None:
    """Keep only the input of each layer, and with `keep_products` what its matrix products and attention gave.

    Gradients are the same; the whole costs a third more operations, the rest only element-wise work.
    """
    settings: dict[str, Any] = {"use_reentrant": False}
    if keep_products:
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


def _policy(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    name = str(getattr(operation, "_schema", operation)).partition("(")[0].partition(".")[0]
    return CheckpointPolicy.MUST_SAVE if name in _DEAR else CheckpointPolicy.PREFER_RECOMPUTE
