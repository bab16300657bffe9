"""The values of chosen documents from list columns in many chunks, which may lie in a mapped file: copied, end to end.

No more of the file is in this process's memory than is copied at a time, however large it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.arrow import flat, list_values

Array = npt.NDArray[Any]

_CHUNKS_MAPPED: Final = 64
"""Chunks of a mapped file whose spans are in memory together."""


class MappedFile(Protocol):
    """A file in whose memory documents lie."""

    def release(self) -> None:
        """Let go of the memory that holds what was read."""

    def place(self, values: Array) -> int:
        """The byte of the file at which an array begins."""

    def read(self, places: Iterable[tuple[int, int]]) -> bytes:
        """Bytes from so many first ones on, end to end, each with a count. OSError where they are not there."""


@dataclass(frozen=True, slots=True)
class ListColumns:
    """List columns of which a document has as many values each: which chunk's, where in its flat values, how many.

    12 bytes a document; `values` are each column's by chunk, where they lie.
    """

    values: list[list[Array]]
    chunks: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    file: MappedFile | None
    firsts: npt.NDArray[np.int64]
    """Of the first column: the byte of the file at which each chunk's values begin."""

    @classmethod
    def of(cls, documents: pa.Table, names: Sequence[str], file: MappedFile | None) -> ListColumns:
        """Columns of a table, and the file that it is mapped from, if it is."""
        offsets = [flat(chunk.offsets) for chunk in documents[names[0]].chunks]
        counts = [len(chunk) for chunk in documents[names[0]].chunks]
        starts = np.concatenate([np.empty(0, np.int32), *(part[:-1] - part[:1] for part in offsets)])
        lengths = np.concatenate([np.empty(0, np.int32), *(np.diff(part) for part in offsets)])
        values = []
        for name in names:
            values.append([list_values(chunk) for chunk in documents[name].chunks])
            if file is not None:
                file.release()
        return cls(
            values=values,
            chunks=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            starts=starts,
            lengths=lengths,
            file=file,
            firsts=np.array([] if file is None else [file.place(part) for part in values[0]], np.int64),
        )

    def take_long(self, docs: npt.NDArray[np.int64]) -> Array:
        """The values of these documents, end to end, of the only column: whoever has many of them is copied alone."""
        (values,) = self.values
        chunks, starts, lengths = self.chunks[docs], self.starts[docs], self.lengths[docs]
        if self.file is None:
            where = zip(chunks.tolist(), starts.tolist(), (starts + lengths).tolist(), strict=True)
            return np.concatenate([values[chunk][start:stop] for chunk, start, stop in where])
        # Read, not copied from the map: to map a page for each document takes longer than to copy its tokens.
        size = values[0].itemsize
        firsts = self.firsts[chunks] + starts.astype(np.int64) * size
        data = self.file.read(zip(firsts.tolist(), (lengths * size).tolist(), strict=True))
        return np.frombuffer(data, values[0].dtype)

    def take_short(self, docs: npt.NDArray[np.int64]) -> list[Array]:
        """The values of these documents, end to end, of each column: in the order of the chunks, then in the plan's."""
        by_chunk = np.argsort(self.chunks[docs], kind="stable")
        ordered = docs[by_chunk]
        borders = np.flatnonzero(np.diff(self.chunks[ordered], prepend=-1, append=-1))
        found: list[list[Array]] = [[np.zeros(0, column[0].dtype)] for column in self.values]
        for number, (first, stop) in enumerate(pairwise(borders.tolist())):
            part = ordered[first:stop]
            where = _ranges(self.starts[part], self.lengths[part])
            for pieces, column in zip(found, self.values, strict=True):
                pieces.append(column[self.chunks[part[0]]][where])
            if self.file is not None and (number % _CHUNKS_MAPPED == 0 or stop == len(docs)):
                self.file.release()
        starts = np.empty(len(docs), np.int64)
        starts[by_chunk] = np.cumsum(self.lengths[ordered]) - self.lengths[ordered]
        back = _ranges(starts, self.lengths[docs])
        return [np.concatenate(pieces)[back] for pieces in found]


def _ranges(starts: npt.NDArray[np.integer[Any]], lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """The numbers from each start on, as many as each length says, end to end."""
    before = np.cumsum(lengths, dtype=np.int64) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
