"""What is done with a chunk of rows, wherever it is done, and the error where it cannot be done anywhere."""

from __future__ import annotations

from dataclasses import replace

from sftprep.config.pack import PackConfig
from sftprep.errors import DataError
from sftprep.prepare.chunk_record import Finished
from sftprep.prepare.compile import CompileRow
from sftprep.prepare.compile_chunk import compile_chunk
from sftprep.prepare.inputs import InputChunk, read_chunk


def compiled(chunk: InputChunk, *, compile_row: CompileRow, config: PackConfig) -> Finished:
    """A chunk's rows, read and compiled.

    Raises:
        SourceError: `damaged-table`. EngineDiffersError, DataError: as `compile_chunk`.
    """
    rows, read = read_chunk(chunk, format=config.format)
    done = replace(compile_chunk(rows, compile_row=compile_row, config=config), read=read)
    return Finished.of(done, first=chunk.block.first)


def compiled_elsewhere(chunk: InputChunk, *, compile_row: CompileRow, config: PackConfig) -> bytes:
    """The same for another process, as the bytes that it will keep: they are sent at once and read where they lie."""
    return b"".join(compiled(chunk, compile_row=compile_row, config=config).record)


def rows_of(chunk: InputChunk) -> str:
    """What an error calls the rows of a chunk."""
    return f"{chunk.name}:{chunk.block.first}, or rows after it"


def worker_died(place: str, *, hint: str) -> DataError:
    """The error that says where the worker was."""
    return DataError(
        "a worker process died, and died again in another try",
        code="worker-died",
        place=place,
        hint=hint,
    )
