"""Runs of rows as the bytes that they lie in: cut in one process for little, read in another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from sftprep.data import RowAddress
from sftprep.sources.array import ArrayItem

UTF8_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as JSON: of JSONL a line that is not blank, without line end and byte order mark.

    The address counts lines of JSONL, and rows of any other file. `offset` is where the bytes start in the
    uncompressed text; 0 where the file is a table. `dropped_null` is the place of a null that a table cannot tell
    from an absent key, in what a tool is called with or declared by.
    """

    address: RowAddress
    raw: bytes
    offset: int
    dropped_null: str = ""


class Block(Protocol):
    """A run of rows of one file, `first` the number of the first. It is small to send to another process."""

    @property
    def first(self) -> int:
        """The line or row that the block begins at, from 1."""
        ...

    def rows(self, name: str) -> Iterator[SourceRow]:
        """Each row in order; `name` is what addresses call the file. SourceError where a table's values are damaged."""
        ...


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Whole lines of JSONL, blank ones among them; `offset` is where they start in the uncompressed text."""

    data: bytes
    first: int
    offset: int

    def rows(self, name: str) -> Iterator[SourceRow]:
        r"""Lines that are not blank, without `\n`, one `\r` before it, and a byte order mark at the file's start."""
        lines = zip(*self.lines(), strict=True)
        return (SourceRow(RowAddress(name, number), body, offset) for number, body, offset in lines)

    def lines(self) -> tuple[list[int], list[bytes], list[int]]:
        """The same as columns, for who needs no address of most of them: numbers, bytes and offsets."""
        lines = self.data.split(b"\n")
        numbers = list(range(self.first, self.first + len(lines)))
        offsets = list(itertools.accumulate([len(line) + 1 for line in lines[:-1]], initial=self.offset))
        if self.first == 1 and lines[0].startswith(UTF8_BOM):
            lines[0] = lines[0].removeprefix(UTF8_BOM)
            offsets[0] += len(UTF8_BOM)
        if b"\r" in self.data:
            lines = [line.removesuffix(b"\r") for line in lines]
        said = [bool(line.strip(b" \t\r")) for line in lines]
        if not all(said):
            numbers = list(itertools.compress(numbers, said))
            lines = list(itertools.compress(lines, said))
            offsets = list(itertools.compress(offsets, said))
        return numbers, lines, offsets


@dataclass(frozen=True, slots=True)
class ItemBlock:
    """Items of a JSON array."""

    items: tuple[ArrayItem, ...]
    first: int

    def rows(self, name: str) -> Iterator[SourceRow]:
        """Each item."""
        for number, item in enumerate(self.items, start=self.first):
            yield SourceRow(RowAddress(name, number), item.raw, item.offset)
