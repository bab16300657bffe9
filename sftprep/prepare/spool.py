"""What is known before the plan, kept on disk: finished chunks, which the same command finds again after a kill."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy.typing as npt
import pyarrow as pa

from sftprep.data import TOKEN_BATCH_SCHEMA
from sftprep.errors import DataError
from sftprep.prepare.chunk import Chunk
from sftprep.prepare.chunk_record import Finished, Record, batch_at, read
from sftprep.prepare.inputs import InputChunk
from sftprep.prepare.left_out import left_out_json
from sftprep.shards.place import named_failures

CompileChunks = Callable[[Iterator[InputChunk]], Iterator[Finished]]
"""Compiles chunks in order."""

_KEPT_IN_SPITE_OF: Final = frozenset({"worker-died"})
"""Errors of the machine that come as errors of the data; any other of those would meet the same rows again."""


@dataclass(frozen=True, slots=True)
class SpooledDocuments:
    """Where the documents of all chunks lie in the file: what a process is told that reads them too."""

    path: Path
    places: tuple[tuple[int, int], ...]
    """First byte and count of bytes of each chunk's batch."""


class MappedDocuments:
    """The documents of a spool, in order, memory-mapped."""

    def __init__(self, spooled: SpooledDocuments) -> None:
        self._file = spooled.path.open("rb")
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        data = pa.py_buffer(self._map)
        self._address: int = data.address
        batches = (batch_at(data, place) for place in spooled.places)
        self.table = pa.Table.from_batches((batch for batch in batches if batch.num_rows), schema=TOKEN_BATCH_SCHEMA)
        self.release()

    def release(self) -> None:
        """Let go of the memory that holds what was read: it is read again where it is asked for again."""
        _let_go(self._map)

    def place(self, values: npt.NDArray[Any]) -> int:
        """The byte of the file at which an array of the table begins."""
        address: int = values.__array_interface__["data"][0]
        return address - self._address

    def read(self, places: Iterable[tuple[int, int]]) -> bytes:
        """Bytes from so many first ones on, end to end, each with a count. OSError where they are not there."""
        handle = self._file.fileno()
        parts = [(os.pread(handle, count, first), count) for first, count in places]
        if any(len(part) != count for part, count in parts):
            raise OSError(errno.EIO, "the finished chunks are shorter than they were")
        return b"".join(part for part, _ in parts)


class Spool:
    """The chunks of one run, one record each, in a hidden directory beside the output that its fingerprint names.

        with Spool(out, fingerprint) as spool:
            for chunk in spool.completed(unread, compile_rest): ...
            MappedDocuments(spool.documents()).table

    A record is complete or it is not there: what a killed run tore off is cut when the spool is opened. It is removed
    where the run ends well and where the data is refused; a full disk, a signal or a fault keeps what is finished, and
    the error says so. The output's own disk holds it: where the shards fit, about three times their bytes are needed
    meanwhile. OutputError where the place cannot be written or is full.
    """

    def __init__(self, out: Path, fingerprint: str) -> None:
        self._out = out
        place = out.resolve()
        self.directory = place.with_name(f".{place.name}.spool-{fingerprint[:12]}")
        self._path = self.directory / "chunks.bin"
        self._file: BinaryIO | None = None
        self._map: mmap.mmap | None = None
        self._records: list[Record] = []
        self.num_rows = 0
        """Rows of input whose chunks are here."""

    def __enter__(self) -> Self:
        try:
            with named_failures(self._out):
                self._open()
        except BaseException:
            if not self.num_rows:
                shutil.rmtree(self.directory, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # what it still holds may not fit on the disk
                self._file.close()
        refused = isinstance(error, DataError) and error.code not in _KEPT_IN_SPITE_OF
        if error is None or refused or not self.num_rows:
            shutil.rmtree(self.directory, ignore_errors=True)
            return
        error.add_note(
            f"{self.num_rows:,} rows are finished and kept in {self.directory}: the same command goes on behind them"
        )

    def _open(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        self._find_records()
        self._file = self._path.open("ab")

    @property
    def _stop(self) -> int:
        return self._records[-1].stop if self._records else 0

    def completed(self, unread: Iterator[InputChunk], compile_rest: CompileChunks) -> Iterator[Chunk]:
        """Every chunk of input, compiled, in order: those that an earlier run has left, then the rest as it is done.

        A chunk that was given is kept when the next one is asked for. What is kept of an input that is cut otherwise
        now (by another version of this code) is dropped from there on and done again.
        """
        known, self._records, self.num_rows = self._records, [], 0
        for record in known:
            source = next(unread, None)
            if source is None or not _is_of(record, source):
                unread = chain(() if source is None else (source,), unread)
                break
            self._records.append(record)
            self.num_rows += record.num_rows
            yield record.chunk()
            self.release()
        with named_failures(self._out):
            os.truncate(self._path, self._stop)
        for finished in compile_rest(unread):
            yield finished.chunk
            self._add(finished)

    def _add(self, finished: Finished) -> None:
        if self._file is None:
            raise ValueError("a spool is written in a with block")
        with named_failures(self._out):
            self._file.writelines(finished.record)
            # With the kernel, it outlives this process; a power cut may take it, and its checksum tells.
            self._file.flush()
        self.num_rows += finished.chunk.read.num_rows

    def documents(self) -> SpooledDocuments:
        """Where the documents of all chunks are; nothing can be added afterwards."""
        return SpooledDocuments(self._path, tuple(record.place("documents") for record in self._read()))

    def left_out(self) -> Iterator[bytes]:
        """The lines of `left_out.jsonl`; nothing can be added afterwards."""
        for record in self._read():
            for row in record.field("left_out"):
                yield left_out_json(row)

    def release(self) -> None:
        """Let go of the memory that holds what was read of the spool: it is read again where it is asked for again."""
        if self._map is not None:
            _let_go(self._map)

    def _read(self) -> list[Record]:
        if self._file is not None and not self._file.closed:
            with named_failures(self._out):
                self._file.close()
                self._find_records(checked=False)
        return self._records

    def _find_records(self, *, checked: bool = True) -> None:
        self._records, self.num_rows = [], 0
        if not self._path.stat().st_size:
            return
        with self._path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = pa.py_buffer(self._map)
        while (record := read(data, self._stop, checked=checked)) is not None:
            self._records.append(record)
            self.num_rows += record.num_rows
            self.release()


def _is_of(record: Record, source: InputChunk) -> bool:
    """Whether a record tells of just these rows; the fingerprint has told that the bytes are the same."""
    if (record.source, record.first) != (source.source, source.block.first):
        return False
    return record.num_rows == sum(1 for _ in source.block.rows(source.name))


def _let_go(mapped: mmap.mmap) -> None:
    if hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)
