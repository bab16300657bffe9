"""The nouns that travel between the stages: plain frozen values, and the Arrow schema of a token batch.

A conversation becomes samples (text with segments), samples become documents (ids with spans), documents are
planned into packs. Each is defined here once; nothing else writes `-100`, a role's name or a span kind's number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

IGNORE_INDEX: Final = -100
"""The label of a position that the loss does not count (the convention of torch's cross-entropy)."""

Json = Any
"""A JSON value as `json.loads` gives it: key order kept, absent and null told apart."""


class Role(StrEnum):
    """Who speaks in a message."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Severity(StrEnum):
    """An error makes a row bad; a warning is reported and the row is kept."""

    ERROR = "error"
    WARNING = "warning"


class SpanKind(IntEnum):
    """Why a run of tokens is, or is not, trained. The numbers are on disk: never reuse one."""

    HEADER = 0
    """Written by the template: role headers, default system prompts, the generation prompt."""
    SYSTEM = 1
    USER = 2
    TOOL_RESULT = 3
    TOOL_SCHEMA = 4
    """The `tools` of the row, as the template shows them to the model."""
    COMPLETION = 5
    """What the model must emit, without its stop token. Trained."""
    STOP = 6
    """The token that ends a completion. Trained."""
    SEPARATOR = 7
    """What the template writes after a stop token, before the next header."""
    HISTORY = 8
    """An assistant turn that is context here and trained in another sample (or by policy not at all)."""
    WEIGHT_ZERO = 9
    """An assistant turn whose message has weight 0."""
    MASKED = 10
    """Inside a trained turn, masked by policy (reasoning or tool calls)."""


TRAINED_KINDS: Final = frozenset({SpanKind.COMPLETION, SpanKind.STOP})
"""The mask is 1 exactly on spans of these kinds."""


@dataclass(frozen=True, slots=True, order=True)
class RowAddress:
    """Where a row came from: the file as the user named it, and its line, from 1 (its number where it is no line)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong, at its place: `str(finding)` is `file:line:/json/pointer: what [code]`.

    Of a whole row, whose pointer is empty, it is `file:line: what [code]`.
    """

    code: str
    severity: Severity
    address: RowAddress
    pointer: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.address}:{self.pointer}" if self.pointer else str(self.address)
        return f"{place}: {self.message} [{self.code}]"


@dataclass(frozen=True, slots=True)
class Conversation:
    """One validated row: what the template is given, and what sftprep is told beside it.

    `messages` are JSON objects as they came (key order kept, absent is not null), without the keys that only
    sftprep reads; `weights` has one float a message (1.0 where the row says nothing; only assistant weights matter).
    """

    address: RowAddress
    messages: Sequence[Mapping[str, Json]]
    weights: Sequence[float]
    tools: Sequence[Json] | None = None
    template_kwargs: Mapping[str, Json] = field(default_factory=dict)
    metadata: Mapping[str, Json] = field(default_factory=dict)


class Segment(NamedTuple):
    """A run of characters `[start, stop)` of a sample's text with one kind; `message` is -1 for none."""

    start: int
    stop: int
    kind: SpanKind
    message: int


@dataclass(frozen=True, slots=True)
class TrainedTurn:
    """A completion: `text[:start]` is the server's prompt, `text[start:stop]` ends in the stop token."""

    message: int
    start: int
    stop: int
    weight: float


@dataclass(frozen=True, slots=True)
class Sample:
    """A text in which every trained turn sees exactly its inference context.

    `segments` are ordered, disjoint and cover the text; `turns` are ordered and disjoint, never empty.
    """

    address: RowAddress
    index: int
    text: str
    segments: Sequence[Segment]
    turns: Sequence[TrainedTurn]
    template_kwargs: Mapping[str, Json] = field(default_factory=dict)
    """All keyword arguments that the template was given for this text, those chosen for the turn among them."""
    written_tokens: Sequence[tuple[int, int]] | None = None
    """Where the template wrote control tokens, `[start, stop)` each; what else looks like one is then plain text."""
    is_exact: bool = True
    """False where the turns are the template's own generation blocks: they are labelled, and nothing is proven."""


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A run of tokens `[start, stop)` of a document with one kind and one weight; `message` is -1 for none."""

    start: int
    stop: int
    kind: SpanKind
    message: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Document:
    """An encoded sample: `ids` int32 `[num_tokens]`; `spans` ordered, disjoint, covering all tokens."""

    address: RowAddress
    sample: int
    ids: npt.NDArray[np.int32]
    spans: Sequence[TokenSpan]
    template_kwargs: Mapping[str, Json] = field(default_factory=dict)

    @property
    def num_trained(self) -> int:
        """Tokens that the loss counts."""
        return sum(s.stop - s.start for s in self.spans if s.kind in TRAINED_KINDS)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One encoded text: `ids` int32 `[n]`; `offsets` int64 `[n, 2]`, character ranges (advice, not proof)."""

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]


class Engine(Protocol):
    """A tokenizer: text to ids, without adding any special token of its own."""

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode each text as a server encodes a rendered prompt."""

    def encode_middle(self, text: str) -> Encoded:
        """Encode a text as it stands in the middle of another: no prefix space is added."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens shown."""

    def normalise(self, text: str) -> str:
        """The text as the tokenizer's normaliser changes it (NFC, for one) before it cuts it."""

    def as_written(self, text: str, written: Sequence[tuple[int, int]]) -> tuple[Engine, str]:
        """An engine that reads as control tokens only those `[start, stop)`, and the text as that engine wants it.

        In that text each of them is one private character; everything else is read as plain text, whatever it looks
        like. MaskError `control-token` where the text itself holds such a character.
        """

    def cuts(self, token: str) -> bool:
        """Whether a text is an added token at which every encode is cut: what follows it is encoded as if alone."""


@dataclass(frozen=True, slots=True)
class PackPlan:
    """Which documents share a row: pack `i` holds `order[offsets[i]:offsets[i + 1]]`. Both int64."""

    order: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    @property
    def num_packs(self) -> int:
        """Rows that will be written."""
        return len(self.offsets) - 1


TOKEN_BATCH_SCHEMA: Final = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("span_starts", pa.list_(pa.int32()), nullable=False),
        pa.field("span_kinds", pa.list_(pa.int8()), nullable=False),
        pa.field("span_messages", pa.list_(pa.int32()), nullable=False),
        pa.field("span_weights", pa.list_(pa.float32()), nullable=False),
        pa.field("doc_file", pa.int32(), nullable=False),
        pa.field("doc_line", pa.int64(), nullable=False),
        pa.field("doc_sample", pa.int32(), nullable=False),
        pa.field("doc_kwargs", pa.string(), nullable=False),
    ]
)
"""One document a row. Span `i` reaches from `span_starts[i]` to the next start (the last one to the end);
`doc_kwargs` is the template's keyword arguments as JSON with sorted keys."""


def span_stops(
    starts: npt.NDArray[np.integer[Any]], offsets: npt.NDArray[np.int64], ends: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.integer[Any]]:
    """Where spans end that reach to the next of their document, the last one to the document's end, `[spans]`.

    `offsets` `[docs + 1]` say whose span each is; `ends` `[docs]` count from where `starts` `[spans]` do.
    """
    stops = np.append(starts[1:], 0)[: len(starts)]
    stops[offsets[1:] - 1] = ends
    return stops
