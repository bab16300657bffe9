"""A JSON array gives its items as the bytes that they were written in, however it is laid out and cut (D2, M1, M3)."""

from __future__ import annotations

import contextlib
import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.errors import SourceError
from sftprep.sources.array import array_items
from sftprep.sources.lines import read_rows

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=4), values, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(VALUES, min_size=1, max_size=6),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
    st.sampled_from([1, 2, 3, 7, 1000]),
)
def test_items_are_the_values_in_order_wherever_the_text_is_cut(
    values: list[object], indent: int | None, ascii_only: bool, size: int
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    items = list(array_items(iter([text[at : at + size] for at in range(0, len(text), size)]), name="f"))
    assert [json.loads(item.raw) for item in items] == values
    assert all(text[item.offset : item.offset + len(item.raw)] == item.raw for item in items)


@pytest.mark.parametrize(
    ("text", "number", "what"),
    [
        (b'[{"a": 1}, {"a" 2}, {}]', 2, "delimiter"),
        (b'[{"a": 1}, {"a": "b', 2, "unterminated"),
        (b'[{"a": 1}', 2, "cut off"),
        (b'[{"a": 1},', 2, "cut off"),
        (b'[{"a": 1},]', 2, "expecting value"),
        (b'[{"a": 1} {}]', 2, "must be a comma"),
        (b'[{"a": 1}]\n[{"a": 1}]', 2, "more after"),
        (b"[" + b'{"a":' * 5000, 1, ""),
    ],
)
def test_what_is_not_one_array_is_an_error_at_the_item_that_was_reached(
    tmp_path: Path, text: bytes, number: int, what: str
) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(text)
    with pytest.raises(SourceError) as caught:
        list(read_rows(path, name="f"))
    assert (caught.value.code, caught.value.place) == ("bad-array", f"f:{number}")
    assert what in caught.value.message


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("f", b'\xef\xbb\xbf \n[\n  {"a": 1},\n  {"a": "\xff"} ]\n', [b'{"a": 1}', b'{"a": "\xff"}']),
        ("f.json", b"[1, [2]]", [b"1", b"[2]"]),
        ("f.json", b'{"a": 1}\n{"a": 2}', [b'{"a": 1}', b'{"a": 2}']),
        ("f.jsonl", b'[{"a": 1}]\n[{}]', [b'[{"a": 1}]', b"[{}]"]),
        ("f", b"[1]\n[2]", [b"[1]", b"[2]"]),
    ],
)
def test_an_array_is_known_by_its_start_and_a_file_of_lines_by_its_name(
    tmp_path: Path, name: str, text: bytes, rows: list[bytes]
) -> None:
    (tmp_path / name).write_bytes(text)
    assert [row.raw for row in read_rows(tmp_path / name, name="f")] == rows
    if len(rows) == 2:
        assert [row.address.line for row in read_rows(tmp_path / name, name="f")] == [1, 2]


@pytest.mark.parametrize("text", [b"[]", b"\xef\xbb\xbf [\n ]\n"])
def test_an_array_without_items_holds_no_rows_and_is_no_broken_array(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "f.json").write_bytes(text)
    with pytest.raises(SourceError) as caught:
        list(read_rows(tmp_path / "f.json", name="f"))
    assert caught.value.code == "empty-file"


def test_an_array_is_streamed_also_where_it_is_compressed_and_cut_off(tmp_path: Path) -> None:
    item = json.dumps({"messages": ["y" * 990]}).encode()
    data = gzip.compress(b"[" + b",".join([item] * 30_000) + b"]")
    path = tmp_path / "f.json.gz"
    path.write_bytes(data)
    tracemalloc.start()
    assert sum(row.raw == item for row in read_rows(path, name="f")) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    path.write_bytes(data[:-2000])
    found: list[bytes] = []
    with pytest.raises(SourceError) as caught:
        found.extend(row.raw for row in read_rows(path, name="f"))
    assert (caught.value.code, caught.value.place) == ("bad-archive", f"f:{len(found) + 1}")
    assert 0 < len(found) < 30_000


def test_an_item_of_many_pieces_is_parsed_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    long = json.dumps({"a": "x" * 40_000_000}).encode()
    path.write_bytes(b"[" + long + b',{"b": 1}]')
    assert [len(row.raw) for row in read_rows(path, name="f")] == [len(long), 8]


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:1a\\u ', max_size=40).map(str.encode))
def test_any_bytes_are_items_or_one_named_error(data: bytes) -> None:
    raws = []
    with contextlib.suppress(SourceError):
        raws.extend(item.raw for item in array_items(iter([b"[" + data]), name="f"))
    # Cut at every byte, the same items come, and the same fault at the same item.
    pieces = iter([b"[", *(data[at : at + 1] for at in range(len(data)))])
    again = []
    with contextlib.suppress(SourceError):
        again.extend(item.raw for item in array_items(pieces, name="f"))
    assert raws == again
    assert all(raw in data for raw in raws)
