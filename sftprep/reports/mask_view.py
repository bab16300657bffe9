"""A shard row as people see it: tokens with their text, their reason and their origin."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from sftprep.data import SpanKind

ROLES: Final = {
    SpanKind.SYSTEM: "system",
    SpanKind.USER: "user",
    SpanKind.TOOL_RESULT: "tool",
    SpanKind.TOOL_SCHEMA: "tool",
    SpanKind.COMPLETION: "assistant",
    SpanKind.STOP: "assistant",
    SpanKind.HISTORY: "assistant",
    SpanKind.WEIGHT_ZERO: "assistant",
    SpanKind.MASKED: "assistant",
}
"""Who wrote the tokens of a reason; the template wrote those of the others."""

_UNKNOWN: Final = "‹no such token›"
HIDDEN: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""Control characters but tab and line feed, and characters that reorder, break or hide text where it is shown."""


@dataclass(frozen=True, slots=True)
class TokenView:
    """Tokens shown together: one, or several that make up one character. `text` has special tokens spelled out.

    `position` counts from the document's first token.
    """

    ids: tuple[int, ...]
    text: str
    weight: float
    position: int
    trained: bool
    special: bool


@dataclass(frozen=True, slots=True)
class SpanView:
    """A run of tokens with one reason; `origin` is `file:line`."""

    kind: SpanKind
    message: int
    trained: bool
    origin: str
    document: int
    starts_document: bool
    tokens: tuple[TokenView, ...]

    @property
    def reason(self) -> str:
        """Why these tokens are, or are not, trained, in words; where the mask contradicts the reason, that it does."""
        reason = REASONS[self.kind]
        contradicted = self.trained != reason.startswith("trained")
        return (
            f"{'trained' if self.trained else 'not trained'} against its reason ({reason})" if contradicted else reason
        )


@dataclass(frozen=True, slots=True)
class PromptView:
    """The server's prompt of a trained turn beside the row's: equal, or differing from token `position` on.

    `server` are the server's tokens from there on, as (id, text); empty where they are equal.
    """

    document: int
    message: int
    num_tokens: int
    state: Literal["equal", "differing", "unprovable"]
    position: int = -1
    server: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RowView:
    """A shard row; `chosen` says why it is shown, reasons with a comma between them.

    `prompts` are there where the set was proven.
    """

    index: int
    num_tokens: int
    num_trained: int
    spans: tuple[SpanView, ...]
    chosen: str = "drawn"
    prompts: tuple[PromptView, ...] = ()


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


def visible(text: str) -> str:
    """Text in which characters that would move, reorder or hide what is shown are spelled out as ‹U+202E›."""
    return HIDDEN.sub(lambda match: f"‹U+{ord(match[0]):04X}›", text)


def view_row(
    batch: pa.RecordBatch, *, index: int, sources: Sequence[str], tokenizer: Tokenizer, chosen: str = "drawn"
) -> RowView:
    """A batch of one row, decoded; `sources` are the names that `doc_files` index."""
    row = {name: batch[name][0].as_py() for name in batch.schema.names}
    borders = [0, *itertools.accumulate(row["seq_lengths"])]
    stops = [*row["span_starts"][1:], len(row["input_ids"])]
    weights = row.get("weights") or [float(mask) for mask in row["assistant_masks"]]
    special = frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    spans: list[SpanView] = []
    document = -1
    for number, (start, stop) in enumerate(zip(row["span_starts"], stops, strict=True)):
        starts = start in borders
        document += starts
        tokens = _Tokens(row["input_ids"], weights, row["assistant_masks"], special)
        spans.append(
            SpanView(
                kind=SpanKind(row["span_kinds"][number]),
                message=row["span_messages"][number],
                trained=any(row["assistant_masks"][start:stop]),  # what is trained, not what should be
                origin=f"{sources[row['doc_files'][document]]}:{row['doc_lines'][document]}",
                document=document,
                starts_document=starts,
                tokens=tokens.views((start, stop), first=borders[document], tokenizer=tokenizer),
            )
        )
    return RowView(index, len(row["input_ids"]), sum(row["assistant_masks"]), tuple(spans), chosen)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """A row's tokens side by side."""

    ids: Sequence[int]
    weights: Sequence[float]
    masks: Sequence[int]
    special: frozenset[int]

    def views(self, span: tuple[int, int], *, first: int, tokenizer: Tokenizer) -> tuple[TokenView, ...]:
        """The tokens of a span; those that hold parts of one character are kept together until it is whole."""
        start, stop = span
        stream = DecodeStream(skip_special_tokens=False)
        views: list[TokenView] = []
        begin = start
        for at in range(start, stop):
            known = self.ids[at] >= 0 and tokenizer.id_to_token(self.ids[at]) is not None
            text = stream.step(tokenizer, self.ids[at]) if known else _UNKNOWN
            if text is None and at + 1 == stop:
                text = tokenizer.decode(list(self.ids[begin:stop]), skip_special_tokens=False)
            if text is not None:
                views.append(self._view((begin, at), text, first))
                begin = at + 1
        return tuple(views)

    def _view(self, ends: tuple[int, int], text: str, first: int) -> TokenView:
        begin, last = ends
        return TokenView(
            ids=tuple(self.ids[begin : last + 1]),
            text=text,
            weight=self.weights[last],
            position=begin - first,
            trained=bool(self.masks[last]),
            special=self.ids[last] in self.special,
        )
