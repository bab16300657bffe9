"""What is done with a chunk of rows, wherever it is done, and the error where it cannot be done anywhere."""

from __future__ import annotations

from dataclasses import replace

from sftprep.config.pack import PackConfig
from sftprep.errors import DataError
from sftprep.prepare.chunk import Chunk
from sftprep.prepare.compile import CompileRow
from sftprep.prepare.compile_chunk import compile_chunk
from sftprep.prepare.inputs import InputChunk, read_chunk


def compiled(chunk: InputChunk, *, compile_row: CompileRow, config: PackConfig) -> Chunk:
    """A chunk's rows, read and compiled.

    Raises:
        SourceError: `damaged-table`. EngineDiffersError, DataError: as `compile_chunk`.
    """
    rows, read = read_chunk(chunk, format=config.format)
    return replace(compile_chunk(rows, compile_row=compile_row, config=config), read=read)


def worker_died(chunk: InputChunk, *, hint: str) -> DataError:
    """The error that says where the reader was."""
    return DataError(
        "a worker process died, and died again in another try",
        code="worker-died",
        place=f"{chunk.name}:{chunk.block.first}, or rows after it",
        hint=hint,
    )
