r"""Rows of a JSONL file, one at a time: plain, gzip or zstd, cut at `\n` bytes and nowhere else.

U+2028, U+2029 and NEL are ordinary characters inside a JSON string, so text-mode line iteration (which cuts at them)
is never used. Memory holds one chunk and the line being read, however large the file is.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import zstandard

from sftprep.data import RowAddress
from sftprep.errors import SourceError, UsageError

OnBytes = Callable[[int], None]
"""Told how many more bytes of the file (as stored, so of `stat().st_size`) have been read."""

_CHUNK: Final = 1 << 20
# A zstd block of a few bytes may hold 128 KiB: feeding little at a time bounds what one call can return.
_ZSTD_FEED: Final = 1 << 13
_UTF8_BOM: Final = b"\xef\xbb\xbf"
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_COMPRESSED_SUFFIXES: Final = {".gz": _GZIP, ".zst": _ZSTD}
_NOT_JSONL: Final = {
    b"PAR1": ("a Parquet file", "write its rows as JSONL"),
    b"PK\x03\x04": ("a zip archive", "unpack it, or compress with gzip or zstd"),
    b"BZh": ("bzip2 data", "unpack it, or compress with gzip or zstd"),
    b"\xfd7zXZ": ("xz data", "unpack it, or compress with gzip or zstd"),
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
}


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One line that is not blank: its bytes without line end and byte order mark.

    `offset` is where those bytes start in the uncompressed file.
    """

    address: RowAddress
    raw: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    offset: int
    raw: bytes


def read_rows(path: Path, *, name: str, on_bytes: OnBytes | None = None) -> Iterator[SourceRow]:
    """Each line of a file that is not blank, in order; `name` is what addresses call the file.

    Compression is known by the file's first bytes. UsageError at once where the path is not a readable file;
    SourceError (with the line reached) where it is empty, truncated, or not what its name says.
    """
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
    for line in _lines(path, name=name, on_bytes=on_bytes):
        if line.raw.strip(b" \t\r"):
            found = True
            yield SourceRow(RowAddress(name, line.number), line.raw, line.offset)
    if not found:
        hint = "a source holds at least one row; leave the file out if that is meant"
        raise SourceError("holds no rows", code="empty-file", place=name, hint=hint)


def _lines(path: Path, *, name: str, on_bytes: OnBytes | None) -> Iterator[_Line]:
    r"""Lines, blank ones included, without `\n`, one `\r` before it, and a byte order mark at the file's start."""
    number, offset = 1, 0
    for text in _cut(_chunks(path, name=name, on_bytes=on_bytes)):
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


def _chunks(path: Path, *, name: str, on_bytes: OnBytes | None) -> Iterator[bytes | SourceError]:
    """Uncompressed bytes in bounded pieces; what goes wrong while reading comes last, as a value.

    A value, because the lines before it are still good and only the cutter of lines knows where it happened.
    """
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(0)
        counted = _Counted(file, on_bytes)
        try:
            _check_head(head, suffix=path.suffix.lower(), name=name)
            if head.startswith(_GZIP):
                yield from _gzip_chunks(counted)
            elif _is_zstd(head):
                yield from _zstd_chunks(counted)
            else:
                yield from iter(lambda: counted.read(_CHUNK), b"")
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            hint = "compress the file again, or fetch it again"
            yield SourceError(f"the compressed data is damaged or cut off: {error}", code="bad-archive", hint=hint)
        except OSError as error:
            yield SourceError(f"reading failed: {error.strerror}", code="read-failed", hint="check the disk")


class _Counted:
    """A file that tells how much of it has been read; as much of a binary file as `gzip` needs."""

    def __init__(self, file: BinaryIO, on_bytes: OnBytes | None) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def read(self, size: int = -1) -> bytes:
        """As a binary file's `read`."""
        data = self._file.read(size)
        if data and self._on_bytes is not None:
            self._on_bytes(len(data))
        return data


def _check_head(head: bytes, *, suffix: str, name: str) -> None:
    """SourceError where a file's first bytes are not those of JSONL, or of what the file's name says."""
    for magic, (what, hint) in _NOT_JSONL.items():
        if head.startswith(magic):
            raise SourceError(f"is {what}, not JSONL", code="not-jsonl", place=name, hint=hint)
    magic = _COMPRESSED_SUFFIXES.get(suffix, b"")
    wrong = head and not (_is_zstd(head) if magic == _ZSTD else head.startswith(magic))
    if wrong:
        message = f"is called *{suffix} but does not hold such data"
        raise SourceError(message, code="bad-archive", place=name, hint="give it the name of what it is")


def _is_zstd(head: bytes) -> bool:
    # A file may begin with a skippable frame (0x184D2A5?), as the output of `pzstd` does.
    return head.startswith(_ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5)


def _gzip_chunks(file: _Counted) -> Iterator[bytes]:
    """All members of a gzip file, one after another. EOFError where the last is cut off."""
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
    fresh = True
    data = file.read(_CHUNK)
    while data:
        fresh = False
        if chunk := decoder.decompress(data, _CHUNK):
            yield chunk
        data = decoder.unconsumed_tail
        if decoder.eof:
            # Zero bytes after a member are padding (tapes, block devices), as gzip itself reads them.
            data = decoder.unused_data.lstrip(b"\0")
            decoder, fresh = zlib.decompressobj(zlib.MAX_WBITS | 16), True
        data = data or (file.read(_CHUNK).lstrip(b"\0") if fresh else file.read(_CHUNK))
    if not fresh:
        raise EOFError("it ends inside a member")


def _zstd_chunks(file: _Counted) -> Iterator[bytes]:
    """All frames of a zstd file, one after another. EOFError where the last is cut off."""
    decompressor = zstandard.ZstdDecompressor()
    decoder, fresh = decompressor.decompressobj(), True
    data = file.read(_ZSTD_FEED)
    while data:
        fresh = False
        if chunk := decoder.decompress(data):
            yield chunk
        data = b""
        if decoder.eof:
            data = decoder.unused_data
            decoder, fresh = decompressor.decompressobj(), True
        data = data or file.read(_ZSTD_FEED)
    if not fresh:
        raise EOFError("it ends inside a frame")
