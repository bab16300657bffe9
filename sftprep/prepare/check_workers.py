"""Who checks the chunks: this process, or some of its children. The chunks come out in order either way."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

from sftprep.config.validate import ValidateConfig
from sftprep.data import RowAddress
from sftprep.errors import DataError, SourceError
from sftprep.prepare.check import CheckedRow, CheckRow, SaidOnce, checker
from sftprep.prepare.child_process import obey_parent
from sftprep.sources.blocks import SourceRow


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of rows of one file; `error` is what is wrong with the file after them."""

    file: str
    rows: Sequence[SourceRow]
    is_first: bool
    error: SourceError | None = None


BareRow = tuple[int, bytes, int, str]
"""The fields of a SourceRow, but for its file."""

Checked = tuple[Chunk, list[CheckedRow]]


def check_chunks(chunks: Iterator[Chunk], *, config: ValidateConfig) -> Iterator[Checked]:
    """Each chunk and what became of its rows, in order.

    Raises:
        DataError: `worker-died`, naming the rows that it had.
    """
    if config.workers > 1:
        yield from _in_children(chunks, config=config)
        return
    check = checker(config)
    for chunk in chunks:
        yield chunk, [check(row) for row in chunk.rows]


def _in_children(chunks: Iterator[Chunk], *, config: ValidateConfig) -> Iterator[Checked]:
    # Fork would copy this process's threads' locks (tokenizers has a thread pool) in whatever state they are.
    context = multiprocessing.get_context("spawn")
    once = SaidOnce()  # Each child has its own: the first of all of them is told here.
    pool = ProcessPoolExecutor(config.workers, mp_context=context, initializer=_start_child, initargs=(config,))
    waiting: deque[tuple[Chunk, Future[list[CheckedRow]]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_check_in_child, chunk.file, _bare(chunk.rows))))
            # A few chunks ahead keep every child busy, and bound what is in memory.
            if len(waiting) > 2 * config.workers:
                yield _result(*waiting.popleft(), once)
        while waiting:
            yield _result(*waiting.popleft(), once)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(chunk: Chunk, future: Future[list[CheckedRow]], once: SaidOnce) -> Checked:
    try:
        rows = future.result()
    except BrokenProcessPool as error:
        first = chunk.rows[0].address if chunk.rows else chunk.file
        place = f"{first}, or rows after it"
        hint = "out of memory? try fewer --workers"
        raise DataError("a worker process died", code="worker-died", place=place, hint=hint) from error
    return chunk, [replace(row, findings=once.first(row.findings)) if row.findings else row for row in rows]


class _Child:
    """What a child process keeps between chunks."""

    check: CheckRow


def _start_child(config: ValidateConfig) -> None:
    obey_parent()
    _Child.check = staticmethod(checker(config))


def _bare(rows: Sequence[SourceRow]) -> list[BareRow]:
    # Tuples are sent between processes several times as fast as dataclasses.
    return [(row.address.line, row.raw, row.offset, row.dropped_null) for row in rows]


def _check_in_child(file: str, rows: Sequence[BareRow]) -> list[CheckedRow]:
    return [
        _Child.check(SourceRow(RowAddress(file, line), raw, offset, dropped_null))
        for line, raw, offset, dropped_null in rows
    ]
