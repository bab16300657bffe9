"""What is done with a chunk of rows, wherever it is done, and the error where it cannot be done anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from sftprep.config.pack import PackConfig
from sftprep.engines.model import ModelFiles
from sftprep.errors import DataError
from sftprep.prepare.chunk import Chunk
from sftprep.prepare.compile import CompileRow, batch_compiler
from sftprep.prepare.compile_chunk import compile_chunk
from sftprep.prepare.inputs import InputChunk, read_chunk


def compiled(chunk: InputChunk, *, compile_row: CompileRow, config: PackConfig) -> Chunk:
    """A chunk's rows, read and compiled.

    Raises:
        SourceError: `damaged-table`, `read-failed`. EngineDiffersError, DataError: as `compile_chunk`.
    """
    rows, read = read_chunk(chunk, format=config.format)
    return replace(compile_chunk(rows, compile_row=compile_row, config=config), read=read)


def compiled_here(
    chunks: Iterable[InputChunk], *, model: ModelFiles, config: PackConfig
) -> Iterator[tuple[InputChunk, Chunk]]:
    """Each chunk compiled by this process, which makes itself ready for it at the first. Raises as `compiled`."""
    compile_row = batch_compiler(model, config)
    for chunk in chunks:
        yield chunk, compiled(chunk, compile_row=compile_row, config=config)


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
