"""Who compiles the chunks: this process, some of its children, or a cluster. They come out in order whoever does."""

from __future__ import annotations

import gc
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Final

from sftprep.config.pack import PackConfig
from sftprep.engines.model import ModelFiles
from sftprep.prepare.child_process import obey_parent
from sftprep.prepare.chunk import Chunk
from sftprep.prepare.chunk_work import compiled, worker_died
from sftprep.prepare.compile import CompileRow, batch_compiler
from sftprep.prepare.inputs import InputChunk
from sftprep.prepare.ray_runner import compile_on_ray

Job = tuple[ModelFiles, PackConfig]


_DIED_HINT: Final = "out of memory? try fewer --workers"


def compile_chunks(chunks: Iterator[InputChunk], *, model: ModelFiles, config: PackConfig) -> Iterator[Chunk]:
    """Each chunk read and compiled, in order; a bounded number of them is in memory.

    Raises:
        DataError: `worker-died`, naming the rows that it had, where a worker died and died again.
        SourceError: `damaged-table`.
        UsageError: `missing-extra`, `cluster-unreachable`, `worker-differs`.
    """
    if config.runner == "ray":
        yield from compile_on_ray(chunks, model=model, config=config)
    elif (config.workers or 1) > 1:
        yield from _Children((model, config)).compiled(chunks)
    else:
        compile_row = batch_compiler(model, config)
        for chunk in chunks:
            yield compiled(chunk, compile_row=compile_row, config=config)


@dataclass(slots=True)
class _Waiting:
    """A chunk that a child has or will have."""

    chunk: InputChunk
    future: Future[Chunk]
    is_retried: bool = False


class _Children:
    """Processes of this machine. Where one is killed, all are made anew, and every chunk has a second try."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._num_workers = job[1].workers or 1
        self._pool = self._new_pool()
        self._waiting: deque[_Waiting] = deque()

    def compiled(self, chunks: Iterator[InputChunk]) -> Iterator[Chunk]:
        """Each chunk compiled, in order."""
        try:
            for chunk in chunks:
                self._give(chunk)
                # A few chunks ahead keep every child busy, and bound what is in memory.
                if len(self._waiting) > 2 * self._num_workers:
                    yield self._next()
            while self._waiting:
                yield self._next()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        # Fork would copy this process's threads' locks (tokenizers has a thread pool) in whatever state they are.
        context = multiprocessing.get_context("spawn")
        count = self._num_workers
        own = (*self._job, gc.get_threshold())
        return ProcessPoolExecutor(count, mp_context=context, initializer=_start_child, initargs=own)

    def _give(self, chunk: InputChunk) -> None:
        try:
            future = self._pool.submit(_compile_in_child, chunk)
        except BrokenProcessPool:
            self._begin_again()
            future = self._pool.submit(_compile_in_child, chunk)
        self._waiting.append(_Waiting(chunk, future))

    def _next(self) -> Chunk:
        try:
            done = self._waiting[0].future.result()
        except BrokenProcessPool:
            self._begin_again()
            return self._next()
        self._waiting.popleft()
        return done

    def _begin_again(self) -> None:
        """One child's death ends the whole pool. What is done is done; the rest is done by new children, once."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._new_pool()
        for waiting in self._waiting:
            if _is_done(waiting.future):
                continue
            if waiting.is_retried:
                raise worker_died(waiting.chunk, hint=_DIED_HINT)
            waiting.is_retried = True
            waiting.future = self._pool.submit(_compile_in_child, waiting.chunk)


def _is_done(future: Future[Chunk]) -> bool:
    """Whether a child has answered, be it with the error that its rows deserve."""
    return future.done() and not future.cancelled() and not isinstance(future.exception(), BrokenProcessPool)


class _Child:
    """What a child process keeps between chunks."""

    compile_row: CompileRow
    config: PackConfig


def _start_child(model: ModelFiles, config: PackConfig, collected_after: tuple[int, int, int]) -> None:
    """The child looks for cycles of objects as seldom as its parent does."""
    obey_parent()
    gc.set_threshold(*collected_after)
    _Child.compile_row = staticmethod(batch_compiler(model, config))
    _Child.config = config


def _compile_in_child(chunk: InputChunk) -> Chunk:
    return compiled(chunk, compile_row=_Child.compile_row, config=_Child.config)
