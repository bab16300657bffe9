"""A shard row as people see it: tokens with their text, their reason and their origin."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from sftprep.data import SpanKind


@dataclass(frozen=True, slots=True)
class TokenView:
    """Tokens shown together: one, or several that make up one character. `text` has special tokens spelled out."""

    ids: tuple[int, ...]
    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class SpanView:
    """A run of tokens with one reason; `origin` is `file:line`."""

    kind: SpanKind
    message: int
    trained: bool
    origin: str
    starts_document: bool
    tokens: tuple[TokenView, ...]

    @property
    def reason(self) -> str:
        """Why these tokens are, or are not, trained, in words."""
        return REASONS[self.kind]


@dataclass(frozen=True, slots=True)
class RowView:
    """A shard row."""

    index: int
    num_tokens: int
    num_trained: int
    spans: tuple[SpanView, ...]


REASONS = {
    SpanKind.HEADER: "not trained: the template writes it",
    SpanKind.SYSTEM: "not trained: the system prompt",
    SpanKind.USER: "not trained: the user's text",
    SpanKind.TOOL_RESULT: "not trained: a tool's result",
    SpanKind.TOOL_SCHEMA: "not trained: the tools shown to the model",
    SpanKind.COMPLETION: "trained: the model must write it",
    SpanKind.STOP: "trained: the stop token",
    SpanKind.SEPARATOR: "not trained: written after the stop token",
    SpanKind.HISTORY: "not trained: an earlier answer as context, trained in another document or not at all",
    SpanKind.WEIGHT_ZERO: "not trained: the message has weight 0",
    SpanKind.MASKED: "not trained: masked by policy",
}


def view_row(batch: pa.RecordBatch, *, index: int, sources: Sequence[str], tokenizer: Tokenizer) -> RowView:
    """A batch of one row, decoded; `sources` are the names that `doc_files` index."""
    row = {name: batch[name][0].as_py() for name in batch.schema.names}
    borders = [0, *itertools.accumulate(row["seq_lengths"])]
    stops = [*row["span_starts"][1:], len(row["input_ids"])]
    weights = row.get("weights") or [float(mask) for mask in row["assistant_masks"]]
    spans: list[SpanView] = []
    document = -1
    for number, (start, stop) in enumerate(zip(row["span_starts"], stops, strict=True)):
        starts = start in borders
        document += starts
        kind = SpanKind(row["span_kinds"][number])
        spans.append(
            SpanView(
                kind=kind,
                message=row["span_messages"][number],
                trained=any(row["assistant_masks"][start:stop]),  # what is trained, not what should be
                origin=f"{sources[row['doc_files'][document]]}:{row['doc_lines'][document]}",
                starts_document=starts,
                tokens=_tokens(row["input_ids"][start:stop], weights[start:stop], tokenizer),
            )
        )
    return RowView(index, len(row["input_ids"]), sum(row["assistant_masks"]), tuple(spans))


def _tokens(ids: Sequence[int], weights: Sequence[float], tokenizer: Tokenizer) -> tuple[TokenView, ...]:
    """Ids with their texts; tokens that hold parts of one character are kept together until it is whole."""
    stream = DecodeStream(skip_special_tokens=False)
    views: list[TokenView] = []
    waiting: list[int] = []
    for token, weight in zip(ids, weights, strict=True):
        waiting.append(token)
        text = stream.step(tokenizer, token)
        if text is not None:
            views.append(TokenView(tuple(waiting), text, weight))
            waiting = []
    if waiting:
        views.append(TokenView(tuple(waiting), tokenizer.decode(waiting, skip_special_tokens=False), weights[-1]))
    return tuple(views)
