"""Numbers in sentences: `1 error`, `2 errors`."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """The number, with thousands apart, and what is counted: `one` of it, or `many` (`one` with an s unless given).

    Words that go with the number may be part of both: `counted(1, "row is", "rows are")`.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def sized(num_bytes: int) -> str:
    """Bytes in the largest unit of which there is one, `1.50 MiB`; a small model has not 0.00 of a larger one."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return counted(num_bytes, "byte")
