"""Blocks dealt to several checkers of this process as if to its children: which child has which block is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from sftprep.config.validate import ValidateConfig
from sftprep.prepare import check_workers
from sftprep.prepare.check_block import block_checker
from sftprep.prepare.check_workers import Checked, Chunk
from sftprep.sources import lines

NUM_CHILDREN = 3


@contextmanager
def dealt_blocks(choose: Callable[[], int], *, block_bytes: int) -> Iterator[None]:
    """Within, validation goes so; `choose` gives a child's number, and blocks of text hold that many bytes."""

    def dealt(chunks: Iterator[Chunk], *, config: ValidateConfig) -> Iterator[Checked]:
        children = [block_checker(config) for _ in range(NUM_CHILDREN)]
        for chunk in chunks:
            yield chunk, None if chunk.block is None else children[choose()](chunk.block, chunk.file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        patch.setattr(check_workers, "_here", dealt)
        yield
