"""Lines of a file by their place in it, in place of their bytes: what a process of this machine is told to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sftprep.config.places import is_remote
from sftprep.errors import SourceError
from sftprep.sources.blocks import Block, LineBlock, SourceRow


@dataclass(frozen=True, slots=True)
class StoredLines:
    """`length` bytes of a file from `start` on: whole lines, the first of them number `first`."""

    path: str
    start: int
    length: int
    first: int

    def rows(self, name: str) -> Iterator[SourceRow]:
        """As of the LineBlock. SourceError `read-failed` where other bytes lie there by now."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.start)
                data = file.read(self.length)
        except OSError as error:
            raise self._failed(name, f"reading failed: {error.strerror}") from error
        if len(data) < self.length:
            raise self._failed(name, "the file became shorter while it was read")
        return LineBlock(data, self.first, self.start).rows(name)

    def _failed(self, name: str, what: str) -> SourceError:
        hint = "run again when nothing writes to it"
        return SourceError(what, code="read-failed", place=f"{name}:{self.first}", hint=hint)


def is_stored(block: Block, path: Path) -> bool:
    """Whether a file has a block's bytes as they are: it is not compressed, and can be read again."""
    if not isinstance(block, LineBlock) or is_remote(path) or not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(block.offset)
        return file.read(len(block.data)) == block.data


def stored(block: Block, path: Path) -> Block:
    """A block of a file of which another block is stored, by its place."""
    if not isinstance(block, LineBlock):
        return block
    return StoredLines(str(path), block.offset, len(block.data), block.first)
