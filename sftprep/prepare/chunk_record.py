"""The account of a compiled chunk as one record of bytes that says whether it is whole, and back.

    header (64 bytes) │ JSON: where the documents are, the fields that are no columns, where the columns are │ columns

Fields are told apart by what they hold: arrays, and anything else as JSON by its annotation, so that a field that
ChunkAccount gains is kept without a word here.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast, get_type_hints

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from sftprep.prepare.chunk import Chunk
from sftprep.prepare.chunk_account import ChunkAccount
from sftprep.prepare.document_files import DocumentsFile, Place, packed

_MAGIC: Final = b"sftaccnt"
_HEADER: Final = struct.Struct("<8sIQQ")
_ALIGN: Final = 64


@dataclass(frozen=True, slots=True)
class Finished:
    """What is known of a chunk that is compiled and whose documents are on the disk."""

    account: ChunkAccount
    documents: Place
    record: bytes
    """As `dump` makes it of these."""

    @classmethod
    def of(cls, account: ChunkAccount, documents: Place, *, first: int) -> Finished:
        """Of the rows of a source from `first` on."""
        return cls(account, documents, dump(account, documents, first=first))


def finished(chunk: Chunk, *, first: int, file: DocumentsFile) -> Finished:
    """What this process has compiled of the rows of a source from `first` on; its documents go into the file.

    OutputError as `DocumentsFile.add`.
    """
    return Finished.of(ChunkAccount.of(chunk), file.add(packed(chunk.documents)), first=first)


@dataclass(frozen=True, slots=True)
class Record:
    """A whole record in a file: which rows of input it tells of, and where the next record begins."""

    source: int
    first: int
    """The line or row of the source that the chunk begins at."""
    num_rows: int
    documents: Place
    fields: dict[str, Any]
    """By name: what JSON made of it, or of a column its type, where it begins behind the JSON, and its bytes."""
    columns: pa.Buffer
    stop: int

    def account(self) -> ChunkAccount:
        """The account; its columns are those of the file."""
        return ChunkAccount(**{name: self.field(name) for name in self.fields})

    def field(self, name: str) -> Any:
        """One field of the account."""
        if not _is_column(name):
            return _adapter(name).validate_python(self.fields[name], strict=False)
        kind, start, length = self.fields[name]
        return np.frombuffer(self.columns.slice(start, length), np.dtype(kind))


def dump(account: ChunkAccount, documents: Place, *, first: int) -> bytes:
    """A record; `first` is the row of its source that the chunk begins at."""
    fields: dict[str, Any] = {}
    columns: list[bytes] = []
    size = 0
    for name in _names():
        value = getattr(account, name)
        if _is_column(name):
            data = value.tobytes()
            fields[name] = (value.dtype.str, size, len(data))
            columns += [data, bytes(-len(data) % _ALIGN)]
            size += len(data) + -len(data) % _ALIGN
        else:
            fields[name] = _adapter(name).dump_python(value, mode="python")
    read = account.read
    about = {"source": read.source, "first": first, "num_rows": read.num_rows, "documents": documents, "fields": fields}
    # ASCII only: what cannot be encoded (half a character in a file's name) is escaped, and comes back.
    listed = json.dumps(about, default=_plain).encode("ascii")
    listed += b" " * (-len(listed) % _ALIGN)
    body = b"".join([listed, *columns])
    crc = _crc(len(listed), size, body)
    return _HEADER.pack(_MAGIC, crc, len(listed), size).ljust(_ALIGN, b"\0") + body


def read(data: pa.Buffer, start: int) -> Record | None:
    """The record that begins at a byte of `data`; None where there is none, or it is torn or altered."""
    if start + _ALIGN > len(data):
        return None
    magic, crc, num_listed, size = _HEADER.unpack(data.slice(start, _HEADER.size).to_pybytes())
    at = start + _ALIGN
    stop = at + num_listed + size
    if magic != _MAGIC or stop > len(data) or _crc(num_listed, size, data.slice(at, num_listed + size)) != crc:
        return None
    about = json.loads(data.slice(at, num_listed).to_pybytes())
    if set(about["fields"]) != set(_names()):
        return None  # written by a version whose accounts were others
    return Record(
        about["source"],
        about["first"],
        about["num_rows"],
        documents=Place(**about["documents"]),
        fields=about["fields"],
        columns=data.slice(at + num_listed, size),
        stop=stop,
    )


def records(data: pa.Buffer) -> Iterator[Record]:
    """The records from the first byte of `data` on, up to one that is not whole."""
    stop = 0
    while (record := read(data, stop)) is not None:
        yield record
        stop = record.stop


def _crc(num_listed: int, size: int, body: bytes | pa.Buffer) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("<2Q", num_listed, size)))


def _plain(value: object) -> object:
    return dataclasses.asdict(cast(Any, value))


@cache
def _names() -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(ChunkAccount))


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(ChunkAccount)


@cache
def _is_column(name: str) -> bool:
    return getattr(_hints()[name], "__origin__", None) is np.ndarray


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_hints()[name])
