"""Lines by their place in a file: the same rows as their bytes give, and no place where the bytes are others."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftprep.errors import SourceError
from sftprep.sources import lines
from sftprep.sources.blocks import Block
from sftprep.sources.lines import read_blocks
from sftprep.sources.stored import StoredLines, is_stored, stored


def blocks(path: Path) -> list[Block]:
    return list(read_blocks(path, name="f"))


PARTS = st.lists(st.sampled_from([b"{}", b'{"a": 1}', b"", b"\r", b"\xef\xbb\xbf", b"\n"]), min_size=1)


@given(PARTS, st.integers(1, 20))
def test_a_place_gives_the_rows_that_its_bytes_give(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], block_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "f.jsonl"
    path.write_bytes(b"{}\n" + b"\n".join(parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        for block in blocks(path):
            assert is_stored(block, path)
            place = stored(block, path)
            assert isinstance(place, StoredLines)
            assert (place.first, list(place.rows("f"))) == (block.first, list(block.rows("f")))


def test_what_is_compressed_or_no_lines_has_no_place(tmp_path: Path) -> None:
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"{}\n{}"))
    (tmp_path / "f.json").write_bytes(b"[{}, {}]")
    for path in tmp_path.iterdir():
        assert not any(is_stored(block, path) for block in blocks(path))
    (block,) = blocks(tmp_path / "f.json")
    assert stored(block, tmp_path / "f.json") is block


@pytest.mark.parametrize("size", [None, 4])
def test_a_file_that_is_gone_or_cut_before_it_is_read_is_an_error_at_its_line(tmp_path: Path, size: int | None) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"{}\n{}\n{}\n")
    (block,) = blocks(path)
    place = stored(block, path)
    path.unlink()
    if size is not None:
        path.write_bytes(b"{}\n{")
    with pytest.raises(SourceError) as caught:
        list(place.rows("f"))
    assert (caught.value.code, caught.value.place) == ("read-failed", "f:1")
