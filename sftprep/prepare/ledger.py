"""The accounts of a pack: every row read is packed or left out, every token counted by its reason."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sftprep.data import SpanKind
from sftprep.prepare.chunk import OVER_LENGTH, RowsRead
from sftprep.prepare.chunk_account import ChunkAccount

Array = npt.NDArray[Any]


@dataclass(slots=True)
class SourceAccount:
    """Of one source; all but `num_rows` count with repetition."""

    num_rows: int = 0
    num_taken: int = 0
    num_documents: int = 0
    num_left_out: int = 0


@dataclass(slots=True)
class LeftOutAccount:
    """Rows of which nothing is packed, each counted once."""

    num_rows: int = 0
    by_code: Counter[str] = field(default_factory=Counter)
    hints: dict[str, str] = field(default_factory=dict)
    num_tokens: int = 0
    """Tokens of rows that are exact and too long."""
    longest: int = 0

    @property
    def num_over_length(self) -> int:
        """Rows that are exact and too long."""
        return self.by_code[OVER_LENGTH]


@dataclass(slots=True)
class OverLengthAccount:
    """Rows that are exact and too long, whatever was done about it; tokens count with repetition."""

    num_rows: int = 0
    num_left_out: int = 0
    num_trained: int = 0
    """Trained tokens of the whole rows."""
    num_trained_lost: int = 0


class Ledger:
    """Adds up chunks as they come; a document costs 16 bytes, a row 20, whatever its tokens."""

    def __init__(self, num_sources: int) -> None:
        self.sources = [SourceAccount() for _ in range(num_sources)]
        self.left_out = LeftOutAccount()
        self.over_length = OverLengthAccount()
        self.classes: Counter[str] = Counter()
        self.remarks: Counter[str] = Counter()
        self.rendering: Counter[str] = Counter()
        self.num_taken_rows = 0
        """Rows taken at least once, each counted once."""
        self.num_conversations = 0
        self.num_repeated_tokens = 0
        self.has_weights = False
        self.kwargs: dict[str, None] = {}
        """The distinct keyword arguments of documents (JSON), in order of first appearance."""
        self._warnings: Counter[str] = Counter()
        self._said_once: set[tuple[str, str, str]] = set()
        self._by_kind = np.zeros(len(SpanKind), dtype=np.int64)
        self._documents = (array("i"), array("i"), array("i"))
        self._rows = (array("i"), array("q"), array("i"))

    def add(self, account: ChunkAccount) -> None:
        """Count the rows that were read, and what became of them."""
        self._add_read(account.read)
        self._add_exact(account)
        self._add_left_out(account)
        self.classes.update(account.classes)
        self.remarks.update(account.remarks)
        self.rendering.update(account.rendering)
        self._add_documents(account)

    @property
    def warnings(self) -> Counter[str]:
        """Warnings of the rows that were read, by code."""
        return self._warnings + Counter(code for _, code, _ in self._said_once)

    @property
    def times(self) -> Array:
        """How often each document is taken, int32 `[documents]`, in the order they were added."""
        return np.asarray(self._documents[0], dtype=np.int32)

    @property
    def lengths(self) -> Array:
        """Tokens of each document, int32 `[documents]`."""
        return np.asarray(self._documents[1], dtype=np.int32)

    @property
    def trained_lengths(self) -> Array:
        """Trained tokens of each document, int32 `[documents]`."""
        return np.asarray(self._documents[2], dtype=np.int32)

    @property
    def row_lengths(self) -> tuple[Array, Array]:
        """Of exact conversations, too long ones among them, with repetition: longest document, and all tokens."""
        times = np.asarray(self._rows[2])
        longest, num_tokens = np.asarray(self._rows[0]), np.asarray(self._rows[1])
        return np.repeat(longest, times), np.repeat(num_tokens, times)

    @property
    def tokens_by_kind(self) -> dict[str, int]:
        """Tokens by span kind, lower-case names, in the kinds' order, those that occur."""
        return {kind.name.lower(): int(self._by_kind[kind]) for kind in SpanKind if self._by_kind[kind]}

    def _add_read(self, read: RowsRead) -> None:
        account = self.sources[read.source]
        account.num_rows += read.num_rows
        account.num_taken += read.num_taken
        self.num_taken_rows += read.num_taken_rows
        self._warnings.update(read.warnings)
        self._said_once.update(read.said_once)

    def _add_exact(self, account: ChunkAccount) -> None:
        sums = account.sums
        self.sources[account.read.source].num_documents += sums.num_documents
        self.num_conversations += sums.num_conversations
        self.num_repeated_tokens += sums.num_repeated_tokens
        self.over_length.num_rows += sums.num_too_long
        self.over_length.num_trained += sums.num_trained_too_long
        columns: tuple[Array, ...] = (account.row_longest, account.row_tokens, account.row_times)
        for column, values in zip(self._rows, columns, strict=True):
            column.frombytes(values.tobytes())

    def _add_left_out(self, account: ChunkAccount) -> None:
        sums, known, too_long = account.left_out, self.left_out, self.over_length
        self.sources[account.read.source].num_left_out += sums.num_taken
        known.num_rows += sums.num_rows
        known.by_code.update(sums.by_code)
        for code, hint in sums.hints.items():
            known.hints.setdefault(code, hint)
        known.num_tokens += sums.num_tokens
        known.longest = max(known.longest, sums.longest)
        too_long.num_rows += sums.num_too_long
        too_long.num_left_out += sums.num_too_long
        too_long.num_trained += sums.num_trained
        too_long.num_trained_lost += sums.num_trained_lost

    def _add_documents(self, account: ChunkAccount) -> None:
        self._by_kind += account.by_kind
        self.has_weights |= account.has_weights
        self.kwargs.update(dict.fromkeys(account.kwargs))
        columns = (account.times, account.lengths, account.trained)
        for column, values in zip(self._documents, columns, strict=True):
            column.frombytes(values.tobytes())
