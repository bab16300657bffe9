"""Runs: who wrote which characters of a text, as a short tuple that covers it."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

DERIVED: Final = -1
"""The offset of a run whose characters no longer correspond to the source's one by one."""

NO_MESSAGE: Final = -1
"""The stamp of what is written outside any message's turn."""


new_tuple: Final = tuple.__new__
"""Makes a named tuple of all its values in half the time that its own constructor takes."""


class Run(NamedTuple):
    """`length` characters of `source`, the first of which is the source's character `offset` (or `DERIVED`)."""

    length: int
    source: int
    offset: int


class Source(NamedTuple):
    """A string of the conversation: `message` is -1 for tools and keyword arguments; `path` is a JSON pointer.

    `structure` marks brackets, quotes and numbers that a JSON filter writes for a container of the conversation.
    """

    message: int
    path: str
    text: str
    structure: bool = False
    parent: int = -1
    """The source of which this one is a part, such as its text without white space at the edges (-1 for none)."""
    shift: int = 0
    """Where in its parent it begins, or `DERIVED`."""


def stamp_of(source: int) -> int:
    """The message that a literal source is stamped with (`NO_MESSAGE` for none)."""
    return -2 - source


def extend_runs(runs: list[Run], more: Iterable[Run]) -> None:
    """Append runs, merging neighbours that continue each other."""
    for run in more:
        if runs:
            last = runs[-1]
            if last.source == run.source and (run.source < 0 or _continues(last, run)):
                runs[-1] = new_tuple(Run, (last.length + run.length, last.source, last.offset))
                continue
        runs.append(run)


def _continues(last: Run, run: Run) -> bool:
    if last.offset == DERIVED:
        return run.offset == DERIVED
    return run.offset == last.offset + last.length


def rooted(sources: Sequence[Source], run: Run) -> Run:
    """The same characters as a run of the field that they came from."""
    while run.source >= 0 and sources[run.source].parent >= 0:
        source = sources[run.source]
        lost = DERIVED in {run.offset, source.shift}
        run = Run(run.length, source.parent, DERIVED if lost else run.offset + source.shift)
    return run


def cut(runs: tuple[Run, ...], start: int, stop: int) -> tuple[Run, ...]:
    """The runs of the characters `[start, stop)`."""
    ends = list(itertools.accumulate([run.length for run in runs]))
    first, last = bisect_right(ends, start), bisect_left(ends, stop)
    if start >= stop or first == len(runs):
        return ()
    kept = list(runs[first : last + 1])
    if last < len(runs):
        kept[-1] = _part(kept[-1], 0, kept[-1].length - (ends[last] - stop))
    skipped = start - (ends[first - 1] if first else 0)
    kept[0] = _part(kept[0], skipped, kept[0].length)
    return tuple(kept)


def _part(run: Run, start: int, stop: int) -> Run:
    """The characters `[start, stop)` of a run."""
    offset = run.offset if run.offset == DERIVED or run.source < 0 else run.offset + start
    return Run(stop - start, run.source, offset)
