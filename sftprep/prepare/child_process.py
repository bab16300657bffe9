"""What every child process of this machine does first: leave Ctrl-C to its parent, and end when its parent does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def obey_parent() -> None:
    """Call once in a child of `multiprocessing`.

    Ctrl-C reaches the whole process group; the parent alone answers it and ends its children. A parent that is killed
    can end nobody: its children would wait for work for ever, as each of them holds the queue open.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
