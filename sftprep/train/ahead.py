"""What the next steps need is made by a thread of its own, while this one computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")

_STEPS_AHEAD: Final = 2


def ahead(make: Callable[[int], T], steps: range) -> Generator[T, None, None]:
    """What `make` returns for each step, in order; what it raises, at the step that it was called for.

    One thread calls it, so `make` need not be safe to be called twice at once; nothing else may use what it uses.
    Close the iterator, or use it up: the thread ends then.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
    coming = deque(pool.submit(make, step) for step in steps[:_STEPS_AHEAD])
    try:
        for place in range(len(steps)):
            made = coming.popleft().result()
            if place + _STEPS_AHEAD < len(steps):
                coming.append(pool.submit(make, steps[place + _STEPS_AHEAD]))
            yield made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
