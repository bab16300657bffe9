"""Ctrl-C that is never lost: during an import it waits until the import is done.

Compiled modules, and pydantic while it builds a class, call back into Python and drop what is raised there, a
KeyboardInterrupt too: the run would go on as if nobody had asked it to stop.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Final, NoReturn

EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells expect of an interrupted command."""

_IMPORTING: Final = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
_AGAIN_SECONDS: Final = 0.02


def keep_interrupts() -> None:
    """From now on SIGINT raises KeyboardInterrupt in this process as soon as no import is under way.

    A process that was told to ignore SIGINT (`nohup`, a job in the background) goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        signal.signal(signal.SIGALRM, _interrupt)


def end_interrupted(interrupt: KeyboardInterrupt) -> NoReturn:
    """Say so on stderr, with what is noted on the interrupt, and end with its exit code."""
    told = ["interrupted: nothing was published", *getattr(interrupt, "__notes__", ())]
    # One more Ctrl-C, or one that waits for an import, must not kill what is ending already, with another code.
    for number in (signal.SIGINT, signal.SIGALRM):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_IGN)
    sys.stderr.write("\n  ".join(told) + "\n")
    sys.exit(EXIT_INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        return
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename in _IMPORTING:
            return True
        frame = frame.f_back
    return False
