"""Lines by their place in a file: the same blocks and rows as their bytes give, and no place of other bytes."""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftprep.errors import SourceError
from sftprep.sources import lines
from sftprep.sources.blocks import LineBlock
from sftprep.sources.lines import read_blocks
from sftprep.sources.stored import StoredLines, shared_blocks

PARTS = st.lists(
    st.sampled_from([b"{}", b'{"a": 1}', b"", b"\r", b"\xef\xbb\xbf", b"\n", b"{" + b" " * 90 + b"}", b"\n\n\n"]),
    min_size=1,
    max_size=40,
)


@given(PARTS, st.integers(1, 60))
def test_places_are_cut_as_the_bytes_are_and_give_their_rows(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], block_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "f.jsonl"
    path.write_bytes(b"{}\n" + b"\n".join(parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        blocks = list(read_blocks(path, name="f"))
        told: list[int] = []
        places = list(shared_blocks(path, name="f", on_bytes=told.append))
    assert sum(told) == path.stat().st_size
    assert all(isinstance(place, StoredLines) for place in places)
    assert [place.loaded("f") for place in places if isinstance(place, StoredLines)] == blocks
    assert [list(place.rows("f")) for place in places] == [list(block.rows("f")) for block in blocks]


def test_blank_lines_before_the_first_row_are_no_reason_to_find_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 8)
    (tmp_path / "late.jsonl").write_bytes(b"\n" * 100 + b"{}\n{}\n")
    (tmp_path / "blank.jsonl").write_bytes(b"\n" * 100)
    found = [row.address.line for block in shared_blocks(tmp_path / "late.jsonl", name="f") for row in block.rows("f")]
    assert found == [101, 102]
    with pytest.raises(SourceError, match="holds no rows"):
        list(shared_blocks(tmp_path / "blank.jsonl", name="f"))


def test_what_is_compressed_or_no_lines_has_no_place(tmp_path: Path) -> None:
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"{}\n{}"))
    (tmp_path / "f.json").write_bytes(b"[{}, {}]")
    for path in tmp_path.iterdir():
        assert list(shared_blocks(path, name="f")) == list(read_blocks(path, name="f"))


def test_standard_input_is_no_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").write_bytes(b"{}\n")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"{}\n")))
    (block,) = shared_blocks(Path("-"), name="-")
    assert isinstance(block, LineBlock)


@pytest.mark.parametrize("size", [None, 4])
def test_a_file_that_is_gone_or_cut_before_it_is_read_is_an_error_at_its_line(tmp_path: Path, size: int | None) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"{}\n{}\n{}\n")
    (place,) = shared_blocks(path, name="f")
    path.unlink()
    if size is not None:
        path.write_bytes(b"{}\n{")
    with pytest.raises(SourceError) as caught:
        list(place.rows("f"))
    assert (caught.value.code, caught.value.place) == ("read-failed", "f:1")
