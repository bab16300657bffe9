"""What one render may use: steps, characters made, depth of what it prints, CPU time.

A template is a program by somebody else. It runs sandboxed, and every operation whose cost it can choose is charged
here before it is done: loops and calls by step, texts and lists by size, powers and widths by their result.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

MAX_STEPS: Final = 20_000_000
"""Passes of loops (1 each), calls and filters (16 each)."""
MAX_SECONDS: Final = 10.0
"""CPU time of the thread."""
BASE_SIZE: Final = 1 << 24
"""Characters that any render may make; a large conversation may make more, by its own size."""
SIZE_FACTOR: Final = 64
MAX_WIDTH: Final = 1_000_000
"""Of a padding, an indent, a batch."""
MAX_BITS: Final = 100_000
"""Of a whole number."""

_ITEM_SIZE: Final = 64
"""What an element of a list counts, in characters: about its bytes over the bytes of a character."""
_CALL_STEPS: Final = 16
_CHECK_EVERY: Final = 256
_CONTAINERS: Final = (list, tuple, dict, set, frozenset)
_WIDE_DIRECTIVE: Final = re.compile(r"%[^a-zA-Z%]*(\d{7}|\*)")
_WIDE_SPEC: Final = re.compile(r"\d{7}")
_DEEP_FILTERS: Final = frozenset(
    {"tojson", "string", "pprint", "join", "format", "urlencode", "xmlattr", "unique", "groupby", "sort", "replace"}
)
_WIDTH_NAMES: Final = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice", "wordwrap", "tojson", "truncate"}
)


class RenderLimitError(Exception):
    """A render has used more than a template may."""


class Meter:
    """What one render has used so far. `input_size` gives the characters of what it was handed, asked once at most."""

    def __init__(self, input_size: Callable[[], int] = lambda: 0) -> None:
        self._input_size = input_size
        self._steps = 0
        self._next_check = _CHECK_EVERY
        self.size = 0
        self._max_size = BASE_SIZE
        self._extended = False
        self._started = time.thread_time()

    def step(self, steps: int = 1) -> None:
        """Count steps. RenderLimitError where there were too many, or they took too long."""
        self._steps += steps
        if self._steps >= self._next_check:
            self._next_check = self._steps + _CHECK_EVERY
            if self._steps > MAX_STEPS:
                raise RenderLimitError(f"it takes more than {MAX_STEPS:,} steps")
            if time.thread_time() - self._started > MAX_SECONDS:
                raise RenderLimitError(f"it takes more than {MAX_SECONDS:.0f} seconds")

    def charge(self, size: int) -> None:
        """Count characters that are made. RenderLimitError where they are more than this conversation explains."""
        self.size += size
        if self.size > self._max_size and not self._extended:
            self._extended = True
            self._max_size += SIZE_FACTOR * self._input_size()
        if self.size > self._max_size:
            raise RenderLimitError(f"it makes more than {self._max_size:,} characters")

    def made(self, value: object) -> None:
        """Count a value that an operation gave back."""
        if isinstance(value, (str, bytes)):
            self.charge(len(value))
        elif isinstance(value, _CONTAINERS):
            self.charge(_ITEM_SIZE * len(value))

    def looked_through(self, value: object) -> None:
        """Count everything inside a value that is about to be printed, compared or hashed."""
        if isinstance(value, (str, bytes)):
            self.charge(len(value))
        elif isinstance(value, _CONTAINERS):
            for size in _sizes(value):
                self.charge(size)

    def before_binop(self, operator: str, left: object, right: object) -> None:
        """Refuse `left operator right` where its result would be too large."""
        if operator == "**":
            _refuse_wide(_bits(left) * abs(right) if isinstance(right, int) else 0, MAX_BITS, "a power")
        elif operator == "*":
            self._before_product(left, right)
        elif operator == "+":
            if isinstance(left, str) and isinstance(right, str):
                self.charge(len(left) + len(right))
                return
            for value in (left, right):
                self.made(value)
        elif operator == "%" and isinstance(left, str):
            self.before_format(left, right)

    def _before_product(self, left: object, right: object) -> None:
        if isinstance(left, int) and isinstance(right, int):
            _refuse_wide(_bits(left) + _bits(right), MAX_BITS, "a product")
            return
        for value, count in ((left, right), (right, left)):
            if isinstance(count, int) and isinstance(value, (str, bytes)):
                self.charge(len(value) * max(count, 0))
            elif isinstance(count, int) and isinstance(value, _CONTAINERS):
                self.charge(_ITEM_SIZE * len(value) * max(count, 0))

    def before_format(self, template: str, values: object) -> None:
        """Refuse `template % values` with a width that is too large, or texts that are."""
        if _WIDE_DIRECTIVE.search(template):
            raise RenderLimitError("it pads a text to more than a million characters")
        self.looked_through(values)
        self.charge(len(template))

    def before_call(self, name: str, owner: object, args: Sequence[Any]) -> None:
        """Refuse a method or a filter whose result would be too large; `owner` is the text that it works on."""
        self.step(_CALL_STEPS)
        if name in _WIDTH_NAMES:
            widths = [abs(value) for value in args if isinstance(value, int)]
            _refuse_wide(max(widths, default=0), MAX_WIDTH, "a width")
            tabs = str(owner).count("\t") if name == "expandtabs" else 0
            lines = str(owner).count("\n") if name == "indent" else 0
            self.charge((tabs + lines) * max(widths, default=0))
        if name == "replace" and isinstance(owner, str) and len(args) >= 2:
            self._before_replace(owner, args[0], args[1])

    def _before_replace(self, text: str, old: object, new: object) -> None:
        times = str.count(text, str(old)) if str(old) else len(text) + 1
        self.charge(times * len(str(new)) + len(text))

    def before_filter(self, name: str, args: Sequence[Any]) -> None:
        """The same for a filter, whose first argument is the value that it works on."""
        value = args[0] if args else None
        self.before_call(name, value, args[1:])
        if name in _DEEP_FILTERS:
            for arg in args:
                self.looked_through(arg)
        if name == "join" and len(args) > 1 and isinstance(value, (str, *_CONTAINERS)):
            self.charge(len(value) * len(str(args[1])))
        if name == "format" and isinstance(value, str):
            self.before_format(value, args[1:])


def check_spec(spec: str) -> None:
    """RenderLimitError where a format specification such as `>10000000` asks for too much."""
    if _WIDE_SPEC.search(spec):
        raise RenderLimitError("it pads a text to more than a million characters")


def _sizes(value: object) -> Iterator[int]:
    """Sizes of everything inside, one by one: whoever sums them stops in time, however often a list holds itself."""
    yield _ITEM_SIZE
    if isinstance(value, (str, bytes)):
        yield len(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _sizes(key)
            yield from _sizes(item)
    elif isinstance(value, _CONTAINERS):
        for item in value:
            yield from _sizes(item)


def _bits(value: object) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _refuse_wide(size: int, limit: int, what: str) -> None:
    if size > limit:
        raise RenderLimitError(f"it asks for {what} beyond {limit:,}")
