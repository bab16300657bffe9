"""A compiled chunk as one record of bytes that says whether it is whole, and back without copying its tokens.

    header (64 bytes) │ directory: where each field of Chunk is, JSON │ the fields' bytes, aligned

Fields are told apart by what they hold: Arrow batches, arrays, and anything else as JSON by its annotation, so that a
field that Chunk gains is kept without a word here.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast, get_type_hints

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from sftprep.prepare.chunk import Chunk

_MAGIC: Final = b"sftchunk"
_HEADER: Final = struct.Struct("<8sIQQ")
_ALIGN: Final = 64
"""Bytes: what Arrow wants of a buffer that is read where it lies."""


@dataclass(frozen=True, slots=True)
class Record:
    """A whole record in a file: which rows of input it tells of, its chunk, and where the next record begins."""

    source: int
    first: int
    """The line or row of the source that the chunk begins at."""
    num_rows: int
    fields: dict[str, tuple[str, int, int]]
    """By name: what kind of value, where in the body it begins, and its bytes."""
    body: pa.Buffer
    stop: int

    def chunk(self) -> Chunk:
        """The chunk; its Arrow buffers are those of the file."""
        return Chunk(**{name: self.field(name) for name in self.fields})

    def field(self, name: str) -> Any:
        """One field of the chunk."""
        kind, start, length = self.fields[name]
        return _loaded(kind, self.body.slice(start, length), name=name)

    def place(self, name: str) -> tuple[int, int]:
        """Where in the file the bytes of a field begin, and how many they are."""
        _, start, length = self.fields[name]
        return self.stop - len(self.body) + start, length


@dataclass(frozen=True, slots=True)
class Finished:
    """A compiled chunk and the bytes of its record, whichever of them was made of the other."""

    chunk: Chunk
    record: Sequence[bytes | pa.Buffer]

    @classmethod
    def of(cls, chunk: Chunk, *, first: int) -> Finished:
        """Of what this process has compiled of the rows of a source from `first` on."""
        return cls(chunk, dump(chunk, first=first))

    @classmethod
    def received(cls, record: bytes) -> Finished:
        """Of what another process has dumped."""
        whole = read(pa.py_buffer(record), 0, checked=False)
        if whole is None:
            raise ValueError("what came back is no record of a chunk")
        return cls(whole.chunk(), [record])


def dump(chunk: Chunk, *, first: int) -> list[bytes | pa.Buffer]:
    """The parts of a record, to be written one after another; `first` is the row of its source that it begins at."""
    places: dict[str, tuple[str, int, int]] = {}
    body: list[bytes | pa.Buffer] = []
    size = 0
    for field in dataclasses.fields(chunk):
        kind, data = _dumped(getattr(chunk, field.name), name=field.name)
        places[field.name] = (kind, size, len(data))
        padded = [data, bytes(-len(data) % _ALIGN)]
        body += padded
        size += sum(len(part) for part in padded)
    read = chunk.read
    about = {"source": read.source, "first": first, "num_rows": read.num_rows, "fields": places}
    listed = json.dumps(about).encode()
    listed += b" " * (-len(listed) % _ALIGN)
    crc = _crc([_numbers(len(listed), size), listed, *body])
    header = _HEADER.pack(_MAGIC, crc, len(listed), size)
    return [header.ljust(_ALIGN, b"\0"), listed, *body]


def batch_at(data: pa.Buffer, place: tuple[int, int]) -> pa.RecordBatch:
    """The batch of a record's field that lies at a place of the file's bytes; its buffers are those of the file."""
    batch: pa.RecordBatch = _loaded("batch", data.slice(*place), name="")
    return batch


def read(data: pa.Buffer, start: int, *, checked: bool = True) -> Record | None:
    """The record that begins at a byte of `data`; None where there is none, or it is torn or altered.

    Not `checked` is a record of which this run has seen that it is whole: its checksum is not computed again.
    """
    if start + _ALIGN > len(data):
        return None
    magic, crc, num_listed, size = _HEADER.unpack(data.slice(start, _HEADER.size).to_pybytes())
    at = start + _ALIGN
    if magic != _MAGIC or at + num_listed + size > len(data):
        return None
    listed, body = data.slice(at, num_listed), data.slice(at + num_listed, size)
    if checked and _crc([_numbers(num_listed, size), listed, body]) != crc:
        return None
    about = json.loads(listed.to_pybytes())
    fields = {name: (place[0], place[1], place[2]) for name, place in about["fields"].items()}
    if set(fields) != {field.name for field in dataclasses.fields(Chunk)}:
        return None  # written by a version whose chunks were others
    stop = at + num_listed + size
    return Record(about["source"], about["first"], about["num_rows"], fields=fields, body=body, stop=stop)


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def _crc(parts: list[bytes | pa.Buffer]) -> int:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _dumped(value: Any, *, name: str) -> tuple[str, bytes | pa.Buffer]:
    if isinstance(value, pa.RecordBatch):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as stream:
            stream.write_batch(value)
        return "batch", sink.getvalue()
    if isinstance(value, np.ndarray):
        return f"array {value.dtype.str}", value.tobytes()
    # ASCII only: what cannot be encoded (half a character in a file's name) is escaped, and comes back.
    return "json", json.dumps(_adapter(name).dump_python(value, mode="python"), default=_plain).encode("ascii")


def _loaded(kind: str, data: pa.Buffer, *, name: str) -> Any:
    if kind == "batch":
        return pa.ipc.open_stream(data).read_next_batch()
    if kind.startswith("array "):
        return np.frombuffer(data, np.dtype(kind.removeprefix("array ")))
    return _adapter(name).validate_python(json.loads(data.to_pybytes()), strict=False)


def _plain(value: object) -> object:
    return dataclasses.asdict(cast(Any, value))


@cache
def _hint(name: str) -> Any:
    return get_type_hints(Chunk)[name]


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_hint(name))
