"""Who checks the blocks: this process, or some of its children. What became of them comes out in order either way."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from sftprep.config.validate import ValidateConfig
from sftprep.errors import DataError, SourceError
from sftprep.prepare.check import SaidOnce
from sftprep.prepare.check_block import CheckBlock, CheckedBlock, block_checker, settled
from sftprep.prepare.child_process import obey_parent
from sftprep.sources.blocks import Block


@dataclass(frozen=True, slots=True)
class Chunk:
    """Unread rows of one file; no block where it begins, and where it ends early: with `error`."""

    file: str
    block: Block | None = None
    error: SourceError | None = None


Checked = tuple[Chunk, CheckedBlock | None]


def check_chunks(chunks: Iterator[Chunk], *, config: ValidateConfig) -> Iterator[Checked]:
    """Each chunk and what became of its rows, in order.

    Raises:
        DataError: `worker-died`, naming the rows that it had.
    """
    once = SaidOnce()
    for chunk, block in (_in_children if config.workers > 1 else _here)(chunks, config=config):
        yield chunk, None if block is None else settled(block, once)


def _here(chunks: Iterator[Chunk], *, config: ValidateConfig) -> Iterator[Checked]:
    check = block_checker(config)
    for chunk in chunks:
        yield chunk, None if chunk.block is None else check(chunk.block, chunk.file)


def _in_children(chunks: Iterator[Chunk], *, config: ValidateConfig) -> Iterator[Checked]:
    # Fork would copy this process's threads' locks (tokenizers has a thread pool) in whatever state they are.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(config.workers, mp_context=context, initializer=_start_child, initargs=(config,))
    waiting: deque[tuple[Chunk, Future[CheckedBlock] | None]] = deque()
    try:
        for chunk in chunks:
            future = None if chunk.block is None else pool.submit(_check_in_child, chunk.block, chunk.file)
            waiting.append((chunk, future))
            # A few chunks ahead keep every child busy, and bound what is in memory.
            if len(waiting) > 2 * config.workers:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(chunk: Chunk, future: Future[CheckedBlock] | None) -> Checked:
    if chunk.block is None or future is None:
        return chunk, None
    try:
        return chunk, future.result()
    except BrokenProcessPool as error:
        place = f"{chunk.file}:{chunk.block.first}, or rows after it"
        hint = "out of memory? try fewer --workers"
        raise DataError("a worker process died", code="worker-died", place=place, hint=hint) from error


class _Child:
    """What a child process keeps between chunks."""

    check: CheckBlock


def _start_child(config: ValidateConfig) -> None:
    obey_parent()
    _Child.check = staticmethod(block_checker(config))


def _check_in_child(block: Block, file: str) -> CheckedBlock:
    return _Child.check(block, file)
