"""Lines of a file by their place in it, in place of their bytes: what a process of this machine is told to read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeGuard

import numpy as np

from sftprep.config.places import is_remote
from sftprep.errors import SourceError
from sftprep.sources import lines
from sftprep.sources.blocks import Block, LineBlock, SourceRow
from sftprep.sources.compressed import STDIN, OnBytes
from sftprep.sources.lines import read_blocks
from sftprep.stores.read import Identity

_LINE_FEED: Final = ord("\n")


@dataclass(frozen=True, slots=True)
class StoredLines:
    """`length` bytes of a file from `start` on: whole lines, the first of them number `first`."""

    path: str
    start: int
    length: int
    first: int

    def loaded(self, name: str) -> LineBlock:
        """The lines themselves. SourceError `read-failed` where fewer bytes lie there by now, or none can be read."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), self.length, self.start)
        except OSError as error:
            raise _failed(name, self.first, f"reading failed: {error.strerror}") from error
        if len(data) < self.length:
            raise _failed(name, self.first, "the file became shorter while it was read")
        return LineBlock(data, self.first, self.start)

    def rows(self, name: str) -> Iterator[SourceRow]:
        """As of the LineBlock. SourceError as `loaded`."""
        return self.loaded(name).rows(name)


def shared_blocks(
    path: Path, *, name: str, on_bytes: OnBytes | None = None, known: Identity | None = None
) -> Iterator[Block]:
    """As `read_blocks`, for other processes of this machine: lines of a plain file by their places, cut the same.

    Who sends them reads the file once, to find the lines' ends, and neither keeps nor copies it.
    """
    told = 0

    def tell(count: int) -> None:
        nonlocal told
        told += count
        if on_bytes is not None and count:
            on_bytes(count)

    blocks = read_blocks(path, name=name, on_bytes=tell, known=known)
    for block in blocks:
        if not _is_stored(block, path) or next(block.rows(name), None) is None:
            yield block
            yield from blocks
            return
        begin = StoredLines(str(path), block.offset, len(block.data), block.first)
        yield begin
        for place in _behind(begin, num_lines=block.data.count(b"\n"), name=name):
            tell(max(0, place.start + place.length - told))
            yield place
        return


def _is_stored(block: Block, path: Path) -> TypeGuard[LineBlock]:
    """Whether a file has a block's bytes as they are: it is not compressed, and can be read again."""
    if not isinstance(block, LineBlock) or path == STDIN or is_remote(path) or not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(block.offset)
        return file.read(len(block.data)) == block.data


def _behind(place: StoredLines, *, num_lines: int, name: str) -> Iterator[StoredLines]:
    """The blocks behind one that has so many line feeds."""
    start, first = place.start + place.length, place.first + num_lines
    buffer = bytearray(lines.BLOCK_BYTES)
    values = np.frombuffer(buffer, np.uint8)
    with open(place.path, "rb", buffering=0) as file:
        try:
            while length := _block_length(file.fileno(), buffer, start):
                yield StoredLines(place.path, start, length, first)
                start += length
                # A third of what `count` takes.
                first += int(np.count_nonzero(values[:length] == _LINE_FEED)) if length <= len(buffer) else 1
        except OSError as error:
            raise _failed(name, first, f"reading failed: {error.strerror}") from error


def _block_length(handle: int, buffer: bytearray, start: int) -> int:
    """Bytes of the block that begins at one: as many whole lines as fit, at least one, or what the file still has.

    The buffer holds its beginning then.
    """
    held = _fill(handle, buffer, start)
    if held < len(buffer):
        return held
    if stop := buffer.rfind(b"\n") + 1:
        return stop
    # One line that is longer.
    behind = bytearray(len(buffer))
    while count := _fill(handle, behind, start + held):
        if stop := behind.find(b"\n", 0, count) + 1:
            return held + stop
        held += count
    return held


def _fill(handle: int, buffer: bytearray, start: int) -> int:
    """Bytes that were read from `start` on: as many as the buffer takes, fewer only at the file's end."""
    held, view = 0, memoryview(buffer)
    while held < len(buffer) and (count := os.preadv(handle, [view[held:]], start + held)):
        held += count
    return held


def _failed(name: str, first: int, what: str) -> SourceError:
    hint = "run again when nothing writes to it"
    return SourceError(what, code="read-failed", place=f"{name}:{first}", hint=hint)
