"""One forward pass: a micro-batch to the loss of its trained tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, cast

import torch
from transformers import PreTrainedModel

from sftprep.train.attention import Segments
from sftprep.train.loss import HeadTransform, TokenLoss, linear_cross_entropy, logits_cross_entropy, tapped
from sftprep.train.stream import MicroBatch

_TINY: Final = 1e-3
_HUGE: Final = 1e4


@dataclass(frozen=True, slots=True)
class Head:
    """A model's output projection, and what the model does to the product before it calls it logits."""

    linear: torch.nn.Linear
    transform: HeadTransform

    def fused(self) -> Head:
        """The same with the softmax of its logits compiled."""
        return Head(self.linear, replace(self.transform, fused=True))


def token_loss(model: torch.nn.Module, batch: MicroBatch, *, head: Head | None, normaliser: float) -> TokenLoss:
    """The loss of the batch's trained tokens; `objective` is its weighted sum over `normaliser`.

    Without a head the model's own logits are taken, at the trained rows.
    """
    rows, targets = batch["rows"], batch["targets"]
    weights = batch["weights"] / normaliser
    if head is None:
        logits = model_logits(model, batch).flatten(0, -2)[rows]
        return logits_cross_entropy(logits, targets=targets, weights=weights)
    with tapped(head.linear) as seen:
        model(**inputs(batch))
    hidden = seen[-1].flatten(0, -2).index_select(0, rows)
    return linear_cross_entropy(hidden, head.linear, targets=targets, weights=weights, transform=head.transform)


def inputs(batch: MicroBatch) -> dict[str, Any]:
    """A model's keyword arguments. Never a mask and never a cache: with either, documents see each other."""
    given: dict[str, Any] = {"input_ids": batch["input_ids"], "use_cache": False}
    if batch["offsets"]:
        segments = segments_of(batch)
        given |= {"position_ids": batch["position_ids"], **segments.keywords()}
    return given


def segments_of(batch: MicroBatch) -> Segments:
    """The documents of a packed batch, on its device."""
    offsets = batch["offsets"]
    longest = max(stop - start for start, stop in pairwise(offsets))
    extent = torch.tensor([len(offsets) - 1, longest]) if batch["filled_up"] else None
    return Segments(offsets=offsets, cu_seqlens=batch["cu_seqlens"], max_length=longest, extent=extent)


def model_logits(model: torch.nn.Module, batch: MicroBatch) -> torch.Tensor:
    """The model's own logits, `[B, L, vocab]`."""
    logits: torch.Tensor = model(**inputs(batch)).logits
    return logits


def to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The same batch with its tensors on `device`, but for the sources, which are only counted."""
    return _changed(batch, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(batch: MicroBatch) -> MicroBatch:
    """The same batch in memory that a GPU copies from without making this process wait."""
    return _changed(batch, torch.Tensor.pin_memory)


def _changed(batch: MicroBatch, change: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
    new = MicroBatch(**batch)
    new["input_ids"] = change(batch["input_ids"])
    new["position_ids"] = change(batch["position_ids"])
    new["cu_seqlens"] = change(batch["cu_seqlens"])
    new["rows"] = change(batch["rows"])
    new["targets"] = change(batch["targets"])
    new["weights"] = change(batch["weights"])
    return new


@torch.no_grad()
def find_head(model: torch.nn.Module) -> Head | None:
    """The head, with its transform measured by feeding known products through the model; None where it does not fit.

    Models scale or soft-cap their logits under many configuration names; what they do is the same few functions.
    """
    linear = cast("PreTrainedModel", model).get_output_embeddings()
    if not isinstance(linear, torch.nn.Linear):
        return None
    generator = torch.Generator().manual_seed(0)
    products = torch.randn(1, 4, linear.weight.shape[0], generator=generator) * 8
    for position, value in enumerate((_TINY, 1.0, _HUGE)):
        products[0, position] = value
    logits = _logits_of(model, linear, products=products.to(linear.weight.device))
    if logits.shape != products.shape:
        return None
    transform = _transform(*logits[0, :3, 0].tolist())
    fits = torch.allclose(transform.apply(products), logits, rtol=1e-4, atol=1e-4)
    return Head(linear, transform) if fits and transform.scale > 0 else None


def _transform(at_tiny: float, at_one: float, at_huge: float) -> HeadTransform:
    """The transform that gives these logits; a capped one has its ceiling at huge products, its slope at tiny ones."""
    if at_huge > 0.99 * _HUGE * at_one:
        return HeadTransform(scale=at_one)
    return HeadTransform(scale=float(f"{at_tiny / _TINY:.6g}"), softcap=at_huge)


def _logits_of(model: torch.nn.Module, linear: torch.nn.Linear, *, products: torch.Tensor) -> torch.Tensor:
    """What the model makes of head products `[1, n, vocab]`, float32 on the CPU."""

    def fixed(hidden: torch.Tensor) -> torch.Tensor:
        return products

    ids = torch.zeros(1, products.shape[1], dtype=torch.int64, device=products.device)
    object.__setattr__(linear, "forward", fixed)
    try:
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    finally:
        object.__delattr__(linear, "forward")
    return logits.float().cpu()
