"""Documents of finished chunks in files of several processes: each is found where its writer said that it is."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sftprep.arrow import list_values
from sftprep.data import TOKEN_BATCH_SCHEMA
from sftprep.errors import OutputError
from sftprep.prepare.document_files import DocumentsFile, MappedDocuments, SpooledDocuments, packed


def documents(*ids: list[int]) -> pa.RecordBatch:
    count = len(ids)
    spans = [[0]] * count
    columns = [
        list(ids),
        spans,
        spans,
        spans,
        [[1.0]] * count,
        [0] * count,
        [*range(count)],
        [0] * count,
        ["{}"] * count,
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, TOKEN_BATCH_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=TOKEN_BATCH_SCHEMA)


def test_chunks_of_several_files_are_mapped_in_their_order_and_read_by_place(tmp_path: Path) -> None:
    files = [DocumentsFile(tmp_path, out=tmp_path / "out") for _ in range(3)]
    chunks = [documents([number], [number, 100 + number]) for number in range(9)]
    places = [files[number * 2 % 3].add(packed(chunk)) for number, chunk in enumerate(chunks)]
    assert len({place.file for place in places}) == 3
    assert all(place.is_whole(tmp_path) for place in places)
    mapped = MappedDocuments(SpooledDocuments.of(tmp_path, places))
    assert mapped.table == pa.Table.from_batches(chunks)
    values = [list_values(chunk) for chunk in mapped.table["input_ids"].chunks]
    found = [np.frombuffer(mapped.read([(mapped.place(part), part.nbytes)]), np.int32) for part in values]
    assert [part.tolist() for part in found] == [[number, number, 100 + number] for number in range(9)]


def test_a_place_whose_bytes_are_others_or_fewer_is_not_whole(tmp_path: Path) -> None:
    place = DocumentsFile(tmp_path, out=tmp_path / "out").add(packed(documents([1, 2, 3])))
    path = tmp_path / place.file
    whole = path.read_bytes()
    for damaged in (whole[:100] + b"?" + whole[101:], whole[: place.length - 1], b""):
        path.write_bytes(damaged)
        assert not place.is_whole(tmp_path)
    path.unlink()
    assert not place.is_whole(tmp_path)


def test_what_follows_a_failed_write_is_found_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, writev = DocumentsFile(tmp_path, out=tmp_path / "out"), os.writev
    chunks = [packed(documents([number])) for number in range(3)]

    def full(handle: int, parts: list[memoryview]) -> int:
        writev(handle, [parts[0][:7]])
        raise OSError(errno.ENOSPC, "No space left on device")

    first = file.add(chunks[0])
    with monkeypatch.context() as broken:
        broken.setattr(os, "writev", full)
        with pytest.raises(OutputError) as caught:
            file.add(chunks[1])
    assert caught.value.code == "disk-full"
    last = file.add(chunks[2])
    assert first.is_whole(tmp_path)
    assert last.is_whole(tmp_path)


def test_a_write_that_the_system_takes_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writev = os.writev

    def few(handle: int, parts: list[Any]) -> int:
        return writev(handle, [parts[0][:100]])

    monkeypatch.setattr(os, "writev", few)
    file = DocumentsFile(tmp_path, out=tmp_path / "out")
    places = [file.add(packed(documents([number] * 50))) for number in range(3)]
    assert all(place.is_whole(tmp_path) for place in places)
