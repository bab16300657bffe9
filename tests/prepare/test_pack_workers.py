"""Children compile chunks in any order; what comes out is in the rows' order, and a child that dies is told."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sftprep.config.pack import PackConfig
from sftprep.data import Conversation, RowAddress
from sftprep.engines.load import load_model
from sftprep.errors import DataError, TemplateLimitError
from sftprep.prepare.chunk import InputRow
from sftprep.prepare.workers import compile_chunks


def chunks(count: int) -> Iterator[list[InputRow]]:
    """Chunks of one row; the first ones are the slowest to compile."""
    for line in range(1, count + 1):
        address = RowAddress("chats", line)
        answer = "and so on " * (400 // line)
        messages = [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": answer}]
        yield [InputRow(0, 1, address, Conversation(address, messages, [1.0, 1.0]), ())]


@pytest.fixture
def job(samples: Path) -> dict[str, Any]:
    model = str(samples / "model")
    config = PackConfig(files=(Path("chats"),), model=model, out=Path("out"), max_length=4096, workers=2)
    return {"model": load_model(model), "config": config}


def test_chunks_come_out_in_the_order_of_the_rows(job: dict[str, Any]) -> None:
    # More chunks than are ever in flight, so that the window of waiting ones is filled and emptied.
    lines = [chunk.documents["doc_line"].to_pylist() for chunk in compile_chunks(chunks(17), **job)]
    assert lines == [[line] for line in range(1, 18)]
    assert multiprocessing.active_children() == []


@pytest.mark.timeout(60)
def test_a_child_that_dies_is_an_error_that_names_its_rows(job: dict[str, Any]) -> None:
    def with_a_murder() -> Iterator[list[InputRow]]:
        for number, rows in enumerate(chunks(40)):
            if number == 8:
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGKILL)
            yield rows

    with pytest.raises(DataError) as caught:  # H4: no hang
        list(compile_chunks(with_a_murder(), **job))
    assert caught.value.code == "worker-died"
    assert caught.value.place.startswith("chats:")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hostile_template_ends_the_run_at_the_first_row(job: dict[str, Any], workers: int) -> None:
    hostile = replace(job["model"], template="{{ messages[0].content * 10000000000 }}")
    config = job["config"].model_copy(update={"workers": workers})
    with pytest.raises(TemplateLimitError):
        list(compile_chunks(chunks(3), model=hostile, config=config))
