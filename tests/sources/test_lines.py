"""Rows are the bytes between line feeds, whole or not at all (M1, M2)."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.errors import SourceError, UsageError
from sftprep.sources.blocks import SourceRow
from sftprep.sources.lines import file_sha256, read_rows

WRITERS = {"plain": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}


def rows_of(path: Path, data: bytes) -> list[SourceRow]:
    path.write_bytes(data)
    return list(read_rows(path, name="f"))


def raws(path: Path, data: bytes) -> list[bytes]:
    return [row.raw for row in rows_of(path, data)]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_row_m2(tmp_path: Path, separator: str) -> None:
    text = f'{{"a": "x{separator}y"}}'.encode()
    assert raws(tmp_path / "f", text + b"\n" + text) == [text, text]


def test_crlf_byte_order_mark_and_blank_lines_are_not_part_of_rows_m1(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "f", b"\xef\xbb\xbf{}\r\n\r\n  \n[]")
    assert [(row.raw, row.address.line, row.offset) for row in rows] == [(b"{}", 1, 3), (b"[]", 4, 12)]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b""))))
def test_joined_rows_give_the_file_back(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    data = b"#\n" + b"\n".join(lines)
    path = tmp_path_factory.mktemp("rows") / "f"
    rows = rows_of(path, data)
    assert all(data[row.offset : row.offset + len(row.raw)] == row.raw for row in rows)
    kept = [line.removesuffix(b"\r") for line in lines if line.strip(b" \t\r")]
    assert [row.raw for row in rows] == [b"#", *kept]


@pytest.mark.parametrize("kind", WRITERS)
def test_compression_is_known_by_its_first_bytes_and_all_members_are_read(tmp_path: Path, kind: str) -> None:
    compress = WRITERS[kind]
    assert raws(tmp_path / "nameless", compress(b"one\ntw") + compress(b"o\nthree\n")) == [b"one", b"two", b"three"]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_every_cut_of_an_archive_is_an_error_after_the_whole_rows_before_it(tmp_path: Path, kind: str) -> None:
    lines = [b"%d" % (number**7) for number in range(400)]
    data = WRITERS[kind](b"\n".join(lines))
    path = tmp_path / "f"
    for stop in (*range(8, len(data), 97), len(data) - 1):
        path.write_bytes(data[:stop])
        found: list[bytes] = []
        with pytest.raises(SourceError) as caught:
            found.extend(row.raw for row in read_rows(path, name="f"))
        assert caught.value.code == "bad-archive"
        assert caught.value.place == f"f:{len(found) + 1}"
        assert found == lines[: len(found)]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_garbage_after_an_archive_is_an_error(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SourceError, match="damaged"):
        raws(tmp_path / "f", WRITERS[kind](b"one\n") + b"more")


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("f.jsonl", b"", "empty-file"),
        ("f.jsonl", b"\n \r\n", "empty-file"),
        ("f.jsonl.gz", gzip.compress(b"", mtime=0), "empty-file"),
        ("f.jsonl.gz", b"{}\n", "bad-archive"),
        ("f.jsonl.zst", b"{}\n", "bad-archive"),
        ("f.parquet", b"PAR1....", "damaged-table"),
        ("f.arrow", b"ARROW1..", "damaged-table"),
        ("f.jsonl", b"PK\x03\x04", "not-jsonl"),
        ("f.jsonl", "{}".encode("utf-16"), "not-jsonl"),
    ],
)
def test_a_file_that_is_not_rows_is_refused_by_name(tmp_path: Path, name: str, data: bytes, code: str) -> None:
    with pytest.raises(SourceError) as caught:
        raws(tmp_path / name, data)
    assert caught.value.code == code
    assert caught.value.hint
    assert caught.value.exit_code == 1


ROW = json.dumps({"messages": [{"role": "user", "content": "Tide?"}]})
PRETTY = json.dumps(json.loads(ROW), indent=2)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("what", "hint", "text"),
    [
        ("object", "jq -c . does", PRETTY),
        ("object", "jq -c . does", PRETTY.replace("\n", "\r\n")),
        ("object", "jq -c . does", f"\ufeff\n {PRETTY}\n{PRETTY}\n"),
        ("object", "'.KEY[]'", json.dumps({"data": [json.loads(ROW)] * 20_000}, indent=2)),
        ("object", "jq -c . does", PRETTY[: len(PRETTY) // 2]),
        ("array", "call it .json", f"[{ROW},\n{ROW}]"),
        ("array", "jq -c '.[]'", f"[\n{ROW},\n{ROW},\n]\n"),
    ],
)
def test_json_over_several_lines_is_one_error_and_not_one_a_line(
    tmp_path: Path, kind: str, what: str, hint: str, text: str
) -> None:
    with pytest.raises(SourceError, match=f"is a JSON {what} over several lines") as caught:
        raws(tmp_path / "f.jsonl", WRITERS[kind](text.encode()))
    assert (caught.value.code, caught.value.place) == ("not-jsonl", "f")
    assert hint in caught.value.hint


@pytest.mark.parametrize("first", ['{"messages": [', "{", '{"messages": [{"content": "cut', f"[{ROW}, {ROW}]", "["])
def test_a_first_row_that_is_cut_off_costs_no_row_behind_it(tmp_path: Path, first: str) -> None:
    text = "\n".join([first, *[ROW] * 3]).encode()
    assert raws(tmp_path / "f.jsonl", text) == text.split(b"\n")


def test_a_wrong_path_is_a_usage_error_at_once(tmp_path: Path) -> None:
    for path, code in (
        (tmp_path / "no", "missing-file"),
        (tmp_path, "is-directory"),
        (Path("/dev/null"), "not-a-file"),
    ):
        with pytest.raises(UsageError) as caught:
            read_rows(path, name="f")
        assert (caught.value.code, caught.value.exit_code) == (code, 2)


def test_a_line_of_fifty_megabytes_is_one_row_and_the_file_is_streamed(tmp_path: Path) -> None:
    long = b"x" * 50_000_000
    assert raws(tmp_path / "long", b"a\n" + long + b"\nb\n") == [b"a", long, b"b"]
    path = tmp_path / "many.gz"
    path.write_bytes(gzip.compress((b"y" * 999 + b"\n") * 40_000))
    tracemalloc.start()
    assert sum(1 for _ in read_rows(path, name="f")) == 40_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("kind", WRITERS)
def test_progress_adds_up_to_the_bytes_of_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(WRITERS[kind](b"row\n" * 5000))
    steps: list[int] = []
    assert len(list(read_rows(path, name="f", on_bytes=steps.append))) == 5000
    assert sum(steps) == path.stat().st_size


def test_the_hash_is_of_the_bytes_as_stored(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
