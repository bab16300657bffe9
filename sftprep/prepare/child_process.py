"""How child processes of this machine come to be, and what each of them does first.

They are forked, where the system knows that, from a process that has done nothing but import what they need: their
parent has threads, whose locks a fork would copy in whatever state they are. So imports are paid once, and beside what
the parent does meanwhile. This module imports nothing that takes long: a command can begin with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.context import BaseContext
from typing import Any, ClassVar, Final

from sftprep.config.pack import PackConfig
from sftprep.config.places import is_remote

_IMPORTED: Final = "sftprep.prepare.child_imports"
_ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""What keeps numpy and pyarrow from starting threads when they are imported."""


def will_be_asked(config: PackConfig) -> bool:
    """Whether children will compile for this pack in any case: there is no set yet that might be what it would make."""
    is_here = config.runner == "local" and not is_remote(config.out)
    with suppress(OSError):  # what is wrong with the place is told by whoever uses it
        return is_here and (config.workers or 1) > 1 and not config.out.exists()
    return False


def start_importing() -> None:
    """Let the process begin that children are forked from, unless it is there or the system has no such thing."""
    if not _can_fork():
        return
    # Where there is none, `multiprocessing.forkserver` cannot be imported.
    from multiprocessing import forkserver

    # Modules from the places that this process has them from, not from whatever lies in the working directory.
    places = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with _set(_ONE_THREAD | places):
        forkserver.set_forkserver_preload([_IMPORTED])
        forkserver.ensure_running()


def children_context() -> BaseContext:
    """By which to start children; what `environment` gives has to be handed to each of them."""
    start_importing()
    return multiprocessing.get_context("forkserver" if _can_fork() else "spawn")


def environment() -> dict[str, str]:
    """This process's own, for `obey_parent`: what children are forked from may have begun with another."""
    return dict(os.environ)


def _can_fork() -> bool:
    # macOS knows it too, but what its system libraries begin when they are imported does not outlive a fork.
    # Nor may it find other modules than this process, where that was told not to look at the environment.
    is_told = not sys.flags.ignore_environment
    return is_told and sys.platform == "linux" and "forkserver" in multiprocessing.get_all_start_methods()


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """The variables are set in the environment, inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class StoppedError(Exception):
    """Raised in a child whose parent wants nothing of it any more; nobody is told."""


class _Told:
    stop: ClassVar[Any] = None
    """A number in memory that is shared with the parent: not 0 where it wants no more."""


def obey_parent(stop: Any = None, *, told: Mapping[str, str] | None = None) -> None:
    """Call once in a child of `multiprocessing`; `stop` is a shared number by which the parent says that it has enough.

    `told` is the parent's `environment`, which this process has from now on.

    Ctrl-C reaches the whole process group; the parent alone answers it and ends its children. A parent that is killed
    can end nobody: its children would wait for work for ever, as each of them holds the queue open.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if told is not None:
        os.environ.clear()
        os.environ.update(told)
    _Told.stop = stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def refuse_stopped() -> None:
    """StoppedError in a child whose parent has enough: what takes long asks now and then."""
    if _Told.stop is not None and _Told.stop.value:
        raise StoppedError


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
