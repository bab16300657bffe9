"""Rows of Parquet and Arrow IPC files as JSON objects, a batch in memory at a time.

A column of structs has every key in every row, so a null there may mean "absent": it is read so, and told where that
can change what a model sees. Columns of the JSON type keep what was written.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from sftprep.config.places import is_remote
from sftprep.data import Json, RowAddress
from sftprep.errors import SourceError
from sftprep.sources.blocks import Block, SourceRow
from sftprep.sources.compressed import OnBytes, Source

_PARQUET: Final = b"PAR1"
_ARROW_FILE: Final = b"ARROW1"
_ARROW_STREAM: Final = b"\xff\xff\xff\xff"
_BATCH_ROWS: Final = 256
_SHOWN_TO_MODELS: Final = frozenset({"arguments", "parameters"})
"""Keys below which a null is not known to mean nothing."""


@dataclass(frozen=True, slots=True)
class TableBlock:
    """A few rows of a table; a value that a column cannot have ends the reading of it as SourceError."""

    batch: pa.RecordBatch
    first: int

    def __reduce__(self) -> tuple[object, ...]:
        # A slice would take the whole batch that it is of with it.
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.batch.schema) as stream:
            stream.write_batch(self.batch)
        return _table_block, (sink.getvalue().to_pybytes(), self.first)

    def rows(self, name: str) -> Iterator[SourceRow]:
        """Each row as JSON; `dropped_null` points to the first null that was read as absent and may not be."""
        with _named_damage(name, self.first):
            rows = self.batch.to_pylist(maps_as_pydicts="strict")
        for number, row in enumerate(rows, start=self.first):
            with _named_damage(name, number):
                raw, dropped_null = _json(row, self.batch.schema)
            yield SourceRow(RowAddress(name, number), raw, 0, dropped_null)


def is_table(source: Source) -> bool:
    """Whether a file is Parquet or Arrow, by its first bytes."""
    with source.open() as file:
        return file.read(8).startswith((_PARQUET, _ARROW_FILE, _ARROW_STREAM))


def table_blocks(source: Source, *, name: str, on_bytes: OnBytes | None) -> Iterator[Block]:
    """All rows in order. SourceError `damaged-table`, with the row reached, where the file cannot be read."""
    batches = _batches(source, on_bytes)
    first = 1
    while True:
        with _named_damage(name, first):
            batch = next(batches, None)
            if batch is None:
                return
            # Offsets that point elsewhere are followed without a look, and end the process.
            batch.validate(full=True)
        yield TableBlock(batch, first)
        first += batch.num_rows


@contextmanager
def _named_damage(name: str, number: int) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        what = f"the table cannot be read: {str(error).partition(chr(10))[0]:.200}"
        hint = "write the file again, or its rows as JSONL"
        raise SourceError(what, code="damaged-table", place=f"{name}:{number}", hint=hint) from error


def _table_block(stream: bytes, first: int) -> TableBlock:
    with pa.ipc.open_stream(stream) as batches:
        return TableBlock(batches.read_next_batch(), first)


def _batches(source: Source, on_bytes: OnBytes | None) -> Iterator[pa.RecordBatch]:
    told, seen = 0, 0
    with source.open() as file:
        head = file.read(8)
        size = file.seek(0, io.SEEK_END)
    if head.startswith(_PARQUET):
        with source.open() as file, pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                yield batch
                seen += batch.num_rows
                told = _tell(on_bytes, size * seen // table.metadata.num_rows, told)
    else:
        with _arrow_file(source) as opened:
            for batch in _arrow_batches(opened, is_file=head.startswith(_ARROW_FILE)):
                yield from (batch.slice(start, _BATCH_ROWS) for start in range(0, batch.num_rows, _BATCH_ROWS))
    _tell(on_bytes, size, told)


def _arrow_file(source: Source) -> pa.NativeFile:
    return pa.PythonFile(source.open()) if is_remote(source.path) else pa.memory_map(str(source.path))


def _arrow_batches(source: pa.NativeFile, *, is_file: bool) -> Iterator[pa.RecordBatch]:
    if not is_file:
        with closing(pa.ipc.open_stream(source)) as stream:
            yield from stream
        return
    with pa.ipc.open_file(source) as file:
        yield from (file.get_batch(index) for index in range(file.num_record_batches))


def _tell(on_bytes: OnBytes | None, position: int, told: int) -> int:
    if on_bytes is not None and position > told:
        on_bytes(position - told)
    return position


def _json(row: dict[str, Any], schema: pa.Schema) -> tuple[bytes, str]:
    dropped: list[str] = []
    value = {
        field.name: _value(row[field.name], field.type, f"/{field.name}", dropped)
        for field in schema
        if row[field.name] is not None
    }
    shown = next((place for place in dropped if _SHOWN_TO_MODELS & set(place.split("/"))), "")
    return json.dumps(value, ensure_ascii=False).encode("utf-8"), shown


def _value(item: Any, kind: pa.DataType, place: str, dropped: list[str]) -> Json:
    """A value of a column as JSON; the places of nulls in structs that are left out are added to `dropped`."""
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json":
        return item if item is None else from_json(item)
    if isinstance(item, dict) and isinstance(kind, pa.StructType):
        dropped.extend(f"{place}/{field.name}" for field in kind if item[field.name] is None)
        present = [field for field in kind if item[field.name] is not None]
        return {f.name: _value(item[f.name], f.type, f"{place}/{f.name}", dropped) for f in present}
    if isinstance(item, list):
        return [_value(part, kind.value_type, f"{place}/{index}", dropped) for index, part in enumerate(item)]
    if isinstance(item, dict):
        return {str(key): _value(part, kind.item_type, f"{place}/{key}", dropped) for key, part in item.items()}
    if item is None or isinstance(item, bool | int | float | str):
        return item
    return base64.b64encode(item).decode("ascii") if isinstance(item, bytes) else str(item)
