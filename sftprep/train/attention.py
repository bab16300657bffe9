"""Attention over packed documents: each attends within itself only, and every call is counted.

Registered with transformers as `sftprep_segments`, for attention only and not for masks, so that the model builds no
mask at all. The segments travel as a keyword argument from the model's forward to each layer; a layer that does not
get them raises, because attention over the whole row would train on other documents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.nn import functional
from transformers import AttentionInterface

from sftprep.errors import TrainError
from sftprep.train.packed_op import packed_attention

ATTENTION_NAME: Final = "sftprep_segments"

_KERNEL_MAX_HEAD_DIM: Final = 256
_ALIEN_ARGUMENTS: Final = ("position_bias", "cache", "past_key_values")
"""Arguments that change attention in a way that this module does not implement."""


@dataclass(slots=True)
class Segments:
    """The documents of one packed row, and how often attention was called with them.

    `offsets` has one more entry than there are documents; `cu_seqlens` holds the same numbers, int32 on the device.
    With an `extent` (int64 `[2]` on the CPU: documents, tokens of the longest) shapes are those of every pack:
    `cu_seqlens` has an entry more than there are tokens, the last one repeated, and calls are not counted.
    """

    offsets: tuple[int, ...]
    cu_seqlens: torch.Tensor
    max_length: int
    num_calls: int = 0
    extent: torch.Tensor | None = None
    _bands: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def keywords(self) -> dict[str, Any]:
        """What a model's forward is called with; layers with kernels of their own read the first four."""
        if self.extent is not None:
            return {ATTENTION_NAME: self}
        return {
            "cu_seq_lens_q": self.cu_seqlens,
            "cu_seq_lens_k": self.cu_seqlens,
            "max_length_q": self.max_length,
            "max_length_k": self.max_length,
            ATTENTION_NAME: self,
        }

    @property
    def num_tokens(self) -> int:
        """Of the pack; a compiled graph, which may see no document's border, asks for it by shape."""
        return self.offsets[-1] if self.extent is None else self.cu_seqlens.shape[0] - 1

    def band(self, length: int, *, window: int) -> torch.Tensor:
        """True where a query may look: itself and the `window - 1` keys before it. Bool `[length, length]`."""
        key = (length, window)
        if key not in self._bands:
            ones = torch.ones(length, length, dtype=torch.bool, device=self.cu_seqlens.device)
            self._bands[key] = ones.tril().triu(1 - window)
        return self._bands[key]


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a layer asks of its attention; `window` 0 means all keys before, `softcap` 0 means none."""

    scale: float
    window: int
    softcap: float
    sinks: torch.Tensor | None
    dropout: float


def register() -> None:
    """Make `sftprep_segments` known to transformers."""
    AttentionInterface.register(ATTENTION_NAME, segment_attention)


def segment_attention(
    module: torch.nn.Module,
    *tensors: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document.

    Query, key and value are `[1, heads, T, dim]`; the output is `[1, T, heads, dim_value]`.

    Raises:
        TrainError: `attention-without-segments`, `attention-unsupported`.
    """
    query, key, value, *mask = tensors
    segments = keywords.get(ATTENTION_NAME)
    if not isinstance(segments, Segments):
        raise _unsupported("a layer does not hand the packed segments on", code="attention-without-segments")
    if attention_mask is not None or any(given is not None for given in mask):
        raise _unsupported("a layer brings an attention mask of its own")
    if query.shape[2] != segments.num_tokens or key.shape[2] != query.shape[2] or query.shape[0] != 1:
        raise _unsupported(f"queries of shape {tuple(query.shape)} do not fit the pack")
    alien = [name for name in _ALIEN_ARGUMENTS if keywords.get(name) is not None]
    causal = keywords.get("is_causal")
    if alien or not (getattr(module, "is_causal", True) if causal is None else causal):
        raise _unsupported(f"a layer asks for {', '.join(alien) or 'attention that is not causal'}")
    terms = _terms(module, query, keywords)
    fits = _fits_operation(query, value, terms)
    if segments.extent is None:
        segments.num_calls += 1
        attend = _operation if fits and _has_kernel(query) else _loop
        return attend(query, key, value, segments=segments, terms=terms), None
    if not fits:
        raise TrainError(
            "attention with sinks, soft-capping, dropout or values of another size, and float32 on a GPU, "
            "cannot be compiled",
            code="compile-unsupported",
            hint="leave out --compile",
        )
    return _operation(query, key, value, segments=segments, terms=terms), None


def _terms(module: torch.nn.Module, query: torch.Tensor, keywords: dict[str, Any]) -> _Terms:
    scaling = keywords.get("scaling")
    return _Terms(
        scale=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
        window=int(keywords.get("sliding_window") or 0),
        softcap=float(keywords.get("softcap") or 0.0),
        sinks=keywords.get("s_aux"),
        dropout=float(keywords.get("dropout") or 0.0) if module.training else 0.0,
    )


def _loop(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, segments: Segments, terms: _Terms
) -> torch.Tensor:
    """One attention call a document: a dense mask over the row costs ten times as much on a CPU."""
    attend = _explicit if terms.softcap or terms.sinks is not None else _sdpa
    outputs = []
    for start, stop in zip(segments.offsets[:-1], segments.offsets[1:], strict=True):
        parts = (query[:, :, start:stop], key[:, :, start:stop], value[:, :, start:stop])
        outputs.append(attend(*parts, segments=segments, terms=terms).transpose(1, 2))
    return torch.cat(outputs, dim=1)


def _sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, segments: Segments, terms: _Terms
) -> torch.Tensor:
    length = query.shape[2]
    banded = 0 < terms.window < length
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=segments.band(length, window=terms.window) if banded else None,
        is_causal=not banded,
        dropout_p=terms.dropout,
        scale=terms.scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def _explicit(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, segments: Segments, terms: _Terms
) -> torch.Tensor:
    """Written out, for score soft-capping and attention sinks, which no fused kernel here has."""
    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(2, 3)) * terms.scale
    if terms.softcap:
        scores = torch.tanh(scores / terms.softcap) * terms.softcap
    allowed = segments.band(length, window=terms.window or length)
    scores = scores.float().masked_fill(~allowed, float("-inf"))
    if terms.sinks is not None:
        sinks = terms.sinks.float().reshape(1, -1, 1, 1).expand(scores.shape[0], -1, length, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., :length].to(value.dtype)
    return functional.dropout(weights, p=terms.dropout) @ value


def _fits_operation(query: torch.Tensor, value: torch.Tensor, terms: _Terms) -> bool:
    """Whether `packed_attention` computes this; on a GPU, for head sizes that its kernel takes."""
    plain = not (terms.softcap or terms.dropout) and terms.sinks is None and query.shape[-1] == value.shape[-1]
    low = _compute_type(query) in (torch.float16, torch.bfloat16) and query.shape[-1] <= _KERNEL_MAX_HEAD_DIM
    return plain and (low or not query.is_cuda)


def _has_kernel(query: torch.Tensor) -> bool:
    """Whether one call attends within all documents; elsewhere the loop is as fast, and torch knows its gradient."""
    return query.is_cuda


def _compute_type(query: torch.Tensor) -> torch.dtype:
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _operation(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, segments: Segments, terms: _Terms
) -> torch.Tensor:
    """All documents at once, as an operation of which a compiled graph sees nothing but shapes."""
    dtype = _compute_type(query)
    q, k, v = (tensor[0].transpose(0, 1).to(dtype).contiguous() for tensor in (query, key, value))
    extent = segments.extent
    if extent is None:
        extent = torch.tensor([len(segments.offsets) - 1, segments.max_length])
    output: torch.Tensor = packed_attention(q, k, v, segments.cu_seqlens, extent, terms.scale, terms.window)[0]
    return output.unsqueeze(0).to(value.dtype)


def _unsupported(message: str, *, code: str = "attention-unsupported") -> TrainError:
    return TrainError(message, code=code, hint="the self-test turns to one document a row for such models")
