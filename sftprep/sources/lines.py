"""Rows of a file, one at a time, as the bytes of one JSON value each: JSONL, a JSON array, Parquet or Arrow.

A line of JSONL is cut at line feeds and nowhere else: U+2028, U+2029 and NEL are ordinary characters inside a JSON
string, so text-mode line iteration (which cuts at them) is never used. Memory holds one chunk and the row being read,
however large the file is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from sftprep.data import RowAddress
from sftprep.errors import SourceError, UsageError
from sftprep.sources.array import array_items
from sftprep.sources.compressed import STDIN, OnBytes, chunks_of
from sftprep.sources.tables import is_table, table_rows

_UTF8_BOM: Final = b"\xef\xbb\xbf"
_LINE_SUFFIXES: Final = frozenset({".jsonl", ".ndjson"})
_NUM_TELLING: Final = 5
"""Bytes, without white space, that tell an array of objects from lines: a byte order mark and two more."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as JSON: of JSONL a line that is not blank, without line end and byte order mark.

    The address counts lines of JSONL, and rows of any other file. `offset` is where the bytes start in the
    uncompressed text; 0 where the file is a table. `dropped_null` is the place of a null that a table cannot tell
    from an absent key, in what a tool is called with or declared by.
    """

    address: RowAddress
    raw: bytes
    offset: int
    dropped_null: str = ""


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    offset: int
    raw: bytes


def read_rows(path: Path, *, name: str, on_bytes: OnBytes | None = None) -> Iterator[SourceRow]:
    """Each row of a file, in order; `name` is what addresses call the file, `-` is standard input.

    Compression, tables and arrays are known by a file's first bytes. UsageError at once where the path is not a
    readable file; SourceError (with the row reached) where it is empty, truncated, or not what its name says.
    """
    if path != STDIN:
        require_file(path)
    return _rows(path, name=name, on_bytes=on_bytes)


def require_file(path: Path) -> None:
    """UsageError where a path is not a regular file that can be opened."""
    place = str(path)
    if path.is_dir():
        hint = "name the files in it"
        raise UsageError("is a directory, not a file", code="is-directory", place=place, hint=hint)
    if not path.exists():
        raise UsageError("there is no such file", code="missing-file", place=place, hint="check the path")
    if not path.is_file():
        hint = "write the rows into a file first: sources are read more than once"
        raise UsageError("is not a regular file", code="not-a-file", place=place, hint=hint)
    try:
        path.open("rb").close()
    except OSError as error:
        message = f"cannot be opened: {error.strerror}"
        raise UsageError(message, code="unreadable-file", place=place, hint="check its permissions") from error


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes as stored, in hexadecimal. UsageError where it cannot be opened."""
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rows(path: Path, *, name: str, on_bytes: OnBytes | None) -> Iterator[SourceRow]:
    found = False
    if path != STDIN and is_table(path):
        rows = _table(path, name=name, on_bytes=on_bytes)
    else:
        rows = _text(path, name=name, on_bytes=on_bytes)
    for row in rows:
        found = True
        yield row
    if not found:
        hint = "a source holds at least one row; leave the file out if that is meant"
        raise SourceError("holds no rows", code="empty-file", place=name, hint=hint)


def _table(path: Path, *, name: str, on_bytes: OnBytes | None) -> Iterator[SourceRow]:
    for number, row in enumerate(table_rows(path, name=name, on_bytes=on_bytes), start=1):
        yield SourceRow(RowAddress(name, number), row.raw, 0, row.dropped_null)


def _text(path: Path, *, name: str, on_bytes: OnBytes | None) -> Iterator[SourceRow]:
    chunks = chunks_of(path, name=name, on_bytes=on_bytes)
    first: list[bytes | SourceError] = []
    start = b""
    while len(start) < _NUM_TELLING and (chunk := next(chunks, None)) is not None:
        first.append(chunk)
        start += b"" if isinstance(chunk, SourceError) else chunk.translate(None, b" \t\r\n")
    start = start.removeprefix(_UTF8_BOM)
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if start.startswith(b"[{" if ".json" not in suffixes else b"[") and not suffixes & _LINE_SUFFIXES:
        for number, item in enumerate(array_items(chain(first, chunks), name=name), start=1):
            yield SourceRow(RowAddress(name, number), item.raw, item.offset)
        return
    for line in _lines(chain(first, chunks), name=name):
        if line.raw.strip(b" \t\r"):
            yield SourceRow(RowAddress(name, line.number), line.raw, line.offset)


def _lines(chunks: Iterator[bytes | SourceError], *, name: str) -> Iterator[_Line]:
    r"""Lines, blank ones included, without `\n`, one `\r` before it, and a byte order mark at the file's start."""
    number, offset = 1, 0
    for text in _cut(chunks):
        if isinstance(text, SourceError):
            raise SourceError(text.message, code=text.code, place=f"{name}:{number}", hint=text.hint)
        body = text.removesuffix(b"\n").removesuffix(b"\r")
        start = len(_UTF8_BOM) if number == 1 and body.startswith(_UTF8_BOM) else 0
        yield _Line(number, offset + start, body[start:])
        number += 1
        offset += len(text)


def _cut(chunks: Iterator[bytes | SourceError]) -> Iterator[bytes | SourceError]:
    r"""Lines with their `\n`. What follows the last `\n` is a line too, unless the data stopped with an error."""
    pending: list[bytes] = []
    for chunk in chunks:
        if isinstance(chunk, SourceError):
            yield chunk
            return
        *complete, rest = chunk.split(b"\n")
        for part in complete:
            # Joined only once a line is whole: a line of 50 MB is copied once, not once a chunk.
            yield b"".join([*pending, part, b"\n"])
            pending.clear()
        if rest:
            pending.append(rest)
    if pending:
        yield b"".join(pending)
