"""The documents of finished chunks on the disk: each process writes those that it has compiled into a file of its own.

So they go from whoever compiles them to whoever makes shards without passing through the parent, which is told where
they are. A file is written by one process alone and never gone on with: what a killed one tore off is never named.
"""

from __future__ import annotations

import errno
import mmap
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy.typing as npt
import pyarrow as pa

from sftprep.data import TOKEN_BATCH_SCHEMA
from sftprep.shards.place import named_failures

_ALIGN: Final = 64
"""Bytes: what Arrow wants of a buffer that is read where it lies."""

_PLACE_BITS: Final = 48
"""Bits of a byte's number in its file; the number of the file stands above them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the documents of a chunk are: a file of the spool's directory, first byte, count of bytes, their CRC-32."""

    file: str
    start: int
    length: int
    crc: int

    def is_whole(self, directory: Path) -> bool:
        """Whether just these bytes are there."""
        try:
            with (directory / self.file).open("rb") as file:
                file.seek(self.start)
                data = file.read(self.length)
        except OSError:
            return False
        return len(data) == self.length and zlib.crc32(data) == self.crc


class DocumentsFile:
    """The file of this process in the directory of a spool that packs into `out`; made when it is first needed."""

    def __init__(self, directory: Path, *, out: Path) -> None:
        self.directory = directory
        self._out = out
        self._name = ""
        self._handle: int | None = None
        self._size = 0

    def add(self, documents: pa.Buffer) -> Place:
        """Write what `packed` made. OutputError `disk-full`, `output-not-writable`."""
        length, crc = documents.size, zlib.crc32(documents)
        with named_failures(self._out):
            handle = self._opened()
            try:
                # With the kernel, it outlives this process; a power cut may take it, and its checksum tells.
                _write(handle, [memoryview(documents), memoryview(bytes(-length % _ALIGN))])
            except BaseException:
                self.close()  # nobody knows how much of it is there
                raise
        place = Place(self._name, self._size, length, crc)
        self._size += length + -length % _ALIGN
        return place

    def close(self) -> None:
        """End the file; what is added afterwards begins another."""
        if self._handle is not None:
            with suppress(OSError):  # what it still holds may not fit on the disk
                os.close(self._handle)
        self._handle = None

    def _opened(self) -> int:
        if self._handle is None:
            self._name, self._size = f"documents-{uuid4().hex[:16]}.bin", 0
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
            self._handle = os.open(self.directory / self._name, flags, 0o666)
        return self._handle


def _write(handle: int, parts: list[memoryview]) -> None:
    """All of the parts, which the system may take in pieces."""
    while parts:
        count = os.writev(handle, parts)
        while parts and count >= len(parts[0]):
            count -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][count:]


def packed(documents: pa.RecordBatch) -> pa.Buffer:
    """A batch of TOKEN_BATCH_SCHEMA as the bytes that are kept of it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, documents.schema) as stream:
        stream.write_batch(documents)
    return sink.getvalue()


@dataclass(frozen=True, slots=True)
class SpooledDocuments:
    """Where the documents of all chunks lie: what a process is told that reads them too."""

    directory: Path
    files: tuple[str, ...]
    places: tuple[tuple[int, int, int], ...]
    """Of each chunk the number of its file, its first byte there and its count of bytes."""

    @classmethod
    def of(cls, directory: Path, places: Sequence[Place]) -> SpooledDocuments:
        """Of chunks in their order."""
        files = tuple(dict.fromkeys(place.file for place in places))
        number_of = {name: number for number, name in enumerate(files)}
        return cls(directory, files, tuple((number_of[place.file], place.start, place.length) for place in places))


class MappedDocuments:
    """The documents of a spool, in order, memory-mapped."""

    def __init__(self, spooled: SpooledDocuments) -> None:
        self._files = [(spooled.directory / name).open("rb") for name in spooled.files]
        self._handles = [file.fileno() for file in self._files]
        self._maps = [mmap.mmap(handle, 0, access=mmap.ACCESS_READ) for handle in self._handles]
        data = [pa.py_buffer(mapped) for mapped in self._maps]
        self._first_bytes = sorted((buffer.address, number) for number, buffer in enumerate(data))
        batches = (read_documents(data[number].slice(start, length)) for number, start, length in spooled.places)
        self.table = pa.Table.from_batches((batch for batch in batches if batch.num_rows), schema=TOKEN_BATCH_SCHEMA)
        self.release()

    def release(self) -> None:
        """Let go of the memory that holds what was read: it is read again where it is asked for again."""
        for mapped in self._maps:
            let_go(mapped)

    def place(self, values: npt.NDArray[Any]) -> int:
        """Which of all bytes of the files an array of the table begins at."""
        address: int = values.__array_interface__["data"][0]
        first, number = self._first_bytes[bisect_right(self._first_bytes, (address, len(self._maps))) - 1]
        place: int = number << _PLACE_BITS | address - first
        return place

    def read(self, places: Iterable[tuple[int, int]]) -> bytes:
        """Bytes from so many first ones on, end to end, each with a count. OSError where they are not there."""
        handles, in_file = self._handles, (1 << _PLACE_BITS) - 1
        parts = [(os.pread(handles[first >> _PLACE_BITS], count, first & in_file), count) for first, count in places]
        if any(len(part) != count for part, count in parts):
            raise OSError(errno.EIO, "the finished chunks are shorter than they were")
        return b"".join(part for part, _ in parts)


def read_documents(data: pa.Buffer) -> pa.RecordBatch:
    """The batch that `packed` made these bytes of; its buffers are theirs."""
    return pa.ipc.open_stream(data).read_next_batch()


def let_go(mapped: mmap.mmap) -> None:
    """Let go of the memory that holds a map; it is read again where it is asked for again."""
    if hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)
