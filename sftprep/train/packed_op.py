"""Attention over packed documents as one opaque operation: a compiled graph sees its shapes, never its documents.

How many documents a pack has, and how long they are, differs from pack to pack. A graph that saw it would be compiled
again for each; this one is given two tensors whose shape is always the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch.library import custom_op

_aten: Final = torch.ops.aten


@custom_op(
    "sftprep::packed_attention",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, Tensor extent, float scale, int window) "
    "-> (Tensor, Tensor)",
)
def packed_attention(*operands: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention within each document; a query sees the `window` keys up to itself, all of them where it is 0.

    `query` `[T, heads, dim]`, `key` and `value` `[T, key_heads, dim]`, contiguous; half precision on CUDA.
    `cu_seqlens` int32, at least documents + 1 long, and `extent` int64 `[2]` on the CPU: how many documents there are,
    and the tokens of the longest. The documents cover all tokens. The output `[T, heads, dim]`, and the logarithms of
    the softmax sums, at least float32 `[heads, T]`.
    """
    query, key, value, *_ = operands
    documents = _Documents.of(*operands[3:])
    if query.is_cuda:
        return flash(query, key, value, documents=documents)
    output, sums = torch.empty_like(query), _sums_like(query)
    for part in documents.parts():
        q, k, v = (_batched(tensor[part]) for tensor in (query, key, value))
        found = _aten._scaled_dot_product_flash_attention_for_cpu(
            q, _as_many(k, q), _as_many(v, q), **documents.terms(q)
        )
        output[part] = found[0][0].transpose(0, 1)
        sums[:, part] = found[1][0]
    return output, sums


@custom_op(
    "sftprep::packed_attention_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor output, Tensor sums, "
    "Tensor cu_seqlens, Tensor extent, float scale, int window) -> (Tensor, Tensor, Tensor)",
)
def packed_attention_backward(*operands: Any) -> tuple[torch.Tensor, ...]:
    """The gradients of query, key and value, shaped as they are."""
    *saved, sums = operands[:6]
    documents = _Documents.of(*operands[6:])
    if sums.is_cuda:
        return flash_backward(*saved, sums, documents=documents)
    gradients = tuple(torch.empty_like(tensor) for tensor in saved[1:4])
    for part in documents.parts():
        d, q, k, v, o = (_batched(tensor[part]) for tensor in saved)
        found = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            d, q, _as_many(k, q), _as_many(v, q), o, sums[None, :, part], **documents.terms(q)
        )
        for total, one in zip(gradients, found, strict=True):
            # Query heads that share a key head, [heads, L, dim], are next to each other.
            total[part] = one[0].unflatten(0, (total.shape[1], -1)).sum(dim=1).transpose(0, 1)
    return gradients


@packed_attention.register_fake
def _(*operands: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(operands[0]), _sums_like(operands[0])


@packed_attention_backward.register_fake
def _(*operands: Any) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in operands[1:4])


@dataclass(frozen=True, slots=True)
class _Documents:
    """Where they begin and end, int32 `[documents + 1]`, and how their tokens see each other."""

    offsets: torch.Tensor
    longest: int
    scale: float
    window: int

    @classmethod
    def of(cls, cu_seqlens: torch.Tensor, extent: torch.Tensor, scale: float, window: int) -> _Documents:
        count, longest = extent.tolist()
        return cls(cu_seqlens[: count + 1], longest, scale, window)

    def parts(self) -> Iterator[slice]:
        return (slice(start, stop) for start, stop in pairwise(self.offsets.tolist()))

    def terms(self, query: torch.Tensor) -> dict[str, Any]:
        """How a CPU's kernel is told of one document, `query` `[1, heads, L, dim]`: a window is a mask to it."""
        return {
            "dropout_p": 0.0,
            "is_causal": not self.window,
            "attn_mask": _band(query, self.window) if self.window else None,
            "scale": self.scale,
        }

    def kernel(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How a GPU's kernel is told; its window does not count the query's own key."""
        window = {"window_size_left": self.window - 1 if self.window else -1, "window_size_right": 0}
        places = self.offsets, self.offsets, self.longest, self.longest, 0.0, not self.window
        return places, {"scale": self.scale, **window}


def flash(*operands: torch.Tensor, documents: _Documents) -> tuple[torch.Tensor, torch.Tensor]:
    """The variable-length kernel of a GPU, as `torch.nn.attention.varlen` calls it."""
    places, named = documents.kernel()
    output, sums, *_ = _aten._flash_attention_forward(*operands, *places, return_debug_mask=False, **named)
    return output, sums


def flash_backward(*operands: torch.Tensor, documents: _Documents) -> tuple[torch.Tensor, ...]:
    """Its backward pass. Without dropout nothing was drawn: it wants a seed's places and reads neither."""
    places, named = documents.kernel()
    seed = torch.zeros(2, dtype=torch.uint64, device=operands[0].device)
    unused = torch.empty(0, device=operands[0].device)
    return tuple(_aten._flash_attention_backward(*operands, *places, seed, unused, **named))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, key, value, cu_seqlens, extent, scale, window = inputs
    ctx.save_for_backward(query, key, value, *output, cu_seqlens, extent)
    ctx.terms = scale, window


def _backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    found = packed_attention_backward(gradient.contiguous(), *ctx.saved_tensors, *ctx.terms)
    return (*found, None, None, None, None)


packed_attention.register_autograd(_backward, setup_context=_setup_context)


def _sums_like(query: torch.Tensor) -> torch.Tensor:
    precise = torch.promote_types(query.dtype, torch.float32)
    return torch.empty(query.shape[1], query.shape[0], dtype=precise, device=query.device)


def _batched(tensor: torch.Tensor) -> torch.Tensor:
    """`[L, heads, dim]` as `[1, heads, L, dim]`."""
    return tensor.transpose(0, 1)[None]


def _as_many(tensor: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Key or value heads, repeated to be as many as the query's."""
    return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)


def _band(query: torch.Tensor, window: int) -> torch.Tensor:
    """What is added to scores `[L, L]` where a query sees a window of keys only."""
    length = query.shape[2]
    allowed = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - window)
    return torch.zeros(length, length, dtype=query.dtype).masked_fill(~allowed, float("-inf"))
