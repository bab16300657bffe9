"""Before the first step, on the real model and real rows: do packed documents see each other?

Contamination is silent, and the loss looks healthy. So nothing is believed here: each document's logits in a pack must
equal its logits alone, must not move when another document changes, and every attention layer must have been asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from transformers import PreTrainedModel

from sftprep.errors import TrainError
from sftprep.train.attention import ATTENTION_NAME, Segments
from sftprep.train.device import is_out_of_memory
from sftprep.train.forward import inputs, model_logits, to_device
from sftprep.train.stream import Row, collate_packed, collate_padded

_MAX_DOCUMENTS: Final = 4
_MAX_DOCUMENT_TOKENS: Final = 64
_SHORT_TOKENS: Final = 16
_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""In standard deviations of the logits. Contaminated documents differ by about 1; rounding stays far below."""
_MOVED: Final = {torch.float32: 1e-4, torch.bfloat16: 1e-2}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether packed rows may stay packed; `reason` says why not. Differences are in standard deviations."""

    isolated: bool
    reason: str
    difference: float
    moved: float
    num_tokens: int = 0


def probe_documents(rows: Sequence[Row], *, window: int = 0) -> list[Row]:
    """A few short documents of real rows; each longer than the sliding window where the rows have such."""
    limit = max(_MAX_DOCUMENT_TOKENS, window + _MAX_DOCUMENT_TOKENS // 2)
    documents = [document for row in rows for document in row.documents() if len(document.ids) > 1]
    longest = sorted(documents, key=lambda row: -len(row.ids))[:_MAX_DOCUMENTS]
    # A pack of one document has nothing to be told apart from: two halves of it serve as two documents.
    chosen = longest if len(longest) > 1 else [half for row in longest for half in _halves(row)]
    cut = [chosen[0], *(_cut(row, _MAX_DOCUMENT_TOKENS) for row in chosen[1:])] if chosen else []
    return [_cut(row, limit) for row in cut]


def shortened(documents: Sequence[Row]) -> list[Row]:
    """The first two of the probe documents, and few tokens of each: an eighth of the work of all."""
    return [_cut(row, _SHORT_TOKENS) for row in documents[:2]]


@torch.no_grad()
def check_segments(model: PreTrainedModel, documents: Sequence[Row], *, dtype: torch.dtype) -> Verdict:
    """Whether our attention keeps packed documents apart in this model, and computes what the model's own does.

    The model is left with our attention where it does, with its own where not.

    Raises:
        TrainError: `not-finite`.
    """
    alone = _alone(model, documents)
    with _evaluating(model):
        own = model.config._attn_implementation
        verdict = _compare(model, documents, alone=alone, dtype=dtype)
    if not verdict.isolated:
        model.set_attn_implementation(own)
    return verdict


@torch.no_grad()
def check_rows(model: PreTrainedModel, documents: Sequence[Row], *, dtype: torch.dtype, pad_id: int) -> None:
    """Padding on the right must not move a document's logits.

    Raises:
        TrainError: `not-isolated`, `not-finite`.
    """
    alone = _alone(model, documents)
    with _evaluating(model):
        logits = model_logits(model, to_device(collate_padded(documents, pad_id=pad_id), model.device))
    padded = torch.cat([line[: len(row.ids)] for line, row in zip(logits, documents, strict=True)])
    difference = _deviation(padded, alone)
    if not difference <= _TOLERANCE[dtype]:
        raise TrainError(
            f"padding changes this model's logits by {difference:.2g} standard deviations",
            code="not-isolated",
            hint="the model is not causal, or its layers see padding: it cannot be trained in batches here; "
            "pack with --no-packing and train with --batch-size 1",
        )


def _compare(model: PreTrainedModel, documents: Sequence[Row], *, alone: torch.Tensor, dtype: torch.dtype) -> Verdict:
    try:
        model.set_attn_implementation(ATTENTION_NAME)
        packed, segments = _packed(model, documents)
        changed, _ = _packed(model, [_other_ids(documents[0]), *documents[1:]])
    except (TrainError, ValueError, TypeError, RuntimeError, NotImplementedError, KeyError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        reason = error.message if isinstance(error, TrainError) else str(error).partition("\n")[0]
        return Verdict(isolated=False, reason=reason, difference=float("inf"), moved=float("inf"))
    first = len(documents[0].ids)
    difference, moved = _deviation(packed, alone), _deviation(packed[first:], changed[first:])
    num_layers = model.config.get_text_config().num_hidden_layers
    reason = ""
    if segments.num_calls != num_layers:
        reason = f"{segments.num_calls} of {num_layers} layers attend through the registered attention"
    elif not difference <= _TOLERANCE[dtype]:
        reason = f"packed logits differ from a document's own by {difference:.2g} standard deviations"
    elif not moved <= _MOVED[dtype]:
        reason = f"changing one document moves the others by {moved:.2g} standard deviations"
    return Verdict(not reason, reason, difference=difference, moved=moved, num_tokens=len(alone))


def _packed(model: PreTrainedModel, documents: Sequence[Row]) -> tuple[torch.Tensor, Segments]:
    """The logits of all documents in one row, `[T, vocab]`."""
    given = inputs(to_device(collate_packed(documents), model.device))
    logits: torch.Tensor = model(**given).logits
    return logits[0], given[ATTENTION_NAME]


def _alone(model: PreTrainedModel, documents: Sequence[Row]) -> torch.Tensor:
    """The logits of each document by itself, end to end, with the model's own attention. `[T, vocab]`.

    Raises:
        TrainError: `not-finite`.
    """
    with _evaluating(model):
        parts = [model_logits(model, to_device(collate_padded([row], pad_id=0), model.device))[0] for row in documents]
    logits = torch.cat(parts)
    if logits.isnan().any():
        raise TrainError(
            "the model's logits are no numbers before anything is trained",
            code="not-finite",
            hint="its weights are damaged, or too large for --dtype: download it again, or try --dtype float32",
        )
    return logits


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _deviation(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far logits `[T, vocab]` are apart, in their standard deviations: by the farthest logit in float32.

    By the farthest token's root mean square in shorter types: a token rounds to 0.02 or 0.05, but of its hundred
    thousand logits one is five times as far off, which would be called contamination (SmolLM2: 0.35).
    """
    error, spread = (found.float() - wanted.float()).abs(), wanted.float().std()
    farthest = error.max() if found.dtype is torch.float32 else error.square().mean(dim=-1).sqrt().max()
    return float(farthest / spread)


def _cut(row: Row, limit: int) -> Row:
    size = min(limit, len(row.ids))
    return replace(
        row,
        ids=row.ids[:size],
        trained=row.trained[:size],
        weights=row.weights[:size],
        lengths=np.array([size], dtype=np.int32),
    )


def _halves(row: Row) -> list[Row]:
    middle = len(row.ids) // 2
    tail = replace(row, ids=row.ids[middle:], trained=row.trained[middle:].copy(), weights=row.weights[middle:])
    tail.trained[0] = False
    return [_cut(row, middle), _cut(tail, len(tail.ids))]


def _other_ids(row: Row) -> Row:
    """The same length, and another token at every position."""
    return replace(row, ids=np.where(row.ids > 0, row.ids - 1, 1).astype(np.int32))
