"""What every child process of this machine does first: leave Ctrl-C to its parent, and end when its parent does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any, ClassVar


class StoppedError(Exception):
    """Raised in a child whose parent wants nothing of it any more; nobody is told."""


class _Told:
    stop: ClassVar[Any] = None
    """A number in memory that is shared with the parent: not 0 where it wants no more."""


def obey_parent(stop: Any = None) -> None:
    """Call once in a child of `multiprocessing`; `stop` is a shared number by which the parent says that it has enough.

    Ctrl-C reaches the whole process group; the parent alone answers it and ends its children. A parent that is killed
    can end nobody: its children would wait for work for ever, as each of them holds the queue open.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
