"""Children that check chunks: one that dies is an error that names its rows, and is waited for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sftprep.config.validate import ValidateConfig
from sftprep.data import RowAddress
from sftprep.errors import DataError
from sftprep.prepare.check_workers import Chunk, check_chunks
from sftprep.sources.blocks import SourceRow


class Deadly(bytes):
    """A row that ends the process which receives it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (9,)


def chunks() -> Iterator[Chunk]:
    for number in range(1, 4):
        raw = Deadly(b"{}") if number == 2 else b"{}"
        yield Chunk("f", [SourceRow(RowAddress("f", number), raw, 0)], is_first=number == 1)


def test_a_child_that_dies_is_an_error_that_names_its_rows() -> None:
    config = ValidateConfig(files=(Path("f"),), workers=2)
    with pytest.raises(DataError) as caught:
        list(check_chunks(chunks(), config=config))
    assert caught.value.code == "worker-died"
    assert caught.value.place.startswith("f:")
    assert "--workers" in caught.value.hint
