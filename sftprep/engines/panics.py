"""What breaks down inside a compiled tokenizer, as an error with a name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sftprep.errors import DataError

_PANIC: Final = "PanicException"
"""The class that Rust's bindings raise: no Exception, in no module that can be imported, so no process can send it."""


@contextmanager
def named_panics() -> Iterator[None]:
    """DataError `tokenizer-failed` where a compiled library panics, which can be neither caught nor sent."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        raise DataError(
            f"the tokenizer's library broke down on a text: {error}",
            code="tokenizer-failed",
            hint="tokenizers is known to do so where two added tokens take the same white space (lstrip, rstrip in "
            "tokenizer.json): change one of them, or install another version of tokenizers",
        ) from error
