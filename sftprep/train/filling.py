"""Packs of one length: what compiled layers ask for, because they are compiled anew for every other shape."""

from __future__ import annotations

from typing import Final

import torch

from sftprep.errors import TrainError
from sftprep.train.stream import MicroBatch

_PADDING_PIECE: Final = 256
"""Padding of a pack becomes documents of at most so many tokens: attention costs their squares."""


def filled_up(batch: MicroBatch, *, pad_id: int, length: int) -> MicroBatch:
    """The same packed batch with as many tokens as every other, `length`: documents of padding, never trained, follow.

    `cu_seqlens` gets an entry for every token and one more, so that it has one shape too, however many documents.

    Raises:
        TrainError: `row-too-long`.
    """
    used = batch["offsets"][-1]
    if used > length:
        raise TrainError(
            f"a pack has {used} tokens, the manifest allows {length}",
            code="row-too-long",
            hint="the shards are not what the manifest describes: pack again",
        )
    offsets = (*batch["offsets"], *range(min(used + _PADDING_PIECE, length), length, _PADDING_PIECE))
    offsets += (length,) if offsets[-1] < length else ()
    new = MicroBatch(**batch)
    new["offsets"], new["filled_up"] = offsets, True
    new["cu_seqlens"] = torch.tensor(offsets + (length,) * (length + 1 - len(offsets)), dtype=torch.int32)
    # At position 0: what a model makes of the largest position must not depend on padding.
    new["input_ids"] = _filled(batch["input_ids"], length, value=pad_id)
    new["position_ids"] = _filled(batch["position_ids"], length, value=0)
    return new


def _filled(tensor: torch.Tensor, length: int, *, value: int) -> torch.Tensor:
    # Written into a new tensor: a view that needs no padding would keep its strides, and strides are shape to a graph.
    filled = torch.full((1, length), value, dtype=tensor.dtype)
    filled[:, : tensor.shape[1]] = tensor
    return filled
