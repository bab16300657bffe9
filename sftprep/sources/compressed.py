"""The bytes of a file or of standard input, in bounded pieces: plain, gzip or zstd, known by the first bytes."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import zstandard

from sftprep.config.places import is_remote
from sftprep.errors import SourceError, UsageError
from sftprep.stores.read import Identity, open_remote

OnBytes = Callable[[int], None]
"""Told how many more bytes of the file (as stored, so of `stat().st_size`) have been read."""

STDIN: Final = Path("-")
"""The path that means standard input."""

_CHUNK: Final = 1 << 20
# A zstd block of a few bytes may hold 128 KiB: feeding little at a time bounds what one call can return.
_ZSTD_FEED: Final = 1 << 13
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_COMPRESSED_SUFFIXES: Final = {".gz": _GZIP, ".zst": _ZSTD}
_NOT_JSONL: Final = {
    b"PAR1": ("a Parquet file", "write it into a file that is called by its path"),
    b"ARROW1": ("an Arrow file", "write it into a file that is called by its path"),
    b"PK\x03\x04": ("a zip archive", "unpack it, or compress with gzip or zstd"),
    b"BZh": ("bzip2 data", "unpack it, or compress with gzip or zstd"),
    b"\xfd7zXZ": ("xz data", "unpack it, or compress with gzip or zstd"),
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """A file that is read, and the bytes that are meant where it lies in an object store and they are known."""

    path: Path
    known: Identity | None = None

    def open(self) -> BinaryIO:
        """The file, of a disk or of an object store."""
        return open_remote(self.path, known=self.known) if is_remote(self.path) else self.path.open("rb")


def standard_input() -> BinaryIO:
    """Standard input as bytes. UsageError `unreadable-file` where the process was started without one."""
    # Python has none where the descriptor was closed before it began (`<&-`).
    if sys.stdin is None:
        raise UsageError("standard input is closed", code="unreadable-file", place="-", hint="pipe rows into it")
    return sys.stdin.buffer


def chunks_of(source: Source, *, name: str, on_bytes: OnBytes | None) -> Iterator[bytes | SourceError]:
    """Uncompressed bytes in bounded pieces; what goes wrong while reading comes last, as a value.

    A value, because the lines before it are still good and only the cutter of lines knows where it happened.
    """
    with nullcontext(standard_input()) if source.path == STDIN else source.open() as file:
        counted = _Counted(file, on_bytes)
        try:
            head = counted.peek()
            _check_head(head, suffix=source.path.suffix.lower(), name=name)
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
    """A file that tells how much of it has been read, and whose first bytes can be looked at."""

    def __init__(self, file: BinaryIO, on_bytes: OnBytes | None) -> None:
        self._file = file
        self._on_bytes = on_bytes
        self._ahead = b""

    def peek(self) -> bytes:
        """The first 8 bytes, fewer where there are no more; they are read again. A pipe may give one at a time."""
        while len(self._ahead) < 8 and (data := self._file.read(8 - len(self._ahead))):
            self._ahead += data
        return self._ahead

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end."""
        data, self._ahead = self._ahead or self._file.read(size), b""
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
