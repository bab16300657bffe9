"""What goes into a chunk and what comes out of it: the unit of work, of retry and of resume."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.data import Conversation, Finding, RowAddress

OVER_LENGTH: Final = "over-length"
"""The code of a row with a document longer than --max-length."""

TURNS_LEFT_OUT: Final = "turns-left-out"
"""The code of a row of which some turns are packed, and others fit no row."""


@dataclass(frozen=True, slots=True)
class InputRow:
    """A row that is taken `times` times from source number `source`; no conversation where validation found errors."""

    source: int
    times: int
    address: RowAddress
    conversation: Conversation | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class LeftOutRow:
    """A row of which nothing is packed, and why; counts of tokens are 0 where it has no exact ones."""

    source: int
    times: int
    address: RowAddress
    findings: tuple[Finding, ...]
    num_tokens: int = 0
    longest: int = 0
    num_trained: int = 0
    """Trained tokens that are lost with it."""
    is_partial: bool = False
    """Only turns of it are left out; the rest is packed."""

    @property
    def code(self) -> str:
        """Of the first error, under which the row is counted."""
        return self.findings[0].code


EXACT_ROWS: Final = pa.schema(
    [
        pa.field(name, pa.int64(), nullable=False)
        for name in ("source", "times", "documents", "tokens", "longest", "repeated", "trained_whole")
    ]
)
"""Rows whose documents are packed, or were exact and too long, in their order; counts are of one time.

`longest` is the tokens of a row's longest document. `repeated` are the untrained tokens beyond those of the document
that has most of them, which is what rewritten history repeats; 0 for pieces. `trained_whole` are the trained tokens of
a row that is too long and packed in part or in pieces, whose `tokens` are the whole row's; else 0.
"""


@dataclass(frozen=True, slots=True)
class RowsRead:
    """What was read of a source to make a chunk, and what validation warned of."""

    source: int = 0
    num_rows: int = 0
    num_taken: int = 0
    """With repetition."""
    num_taken_rows: int = 0
    """Rows taken at least once, each counted once."""
    warnings: Counter[str] = field(default_factory=Counter)
    said_once: tuple[tuple[str, str, str], ...] = ()
    """File, code and pointer of the warnings that count once a file."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What became of a run of rows: documents once each, and how often each is taken, int64 `[documents]`."""

    documents: pa.RecordBatch
    times: npt.NDArray[np.int64]
    exact_rows: pa.RecordBatch
    """Of EXACT_ROWS."""
    left_out: tuple[LeftOutRow, ...]
    classes: Counter[str]
    """Trained turns by class, with repetition."""
    remarks: Counter[str]
    """What is exact and worth knowing, with repetition."""
    rendering: Counter[str] = field(default_factory=Counter)
    """Rows that a plan decided (`replayed`, those that it refuses among them) and those that were `traced`.

    Further the encodes that were `checked`, and by `engine …` the rows that it encoded and that were proven.
    """
    read: RowsRead = field(default_factory=RowsRead)
