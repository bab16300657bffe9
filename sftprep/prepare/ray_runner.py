"""Chunks compiled by a Ray cluster, in order: what a worker or a node took with it is done again by another.

The driver reads the input and cuts it; a task has the bytes of one chunk and gives back its account, and its documents
as the bytes that the driver writes. Model and options lie in the object store once, and each worker process keeps the
compiler that it makes of them.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import pyarrow as pa

from sftprep.config.pack import PackConfig
from sftprep.engines.model import ModelFiles
from sftprep.errors import UsageError
from sftprep.prepare.chunk_account import ChunkAccount
from sftprep.prepare.chunk_record import Finished
from sftprep.prepare.chunk_work import compiled, rows_of, worker_died
from sftprep.prepare.compile import CompileRow, batch_compiler
from sftprep.prepare.document_files import DocumentsFile, packed
from sftprep.prepare.fingerprint import versions
from sftprep.prepare.inputs import InputChunk

TRIES: Final = 4
"""How often a chunk is given to a worker before it is an error that none comes back."""

_REACH_SECONDS: Final = 10
_DIED_HINT: Final = "out of memory? give each worker more: fewer CPUs a node, or fewer --workers"


def compile_on_ray(
    chunks: Iterator[InputChunk], *, model: ModelFiles, config: PackConfig, file: DocumentsFile
) -> Iterator[Finished]:
    """Each chunk read and compiled, in order; twice as many as there are workers are in the cluster's memory.

    Their documents go into the file.

    Raises:
        UsageError: `missing-extra`, `cluster-unreachable`; `worker-differs` where a node has other versions of what
            decides bytes. DataError: `worker-died`. What a chunk's rows deserve is raised at once, never tried again.
    """
    first = next(chunks, None)
    if first is None:
        return  # nothing is left to do, so no cluster is asked for
    ray = _ray()
    with _connected(ray, config.ray_address):
        tasks = _Tasks(ray, _Job(model, config, versions()))
        for chunk, (account, documents) in tasks.compiled(chain((first,), chunks)):
            yield Finished.of(account, file.add(documents), first=chunk.block.first)


_Compiled = tuple[ChunkAccount, pa.Buffer]
"""What a worker tells of a chunk, and its documents as they are kept."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker needs to know once."""

    model: ModelFiles
    config: PackConfig
    versions: dict[str, str]


@dataclass(slots=True)
class _Waiting:
    """A chunk that a worker has or will have."""

    chunk: InputChunk
    result: Any
    num_tries: int = 1


class _Tasks:
    """The chunks that are in the cluster."""

    def __init__(self, ray: Any, job: _Job) -> None:
        self._ray = ray
        # A reference in a list stays one: the job is fetched by the workers that do not have it yet.
        self._job = [ray.put(job)]
        # Ray's own retries would give a chunk that takes too much memory to one worker after another, without an end.
        self._compile = ray.remote(num_cpus=1, max_retries=0)(_compile_in_worker)
        self._num_workers = job.config.workers
        self._waiting: deque[_Waiting] = deque()

    def compiled(self, chunks: Iterator[InputChunk]) -> Iterator[tuple[InputChunk, _Compiled]]:
        """Each chunk, and what was compiled of it, in order."""
        # Where the run ends before its time, what waits is not cancelled but let go: a cancelled task that answers all
        # the same ended the driver within Ray 2.60 (a failed check in its C++ core), and few are ever waited for.
        for chunk in chunks:
            self._waiting.append(_Waiting(chunk, self._compile.remote(self._job, chunk)))
            while len(self._waiting) >= self._most_waiting():
                yield self._next()
        while self._waiting:
            yield self._next()

    def _most_waiting(self) -> int:
        """A few chunks ahead keep every worker busy, and bound what is in memory; nodes come, and go, meanwhile."""
        return 2 * (self._num_workers or max(1, int(self._ray.cluster_resources().get("CPU", 1))))

    def _next(self) -> tuple[InputChunk, _Compiled]:
        waiting = self._waiting[0]
        while True:
            try:
                done: _Compiled = self._ray.get(waiting.result)
            except self._ray.exceptions.RayError as error:
                self._again(waiting, error)
            else:
                self._waiting.popleft()
                return waiting.chunk, done

    def _again(self, waiting: _Waiting, error: Any) -> None:
        """Give a chunk away once more, where what was lost is not of its own making."""
        named = self._ray.exceptions
        cause = error.cause if isinstance(error, named.RayTaskError) else error
        lost = (named.WorkerCrashedError, named.NodeDiedError, named.OutOfMemoryError, named.ObjectLostError)
        if not isinstance(cause, (*lost, _NotFetchedError)):
            raise _of_worker(cause) from error
        if waiting.num_tries == TRIES:
            raise worker_died(rows_of(waiting.chunk), hint=_DIED_HINT) from error
        waiting.num_tries += 1
        waiting.result = self._compile.remote(self._job, waiting.chunk)


class _Worker:
    """What a worker process keeps between chunks: the compiler of the last job that it was given."""

    job: str = ""
    compile_row: CompileRow
    config: PackConfig


def _compile_in_worker(job: list[Any], chunk: InputChunk) -> _Compiled:
    if _Worker.job != job[0].hex():
        found = _fetched(job[0])
        _refuse_other(found.versions)
        _Worker.compile_row = staticmethod(batch_compiler(found.model, found.config))
        _Worker.config = found.config
        _Worker.job = job[0].hex()
    done = compiled(chunk, compile_row=_Worker.compile_row, config=_Worker.config)
    return ChunkAccount.of(done), packed(done.documents)


class _NotFetchedError(Exception):
    """The job could not be fetched: a worker's own Ray errors do not survive the way to the driver."""


def _fetched(job: Any) -> _Job:
    ray = _ray()
    try:
        found: _Job = ray.get(job)
    except ray.exceptions.RayError as error:
        raise _NotFetchedError(str(error)) from None
    return found


def _refuse_other(wanted: dict[str, str]) -> None:
    """UsageError where this process would make other bytes than the one that asks it to."""
    own = versions()
    others = [f"{name} {own.get(name)}, not {version}" for name, version in wanted.items() if own.get(name) != version]
    if others:
        raise UsageError(
            f"a worker has other versions than this process: {', '.join(others)}",
            code="worker-differs",
            place=os.uname().nodename,
            hint="install the same versions on every node: they decide bytes",
        )


def _of_worker(cause: Exception) -> Exception:
    """What a task ended with; where the node cannot even read the task, what to do about it."""
    if isinstance(cause, ImportError):
        return UsageError(
            f"a worker lacks a package: {cause}",
            code="worker-differs",
            place="--runner ray",
            hint="install the same versions on every node: they decide bytes",
        )
    return cause


def _ray() -> Any:
    try:
        # An extra of its own, and half a second that other runs do without.
        import ray
    except ImportError as error:
        raise UsageError(
            f"a package is not installed: {error}",
            code="missing-extra",
            place="--runner ray",
            hint="pip install 'sftprep[ray]'",
        ) from error
    return ray


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection that is there already is used and left; another is made, and closed at the end."""
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if address not in (None, there):
            raise _unreachable(f"this process is connected to {there} already", place=str(address))
        yield
        return
    # Of a cluster that is started here: nobody was asked whether it may send statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    named = address or os.environ.get("RAY_ADDRESS", "")
    try:
        _reach(named)
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreachable(str(error).partition("\n")[0][:200], place=named or "--runner ray") from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """OSError where nothing listens at HOST:PORT; Ray itself tries for two minutes and then ends the process."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()


def _unreachable(why: str, *, place: str) -> UsageError:
    return UsageError(
        f"no Ray cluster answers: {why}",
        code="cluster-unreachable",
        place=place,
        hint="--ray-address is HOST:PORT of the head node, as `ray start --head` prints it",
    )
