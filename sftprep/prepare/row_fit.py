"""What is known of a row that was rendered and encoded for a model, apart from what does it: that is slow to import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sftprep.data import Conversation, Finding

FIT_CODES: Final = frozenset(
    {
        "contradicted",
        "control-token",
        "document-too-long",
        "double-bos",
        "early-stop",
        "field-lost",
        "field-repeated",
        "foreign-text",
        "ill-posed",
        "lossy-tokenizer",
        "no-prompt",
        "no-terminator",
        "nothing-trained",
        "over-length",
        "stop-not-one-token",
        "template-raised",
        "template-syntax",
        "tools-lost",
        "trace-differs",
    }
)
"""What can keep a row from being exact."""


@dataclass(frozen=True, slots=True)
class RowFit:
    """A row that is exact: tokens of all its documents, those that are trained, and those of its longest document."""

    num_tokens: int
    num_trained: int
    longest: int


FitRow = Callable[[Conversation], tuple[RowFit | None, tuple[Finding, ...]]]
"""The lengths of a row, None where it cannot be exact, and what is wrong with it."""
