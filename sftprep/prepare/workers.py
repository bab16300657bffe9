"""Who compiles the chunks and makes the shards: this process, some of its children, or a cluster.

What they do comes out in order whoever does it.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from sftprep.config.pack import PackConfig
from sftprep.engines.model import ModelFiles
from sftprep.prepare.child_process import children_context, environment, obey_parent, refuse_stopped
from sftprep.prepare.chunk_record import Finished, finished
from sftprep.prepare.chunk_work import compiled, compiled_here, rows_of, worker_died
from sftprep.prepare.compile import CompileRow, batch_compiler
from sftprep.prepare.document_files import DocumentsFile
from sftprep.prepare.inputs import InputChunk
from sftprep.prepare.ray_runner import compile_on_ray
from sftprep.prepare.shard_work import MadeShard, ShardTask, forget_documents, make_shard
from sftprep.sources.lines import BLOCK_BYTES
from sftprep.sources.paths import total_bytes

Job = tuple[ModelFiles, PackConfig]
Given = TypeVar("Given")
Done = TypeVar("Done")

_DIED_HINT: Final = "out of memory? try fewer --workers"
_MOST_AT_ONCE: Final = 4
_LEAST_TIMES: Final = 16
"""How often each child is given chunks at the least before it is given several at once."""
_WORTH_A_START: Final = 1 << 24
"""Tokens for which children are started that have not compiled: a start takes as long as a few million."""


def compile_chunks(
    chunks: Iterator[InputChunk], *, model: ModelFiles, crew: Crew, directory: Path
) -> Iterator[Finished]:
    """Each chunk read and compiled as the crew's options say, in order; a bounded number of them is in memory.

    Their documents lie in files of the directory then. The children of `crew`, if it has any, stay.

    Raises:
        DataError: `worker-died`, naming the rows that it had, where a worker died and died again.
        SourceError: `damaged-table`, `read-failed`.
        OutputError: `disk-full`, `output-not-writable`.
        UsageError: `missing-extra`, `cluster-unreachable`, `worker-differs`.
    """
    config = crew.config
    file = DocumentsFile(directory, out=config.out)
    with closing(file):
        if config.runner == "ray":
            yield from compile_on_ray(chunks, model=model, config=config, file=file)
        elif crew.num_workers == 1:
            for chunk, done in compiled_here(chunks, model=model, config=config):
                yield finished(done, first=chunk.block.first, file=file)
        else:
            crew.job = (model, config)
            compile_all = partial(_each, partial(_compile_in_child, str(directory)))
            size = _chunks_at_once(crew)
            several = iter(lambda: tuple(islice(chunks, size)), ())
            with closing(crew.ordered(compile_all, several, named=lambda given: rows_of(given[0]))) as in_order:
                yield from chain.from_iterable(in_order)


def _chunks_at_once(crew: Crew) -> int:
    """Chunks that a child is given together: several of a large input, as asking and answering cost the same for all.

    Few enough that the children end together.
    """
    return max(1, min(_MOST_AT_ONCE, _num_blocks(crew.config) // (_LEAST_TIMES * crew.num_workers)))


def _num_blocks(config: PackConfig) -> int:
    """Chunks that the input has at the least, as far as the sizes of its files tell before it is read."""
    return (total_bytes([spec.path for spec in config.inputs]) or 0) // BLOCK_BYTES


def make_shards(tasks: list[ShardTask], *, crew: Crew) -> Iterator[MadeShard]:
    """Each shard made and audited, in order, by children where there are some or many shards.

    Raises:
        DataError: `worker-died`. What `make_shard` raises.
    """
    crew.job = None  # a child that takes a dead one's place compiles nothing any more
    is_worth_it = crew.is_there or sum(task.num_tokens for task in tasks) >= _WORTH_A_START
    if crew.num_workers == 1 or not is_worth_it:
        try:
            yield from map(make_shard, tasks)
        finally:
            forget_documents()
    else:
        with closing(crew.ordered(make_shard, tasks, named=lambda task: task.name)) as made:
            yield from made


@dataclass(slots=True)
class _Waiting:
    """What a child has or will have."""

    given: Any
    future: Future[Any] | None = None
    is_suspect: bool = False
    """A child may have died of it. Whoever dies of it alone has been killed by it."""


class Crew:
    """Processes of this machine, started when they are first asked for.

    Where one is killed, all are made anew, and what they had is tried once more, each by itself.

        with Crew(config) as crew:
            crew.ordered(call, given, named=str)
    """

    def __init__(self, config: PackConfig) -> None:
        self.config = config
        self.num_workers = _num_cpus() if config.runner == "ray" else config.workers or 1
        self.job: Job | None = None
        """What children that are started now make themselves ready to compile."""
        self._pool: ProcessPoolExecutor | None = None
        self._stop: Any = None
        self._waiting: deque[_Waiting] = deque()
        self._call: Callable[[Any], Any]
        self._named: Callable[[Any], str]

    def __enter__(self) -> Self:
        return self

    def begin(self, model: ModelFiles) -> None:
        """Start children that make themselves ready to compile, no more than there are chunks: they are asked soon."""
        self.job = (model, self.config)
        for _ in range(min(self.num_workers, _num_blocks(self.config))):
            self._started().submit(_be_ready)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def is_there(self) -> bool:
        """Whether children have been started."""
        return self._pool is not None

    def ordered(
        self, call: Callable[[Given], Done], given: Iterable[Given], *, named: Callable[[Given], str]
    ) -> Generator[Done]:
        """What children make by `call` of each that is given, in order; close it where you leave it before its end.

        Raises:
            DataError: `worker-died`, with the place that is `named`.
        """
        self._call, self._named = call, named
        try:
            for one in given:
                self._give(one)
                # A few ahead keep every child busy, and bound what is in memory.
                if len(self._waiting) > 2 * self.num_workers:
                    yield self._next()
            while self._waiting:
                yield self._next()
        finally:
            if self._waiting:
                self.end()

    def end(self) -> None:
        """Wait until the children have left what they do, and end them."""
        if self._pool is not None:
            self._stop.value = 1
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        self._waiting.clear()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = self._new_pool()
        return self._pool

    def _new_pool(self) -> ProcessPoolExecutor:
        context: Any = children_context()
        # No Event: its lock would stay closed for ever where a child is killed that has just asked.
        self._stop = context.RawValue("b", 0)
        own = (self.job, self._stop, gc.get_threshold(), environment())
        return ProcessPoolExecutor(self.num_workers, mp_context=context, initializer=_start_child, initargs=own)

    def _give(self, one: Any) -> None:
        self._waiting.append(_Waiting(one))
        self._submit()

    def _submit(self) -> None:
        """Give children what nobody has yet; while there are suspects, each of those is to be alone."""
        for waiting in () if any(waiting.is_suspect for waiting in self._waiting) else self._waiting:
            if waiting.future is None:
                try:
                    waiting.future = self._started().submit(self._call, waiting.given)
                except BrokenProcessPool:
                    self._begin_again()
                    break

    def _next(self) -> Any:
        while True:
            first = self._waiting[0]
            try:
                if first.future is None:
                    first.future = self._started().submit(self._call, first.given)
                done = first.future.result()
            except BrokenProcessPool:
                if first.is_suspect:
                    raise worker_died(self._named(first.given), hint=_DIED_HINT) from None
                self._begin_again()
            else:
                self._waiting.popleft()
                self._submit()
                return done

    def _begin_again(self) -> None:
        """One child's death ends the whole pool. What is done is done; each of the rest may be what it died of."""
        self._started().shutdown(wait=True, cancel_futures=True)
        self._pool = self._new_pool()
        for waiting in self._waiting:
            if waiting.future is not None and not _is_done(waiting.future):
                waiting.is_suspect, waiting.future = True, None


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_done(future: Future[Any]) -> bool:
    """Whether a child has answered, be it with the error that its rows deserve."""
    return future.done() and not future.cancelled() and not isinstance(future.exception(), BrokenProcessPool)


class _Child:
    """What a child process keeps between chunks."""

    compile_row: CompileRow
    config: PackConfig
    file: DocumentsFile | None = None


def _start_child(
    job: Job | None, stop: Any, collected_after: tuple[int, int, int], environment: dict[str, str]
) -> None:
    """The child looks for cycles of objects as seldom as its parent does."""
    obey_parent(stop, told=environment)
    gc.set_threshold(*collected_after)
    if job is not None:
        _Child.compile_row = staticmethod(batch_compiler(*job))
        _Child.config = job[1]


def _be_ready() -> None:
    """Whoever does it has started."""


def _each(call: Callable[[Given], Done], given: Iterable[Given]) -> list[Done]:
    """What a child makes of each of several that it was given at once."""
    return [call(one) for one in given]


def _compile_in_child(directory: str, chunk: InputChunk) -> Finished:
    refuse_stopped()
    done = compiled(chunk, compile_row=_Child.compile_row, config=_Child.config)
    if _Child.file is None:
        _Child.file = DocumentsFile(Path(directory), out=_Child.config.out)
    return finished(done, first=chunk.block.first, file=_Child.file)
