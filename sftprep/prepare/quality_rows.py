"""The columns that the measures of quality keep of every row: numbers only, so that a million rows fit in memory."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sftprep.data import RowAddress
from sftprep.errors import UsageError
from sftprep.sources.compressed import STDIN
from sftprep.sources.paths import expand
from sftprep.stages.dialogue import RowText
from sftprep.stages.diversity import edge_keys, mask_variables, sequence_key
from sftprep.stages.near_duplicates import NUM_PERM, SHINGLE_WORDS, Clusters, Hashes, find_clusters, signatures
from sftprep.stages.words import ngram_hashes, text_digest, word_hashes, words

VIEWS: Final = ("prompts", "responses", "conversations")
TEMPLATES: Final = ("template", "same beginning", "same ending")
_BATCH: Final = 512


@dataclass(slots=True)
class View:
    """One text a row: exact digests, and signatures a batch at a time. Digest 0 is no text."""

    digests: array[int] = field(default_factory=lambda: array("Q"))
    tables: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    waiting: list[Hashes] = field(default_factory=list)

    def add(self, text: str) -> Hashes:
        """Keep a text's digest and signature; its shingles come back for whoever needs them too."""
        shingles = ngram_hashes(word_hashes(words(text)), n=SHINGLE_WORDS)
        self.digests.append((text_digest(text) or 1) if len(shingles) else 0)
        self.waiting.append(shingles)
        if len(self.waiting) == _BATCH:
            self._sign()
        return shingles

    def clusters(self, *, threshold: float) -> Clusters:
        """The texts in clusters of near duplicates. Once: the signatures are given up."""
        self._sign()
        table = np.concatenate([np.zeros((0, NUM_PERM), np.uint32), *self.tables])
        self.tables.clear()
        digests = as_hashes(self.digests)
        return find_clusters(table, digests=digests, present=digests != 0, threshold=threshold)

    def _sign(self) -> None:
        self.tables.append(signatures(self.waiting))
        self.waiting = []


@dataclass(slots=True)
class RowColumns:
    """All columns, one entry a row, in the order of the rows."""

    views: dict[str, View] = field(default_factory=lambda: {name: View() for name in VIEWS})
    templates: dict[str, array[int]] = field(default_factory=lambda: {name: array("Q") for name in TEMPLATES})
    lines: array[int] = field(default_factory=lambda: array("q"))
    file_numbers: array[int] = field(default_factory=lambda: array("i"))
    files: list[str] = field(default_factory=list)

    def add(self, row: RowText) -> dict[str, Hashes]:
        """Keep a row; the shingles of its texts by view."""
        if not self.files or self.files[-1] != row.address.file:
            self.files.append(row.address.file)
        self.lines.append(row.address.line)
        self.file_numbers.append(len(self.files) - 1)
        masked = word_hashes(words(mask_variables(row.prompts)))
        keys = (sequence_key(masked), *edge_keys(masked))
        for column, key in zip(self.templates.values(), keys, strict=True):
            column.append(key)
        texts = (row.prompts, row.responses, row.conversation)
        return {name: view.add(text) for (name, view), text in zip(self.views.items(), texts, strict=True)}

    def address(self, row: int) -> RowAddress:
        """Where a row, counted from 0, stands."""
        return RowAddress(self.files[self.file_numbers[row]], self.lines[row])

    def __len__(self) -> int:
        return len(self.lines)


def rereadable(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The files that paths and patterns stand for. UsageError for standard input, which cannot be read twice."""
    files = expand(paths)
    if STDIN in files:
        hint = "write the rows into a file first"
        raise UsageError("standard input cannot be read twice", code="not-a-file", place="-", hint=hint)
    return files


def as_hashes(column: array[int] | Sequence[int]) -> Hashes:
    """A column as an array, uint64."""
    return np.array(column, dtype=np.uint64)
