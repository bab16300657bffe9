"""Activations that the backward pass computes again in place of keeping them: all of a layer's, or the cheap ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
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
_MATRIX: Final = {"aten::mm": 1, "aten::addmm": 2}
"""Products of rows with a matrix, and which operand the matrix is."""


def recompute_activations(model: PreTrainedModel, *, keep_products: bool, but_wide: bool = False) -> None:
    """Keep only the input of each layer, and with `keep_products` what its matrix products and attention gave.

    With `but_wide` too, every second of those products is computed again that widen a row alike: of a gated
    feed-forward layer one of two, half of what its activations take.

    Gradients are the same; the whole costs a third more operations, what is not a product only element-wise work,
    and one of two wide products a tenth of a layer's.

    Raises:
        TrainError: `no-layers`.
    """
    layers = layers_of(model)
    keeping = (_keeping_narrow if but_wide else _keeping) if keep_products else None
    # One class of each kind: layers that share a class share a compiled graph too.
    kinds = {kind: _recomputing(kind, keeping) for kind in dict.fromkeys(map(type, layers))}
    for layer in layers:
        layer.__class__ = kinds[type(layer)]


def _recomputing(kind: type[torch.nn.Module], keeping: Callable[[], Any] | None) -> type[torch.nn.Module]:
    """A layer's class with a forward pass that is run again in the backward pass.

    Of the forward pass alone: hooks that gather a split layer must not run again.
    """
    context: dict[str, Any] = {"context_fn": keeping} if keeping else {}

    def forward(self: torch.nn.Module, *arguments: Any, **keywords: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return kind.forward(self, *arguments, **keywords)
        return checkpoint(kind.forward, self, *arguments, use_reentrant=False, **context, **keywords)

    # Under the same name: which layers are split is told by the names of their classes.
    return type(kind.__name__, (kind,), {"forward": forward})


def _keeping() -> Any:
    contexts: Any = create_selective_checkpoint_contexts
    return contexts(_policy)


def _keeping_narrow() -> Any:
    contexts: Any = create_selective_checkpoint_contexts
    return contexts(_EverySecond())


def _policy(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    name = _name(operation)
    return CheckpointPolicy.MUST_SAVE if name in _DEAR else CheckpointPolicy.PREFER_RECOMPUTE


def _name(operation: Any) -> str:
    return str(getattr(operation, "_schema", operation)).partition("(")[0].partition(".")[0]


@dataclass(frozen=True, slots=True)
class _EverySecond:
    """The same, but of products with matrices of one widening shape every second is computed again.

    Counted by shape: adapters beside the layer's own matrices are wide as well. And apart in the forward pass and in
    its repetition, which must be told the same.
    """

    seen: Counter[tuple[bool, tuple[int, int]]] = field(default_factory=Counter)

    def __call__(self, context: Any, operation: Any, *operands: Any, **keywords: Any) -> CheckpointPolicy:
        matrix = _MATRIX.get(_name(operation))
        if matrix is not None:
            rows, columns = operands[matrix].shape
            here = (context.is_recompute, (rows, columns))
            self.seen[here] += 1
            if columns >= 2 * rows and self.seen[here] % 2 == 0:
                return CheckpointPolicy.PREFER_RECOMPUTE
        return _policy(context, operation)
