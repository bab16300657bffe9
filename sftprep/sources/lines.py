"""Rows of a file, one at a time, as the bytes of one JSON value each: JSONL, a JSON array, Parquet or Arrow.

A line of JSONL is cut at line feeds and nowhere else: U+2028, U+2029 and NEL are ordinary characters inside a JSON
string, so text-mode line iteration (which cuts at them) is never used. Memory holds one chunk and the row being read,
however large the file is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

from sftprep.config.places import is_remote
from sftprep.errors import SourceError, UsageError
from sftprep.sources.array import ArrayItem, array_items, refuse_spread
from sftprep.sources.blocks import UTF8_BOM, Block, ItemBlock, LineBlock, SourceRow
from sftprep.sources.compressed import STDIN, OnBytes, Source, chunks_of
from sftprep.sources.tables import is_table, table_blocks
from sftprep.stores.read import Identity, identity

BLOCK_BYTES: Final = 1 << 19
"""What a block of text holds at most, but for a longer row: enough to hide what a process costs, and small."""

_LINE_SUFFIXES: Final = frozenset({".jsonl", ".ndjson"})
_NUM_TELLING: Final = 5
"""Bytes, without white space, that tell an array of objects from lines: a byte order mark and two more."""


def read_rows(path: Path, *, name: str, on_bytes: OnBytes | None = None) -> Iterator[SourceRow]:
    """Each row of a file, in order; `name` is what addresses call the file, `-` is standard input.

    Compression, tables and arrays are known by a file's first bytes. UsageError at once where the path is not a
    readable file; SourceError (with the row reached) where it is empty, truncated, or not what its name says.
    """
    blocks = read_blocks(path, name=name, on_bytes=on_bytes)
    return (row for block in blocks for row in block.rows(name))


def read_blocks(
    path: Path, *, name: str, on_bytes: OnBytes | None = None, known: Identity | None = None
) -> Iterator[Block]:
    """The same rows in runs that are cheap to cut; which rows a run holds depends on the file's contents alone.

    `known` is the identity that a file of an object store had: SourceError `source-changed` where it has another.
    """
    if path != STDIN and not is_remote(path):
        require_file(path)
    return _blocks(Source(path, known), name=name, on_bytes=on_bytes)


def require_source(path: Path) -> None:
    """UsageError where a path or URL is not a file that can be read."""
    if is_remote(path):
        identity(path)
    else:
        require_file(path)


def content_name(path: Path) -> str:
    """What changes with a file's bytes: their sha256, or the name that an object store has for them."""
    return identity(path)[0] if is_remote(path) else file_sha256(path)


def require_file(path: Path) -> None:
    """UsageError where a path is not a regular file that can be opened."""
    place = str(path)
    if path.is_dir():
        hint = f"name the files in it, or a pattern in quotes: '{path}/*.jsonl'"
        if (path / "manifest.json").is_file():
            hint = "it looks like a shard set, which `sftprep audit` reads"
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


def _blocks(source: Source, *, name: str, on_bytes: OnBytes | None) -> Iterator[Block]:
    found = False
    is_text = source.path == STDIN or not is_table(source)
    for block in (_text_blocks if is_text else table_blocks)(source, name=name, on_bytes=on_bytes):
        found = found or next(block.rows(name), None) is not None
        yield block
    if not found:
        hint = "a source holds at least one row; leave the file out if that is meant"
        raise SourceError("holds no rows", code="empty-file", place=name, hint=hint)


def _text_blocks(source: Source, *, name: str, on_bytes: OnBytes | None) -> Iterator[Block]:
    chunks = chunks_of(source, name=name, on_bytes=on_bytes)
    first: list[bytes | SourceError] = []
    start = b""
    while len(start) < _NUM_TELLING and (chunk := next(chunks, None)) is not None:
        first.append(chunk)
        start += b"" if isinstance(chunk, SourceError) else chunk.translate(None, b" \t\r\n")
    start = start.removeprefix(UTF8_BOM)
    suffixes = {suffix.lower() for suffix in source.path.suffixes}
    is_array = start.startswith(b"[{" if ".json" not in suffixes else b"[") and not suffixes & _LINE_SUFFIXES
    if is_array:
        return _item_blocks(chain(first, chunks), name=name)
    refuse_spread(first, chunks, name=name)
    return _line_blocks(chain(first, chunks), name=name)


def _item_blocks(chunks: Iterator[bytes | SourceError], *, name: str) -> Iterator[Block]:
    items: list[ArrayItem] = []
    first, held = 1, 0
    try:
        for item in array_items(chunks, name=name):
            items.append(item)
            held += len(item.raw)
            if held >= BLOCK_BYTES:
                yield ItemBlock(tuple(items), first)
                first, held, items = first + len(items), 0, []
    except SourceError:
        if items:
            yield ItemBlock(tuple(items), first)
        raise
    if items:
        yield ItemBlock(tuple(items), first)


def _line_blocks(chunks: Iterator[bytes | SourceError], *, name: str) -> Iterator[Block]:
    number, offset = 1, 0
    for data in _cut(chunks):
        if isinstance(data, SourceError):
            raise SourceError(data.message, code=data.code, place=f"{name}:{number}", hint=data.hint)
        yield LineBlock(data, number, offset)
        number += data.count(b"\n")
        offset += len(data)


def _cut(chunks: Iterator[bytes | SourceError]) -> Iterator[bytes | SourceError]:
    r"""Runs of whole lines. What follows the last `\n` is a line too, unless the data stopped with an error."""
    pending: list[bytes] = []
    held, wanted = 0, BLOCK_BYTES
    for chunk in chunks:
        if isinstance(chunk, SourceError):
            whole = b"".join(pending)
            yield from filter(None, [whole[: whole.rfind(b"\n") + 1]])
            yield chunk
            return
        pending.append(chunk)
        held += len(chunk)
        if held >= wanted:
            *blocks, rest = _full_blocks(b"".join(pending))
            yield from blocks
            pending, held = [rest], len(rest)
            # A line of 50 MB is joined a few times, not once a chunk.
            wanted = max(BLOCK_BYTES, 2 * held)
    yield from filter(None, _full_blocks(b"".join(pending)))


def _full_blocks(data: bytes) -> Iterator[bytes]:
    """As many whole lines as fit into a block, at least one, again and again; last what fills none."""
    start = 0
    while len(data) - start >= BLOCK_BYTES:
        stop = data.rfind(b"\n", start, start + BLOCK_BYTES) + 1 or data.find(b"\n", start + BLOCK_BYTES) + 1
        if not stop:
            break
        yield data[start:stop]
        start = stop
    yield data[start:]
