"""Who compiles the chunks: this process, or some of its children. The chunks come out in order either way."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from sftprep.config.pack import PackConfig
from sftprep.engines.model import ModelFiles
from sftprep.errors import DataError
from sftprep.prepare.chunk import Chunk, InputRow, compile_chunk
from sftprep.prepare.compile import CompileRow, compiler

Job = tuple[ModelFiles, PackConfig]


def compile_chunks(chunks: Iterator[list[InputRow]], *, model: ModelFiles, config: PackConfig) -> Iterator[Chunk]:
    """Each chunk compiled, in order.

    Raises:
        DataError: `worker-died`, naming the rows that it had.
    """
    if config.workers > 1:
        yield from _in_children(chunks, job=(model, config))
        return
    compile_row = compiler(model, config)
    for rows in chunks:
        yield compile_chunk(rows, compile_row=compile_row, config=config)


def _in_children(chunks: Iterator[list[InputRow]], *, job: Job) -> Iterator[Chunk]:
    # Fork would copy this process's threads' locks (tokenizers has a thread pool) in whatever state they are.
    context = multiprocessing.get_context("spawn")
    workers = job[1].workers
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_child, initargs=job)
    waiting: deque[tuple[list[InputRow], Future[Chunk]]] = deque()
    try:
        for rows in chunks:
            waiting.append((rows, pool.submit(_compile_in_child, rows)))
            # A few chunks ahead keep every child busy, and bound what is in memory.
            if len(waiting) > 2 * workers:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(rows: list[InputRow], future: Future[Chunk]) -> Chunk:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died",
            code="worker-died",
            place=f"{rows[0].address} to {rows[-1].address}, or a chunk after it",
            hint="out of memory? try fewer --workers",
        ) from error


class _Child:
    """What a child process keeps between chunks."""

    compile_row: CompileRow
    config: PackConfig


def _start_child(model: ModelFiles, config: PackConfig) -> None:
    # Ctrl-C reaches the whole process group; the parent alone answers it and ends the children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Child.compile_row = staticmethod(compiler(model, config))
    _Child.config = config


def _compile_in_child(rows: list[InputRow]) -> Chunk:
    return compile_chunk(rows, compile_row=_Child.compile_row, config=_Child.config)
