"""Cross-entropy at the trained positions only, through the model's own head, without the full logits.

The gradient is computed in the forward pass, tile by tile: the logits of one tile are the largest thing that ever
exists, and the head's gradient is summed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast

import torch
from torch.autograd.function import once_differentiable

_MIN_TILE_ELEMENTS: Final = 2**20
_MAX_TILE_ELEMENTS: Final = 2**27
"""Logits of a tile: 4 MiB to 512 MiB in float32."""
_TILES: Final = 7
_CAPPED_TILES: Final = 12
"""At most one and a half tiles are alive at a time, with soft-capping two and a half: together less than a quarter of
the full logits. More tiles would be smaller products, and more passes over the head's gradient."""
_MIN_TILE_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class HeadTransform:
    """What a model does to the head's product: `scale * z`, then soft-capping where `softcap` is not 0.

    `fused` has the softmax of a tile compiled into one pass over it.
    """

    scale: float = 1.0
    softcap: float = 0.0
    fused: bool = False

    def apply(self, product: torch.Tensor) -> torch.Tensor:
        """The logits of a head product `[rows, vocab]`."""
        logits = product if self.scale == 1.0 else product * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits

    def apply_(self, product: torch.Tensor) -> torch.Tensor:
        """The same in place."""
        if self.scale != 1.0:
            product.mul_(self.scale)
        return product.div_(self.softcap).tanh_().mul_(self.softcap) if self.softcap else product

    def slope(self, logits: torch.Tensor) -> torch.Tensor | float:
        """How logits move with the head's product: `[rows, vocab]` where it depends on them."""
        if not self.softcap:
            return self.scale
        return (logits / self.softcap).square_().neg_().add_(1.0).mul_(self.scale)


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """`objective` is the weighted sum, to be differentiated; `nll` float32 `[rows]`, nats a token, detached."""

    objective: torch.Tensor
    nll: torch.Tensor


def linear_cross_entropy(
    hidden: torch.Tensor,
    head: torch.nn.Linear,
    *,
    targets: torch.Tensor,
    weights: torch.Tensor,
    transform: HeadTransform,
) -> TokenLoss:
    """Σ weight · cross-entropy of `head(hidden)`.

    `hidden` `[rows, dim]`, `targets` int64 `[rows]`, `weights` float32 `[rows]`, already normalised.
    """
    apply = cast("Callable[..., tuple[torch.Tensor, torch.Tensor]]", _LinearCrossEntropy.apply)
    objective, nll = apply(hidden, head.weight, head.bias, targets, weights, transform)
    return TokenLoss(objective=objective, nll=nll)


def logits_cross_entropy(logits: torch.Tensor, *, targets: torch.Tensor, weights: torch.Tensor) -> TokenLoss:
    """The same from the logits of the trained rows, `[rows, vocab]`, for heads of an unknown form."""
    nll = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    return TokenLoss(objective=(nll * weights).sum(), nll=nll.detach())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, weight, bias, targets, weights, transform = arguments
        device = hidden.device.type
        low = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if low else weight.dtype
        with torch.autocast(device, enabled=False):
            tiles = _Tiles.of(hidden.to(dtype), weight=weight, bias=bias, dtype=dtype)
            nll = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
            for rows in tiles.slices(_CAPPED_TILES if transform.softcap else _TILES):
                nll[rows] = tiles.add(rows, targets=targets[rows], weights=weights[rows], transform=transform)
        ctx.save_for_backward(tiles.d_hidden.to(hidden.dtype), tiles.d_weight, tiles.d_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(nll)
        return (nll * weights).sum(), nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        scale, (weight_dtype, bias_dtype) = gradients[0], ctx.dtypes
        # In place: beside all that the forward pass kept, a second copy as large as the head would be the peak.
        d_weight = None if d_weight is None else d_weight.mul_(scale).to(weight_dtype)
        d_bias = None if d_bias is None else d_bias.mul_(scale).to(bias_dtype)
        return d_hidden * scale.to(d_hidden.dtype), d_weight, d_bias, None, None, None


@dataclass(slots=True)
class _Tiles:
    """The head's operands in the compute type, and the gradients that the tiles add up."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    d_hidden: torch.Tensor
    d_weight: torch.Tensor | None
    d_bias: torch.Tensor | None

    @classmethod
    def of(cls, hidden: torch.Tensor, *, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> _Tiles:
        def zeros(parameter: torch.Tensor | None) -> torch.Tensor | None:
            trained = parameter is not None and parameter.requires_grad
            return torch.zeros_like(parameter, dtype=torch.float32) if parameter is not None and trained else None

        return cls(
            hidden=hidden,
            weight=weight.detach().to(dtype),
            bias=None if bias is None else bias.detach().to(dtype),
            d_hidden=torch.empty_like(hidden),
            d_weight=zeros(weight),
            d_bias=zeros(bias),
        )

    def slices(self, number: int) -> Iterator[slice]:
        columns, total = self.weight.shape[0], self.hidden.shape[0]
        elements = min(_MAX_TILE_ELEMENTS, max(_MIN_TILE_ELEMENTS, total * columns // number))
        rows = max(_MIN_TILE_ROWS, elements // columns)
        for start in range(0, total, rows):
            yield slice(start, start + rows)

    def add(
        self, rows: slice, *, targets: torch.Tensor, weights: torch.Tensor, transform: HeadTransform
    ) -> torch.Tensor:
        """One tile: its losses, float32 `[rows]`; the gradients are added."""
        hidden = self.hidden[rows]
        tile_gradient = _fused_tile_gradient() if transform.fused else _tile_gradient
        nll, gradient = tile_gradient(hidden, (self.weight, self.bias), targets, weights, transform)
        torch.mm(gradient, self.weight, out=self.d_hidden[rows])
        if self.d_weight is not None:
            _add_product(self.d_weight, gradient.t(), hidden)
        if self.d_bias is not None:
            self.d_bias += gradient.sum(dim=0, dtype=torch.float32)
        return nll


def _tile_gradient(
    hidden: torch.Tensor,
    head: tuple[torch.Tensor, torch.Tensor | None],
    targets: torch.Tensor,
    weights: torch.Tensor,
    transform: HeadTransform,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of a tile, float32 `[rows]`, and how they move with the head's product `[rows, vocab]`, in its type.

    Softmax less one at the target, weighted: everything in place, because the tile decides memory and time.
    """
    tile = transform.apply_(torch.nn.functional.linear(hidden, *head).float())
    slope = transform.slope(tile)
    index = targets[:, None]
    largest = tile.amax(dim=-1, keepdim=True)
    wanted = tile.gather(1, index) - largest
    total = tile.sub_(largest).exp_().sum(dim=-1, keepdim=True)
    nll = (total.log() - wanted).squeeze(1)
    gradient = tile.mul_(weights[:, None] / total)
    at_target = weights * torch.expm1(-nll)
    if isinstance(slope, torch.Tensor):
        at_target = at_target * slope.gather(1, index).squeeze(1)
        gradient.mul_(slope)
    elif slope != 1.0:
        at_target = at_target * slope
        gradient.mul_(slope)
    low = gradient.to(hidden.dtype)
    # Written, not added: adding at indices has no deterministic form on a GPU.
    low[torch.arange(len(targets), device=targets.device), targets] = at_target.to(low.dtype)
    return nll, low


@cache
def _fused_tile_gradient() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    # Dynamic, because a tile has as many rows as trained tokens fall to it.
    return torch.compile(_tile_gradient, fullgraph=True, dynamic=True)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`total += left @ right`, summed in float32 whatever the operands' type is."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left.float(), right.float())


@contextmanager
def tapped(head: torch.nn.Linear) -> Iterator[list[torch.Tensor]]:
    """Inside, `head` computes nothing: what it was given is collected, exactly as the model prepared it.

    Unlike `logits_to_keep`, this works for every model and for rows of a padded batch.
    """
    seen: list[torch.Tensor] = []
    columns = head.weight.shape[0]

    def collect(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden)
        return hidden.new_empty(*hidden.shape[:-2], 0, columns)

    object.__setattr__(head, "forward", collect)
    try:
        yield seen
    finally:
        object.__delattr__(head, "forward")
