"""Numbers in sentences: `1 error`, `2 errors`."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """The number, with thousands apart, and what is counted: `one` of it, or `many` (`one` with an s unless given).

    Words that go with the number may be part of both: `counted(1, "row is", "rows are")`.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
