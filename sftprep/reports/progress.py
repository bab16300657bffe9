"""The bar of input bytes that long commands show on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from sftprep.reports.console import terminal_console

_WINDOW: Final = 10.0
"""Seconds over which the rate is taken. Chunks of an earlier run are read at gigabytes a second, and the first bytes
long before a row of them is done: a rate is shown when none of that is in it."""


class _Steady(ProgressColumn):
    """Another column, empty until its rate is one of the work."""

    def __init__(self, shown: Callable[[Task], Text]) -> None:
        super().__init__()
        self._shown = shown

    def render(self, task: Task) -> Text:
        """What the column shows of a task."""
        return self._shown(task) if (task.elapsed or 0.0) > _WINDOW + 1 else Text()


def byte_bar(console: Console, *, get_time: Callable[[], float] = time.monotonic) -> Progress:
    """A bar with bytes, rate and time left; what a task is called is no markup."""
    steady = (_Steady(TransferSpeedColumn().render), _Steady(TimeRemainingColumn().render))
    text = TextColumn("{task.description}", markup=False)
    return Progress(
        text,
        BarColumn(),
        DownloadColumn(),
        *steady,
        console=console,
        transient=True,
        speed_estimate_period=_WINDOW,
        get_time=get_time,
    )


@contextmanager
def byte_progress(
    what: str, total: Callable[[], int | None], *, quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, if that is a terminal; yields what is told of bytes read.

    `total` says how many there are, None where nobody knows; it is asked where a bar is shown.
    """
    console = terminal_console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda count: None
        return
    with byte_bar(console) as progress:
        task = progress.add_task(what, total=total())
        yield lambda count: progress.advance(task, count)
