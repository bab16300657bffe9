"""What is known before the plan, kept on disk: finished chunks, which the same command finds again after a kill."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import pyarrow as pa

from sftprep.errors import DataError
from sftprep.prepare.chunk_account import ChunkAccount
from sftprep.prepare.chunk_record import Finished, Record, records
from sftprep.prepare.document_files import Place, SpooledDocuments, let_go
from sftprep.prepare.inputs import InputChunk
from sftprep.shards.place import named_failures

CompileChunks = Callable[[Iterator[InputChunk]], Iterator[Finished]]
"""Compiles chunks in order; their documents are in files of the spool's directory then."""

_KEPT_IN_SPITE_OF: Final = frozenset({"worker-died"})
"""Errors of the machine that come as errors of the data; any other of those would meet the same rows again."""


class Spool:
    """The chunks of one run, one record each, in a hidden directory beside the output that its fingerprint names.

        with Spool(out, fingerprint) as spool:
            for account in spool.completed(unread, compile_rest): ...
            MappedDocuments(spool.documents()).table

    `chunks.bin` has the accounts, in order, written by this process alone, which has seen then that the chunk is of the
    bytes that the fingerprint names. Beside it are the documents, in files of whoever compiled them: they count where
    a record names them. A record is complete or it is not there: what a killed run tore off, or wrote and never named,
    is removed when the spool is opened. All of it is removed where the run ends well and where the data is refused; a
    full disk, a signal or a fault keeps what is finished, and the error says so. The output's own disk holds it: where
    the shards fit, about three times their bytes are needed meanwhile. OutputError where the place cannot be written or
    is full.
    """

    def __init__(self, out: Path, fingerprint: str) -> None:
        self._out = out
        place = out.resolve()
        self.directory = place.with_name(f".{place.name}.spool-{fingerprint[:12]}")
        self._path = self.directory / "chunks.bin"
        self._file: BinaryIO | None = None
        self._num_found = 0
        """Records that were whole when it was opened."""
        self._places: list[Place] = []
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
        named = {self._path.name}
        for record in self._there():
            if not record.documents.is_whole(self.directory):
                break
            named.add(record.documents.file)
            self._num_found += 1
            self.num_rows += record.num_rows
        for path in [path for path in self.directory.iterdir() if path.name not in named]:
            path.unlink()
        self._file = self._path.open("ab")

    def completed(self, unread: Iterator[InputChunk], compile_rest: CompileChunks) -> Iterator[ChunkAccount]:
        """The account of every chunk of input, in order: of those that an earlier run has left, then of the rest.

        A chunk that was given is kept when the next one is asked for. What is kept of an input that is cut otherwise
        now (by another version of this code) is dropped from there on and done again.
        """
        self.num_rows, stop = 0, 0
        for record in islice(self._there(), self._num_found):
            source = next(unread, None)
            if source is None or not _is_of(record, source):
                unread = chain(() if source is None else (source,), unread)
                break
            self._places.append(record.documents)
            self.num_rows += record.num_rows
            stop = record.stop
            yield record.account()
        with named_failures(self._out):
            os.truncate(self._path, stop)
        for finished in compile_rest(unread):
            yield finished.account
            self._add(finished)

    def _add(self, finished: Finished) -> None:
        if self._file is None:
            raise ValueError("a spool is written in a with block")
        with named_failures(self._out):
            self._file.write(finished.record)
            # With the kernel, it outlives this process; a power cut may take it, and its checksum tells.
            self._file.flush()
        self._places.append(finished.documents)
        self.num_rows += finished.account.read.num_rows

    def documents(self) -> SpooledDocuments:
        """Where the documents of all chunks are."""
        return SpooledDocuments.of(self.directory, self._places)

    def left_out(self) -> Iterator[bytes]:
        """The lines of `left_out.jsonl`; nothing can be added afterwards."""
        if self._file is not None and not self._file.closed:
            with named_failures(self._out):
                self._file.close()
        num_read = 0
        for record in self._there():
            yield from record.field("left_out_lines").tobytes().splitlines(keepends=True)
            num_read += 1
        if num_read != len(self._places):
            raise OSError(errno.EIO, "the finished chunks are fewer than they were")

    def _there(self) -> Iterator[Record]:
        """The records that are whole; what was read of one is let go of when the next is asked for."""
        if not self._path.stat().st_size:
            return
        with self._path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for record in records(pa.py_buffer(mapped)):
            yield record
            let_go(mapped)


def _is_of(record: Record, source: InputChunk) -> bool:
    """Whether a record tells of just these rows; the fingerprint has told that the bytes are the same."""
    if (record.source, record.first) != (source.source, source.block.first):
        return False
    return record.num_rows == sum(1 for _ in source.block.rows(source.name))
