"""One Parquet file of a shard set: how it is encoded, what the manifest says of it, and how it is read back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sftprep.errors import ShardError
from sftprep.shards.manifest import ShardRecord
from sftprep.shards.schema import FORMAT_VERSION, shard_schema

_ENCODINGS: Final = {
    "input_ids.list.element": "BYTE_STREAM_SPLIT",
    "span_starts.list.element": "DELTA_BINARY_PACKED",
    "doc_lines.list.element": "DELTA_BINARY_PACKED",
}
_DICTIONARIES: Final = [
    f"{name}.list.element"
    for name in ("assistant_masks", "span_kinds", "span_messages", "doc_files", "doc_samples", "doc_kwargs", "weights")
]
_WITH_STATISTICS: Final = ["num_trained", "weight_sum", "sum_len2"]
"""The least and the greatest id or line of a row group tell nobody anything."""
_VALUES_AT_ONCE: Final = 1 << 16
"""Values that are encoded together; with Parquet's 1,024 writing takes a sixth longer."""


def parquet_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """How shards are encoded and compressed; `sink` is a binary file that is written from its start to its end."""
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=_DICTIONARIES,
        column_encoding=_ENCODINGS,
        write_statistics=_WITH_STATISTICS,
        write_batch_size=_VALUES_AT_ONCE,
    )


def write_shard(directory: Path, batches: Iterable[pa.RecordBatch], *, number: int, weights: bool) -> ShardRecord:
    """Write shard `number` of a set that is made in `directory`, one row group a batch; it is on the disk then.

    One that is there is replaced. OSError where the place cannot be written or is full.
    """
    part = _Part(directory, number=number, schema=shard_schema(weights=weights))
    try:
        for batch in batches:
            part.write(batch)
        return part.close()
    except BaseException:
        part.abandon()
        raise


class _Part:
    """One Parquet file that is being written, and its counts."""

    def __init__(self, directory: Path, *, number: int, schema: pa.Schema) -> None:
        self.name = f"shards/part-{number:05}.parquet"
        self.num_rows = 0
        self.num_tokens = 0
        self.num_trained = 0
        self.weight_sum = 0.0
        path = directory / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sink = _Sink(path)
        self._writer = parquet_writer(self._sink, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch, row_group_size=max(1, len(batch)))
        self.num_rows += len(batch)
        self.num_tokens += len(batch["input_ids"].flatten())
        self.num_trained += pc.sum(batch["num_trained"]).as_py()
        self.weight_sum += pc.sum(batch["weight_sum"]).as_py()

    def close(self) -> ShardRecord:
        self._writer.close()
        self._sink.close()
        return ShardRecord(
            file=self.name,
            sha256=self._sink.digest.hexdigest(),
            num_bytes=self._sink.num_bytes,
            num_rows=self.num_rows,
            num_tokens=self.num_tokens,
            num_trained=self.num_trained,
            weight_sum=self.weight_sum,
        )

    def abandon(self) -> None:
        """Let go of the file without ending it; the whole directory is removed next."""
        self._sink.abandon()
        self._writer.is_open = False


class _Sink:
    """A file that knows the digest of its bytes, is on the disk when closed, and can be given up."""

    def __init__(self, path: Path) -> None:
        # A second try after a worker's death. Never written over: it might be another name of a file of another set.
        path.unlink(missing_ok=True)
        self._file = path.open("xb")
        self.digest = hashlib.sha256()
        self.num_bytes = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        # An abandoned Parquet writer still writes its footer when it is collected, to a disk that may be full.
        if not self._file.closed:
            self._file.write(data)
            self.digest.update(data)
            self.num_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.closed = True

    def abandon(self) -> None:
        with suppress(OSError):  # what it still holds may not fit on the disk, and is not wanted
            self._file.close()


def open_part(source: Path | BinaryIO, *, path: Path, schema: pa.Schema, small: bool) -> pq.ParquetFile:
    """A shard's file, to be closed; `path` names it, `small` says that few of its bytes are wanted.

    ShardError `damaged-shard`, `shard-schema`.
    """
    try:
        file = pq.ParquetFile(_for_arrow(source), memory_map=True, pre_buffer=small)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    if not file.schema_arrow.equals(schema):
        raise ShardError(
            f"the shard's columns are not those of format {FORMAT_VERSION}",
            code="shard-schema",
            place=str(path),
            hint="write the set again with sftprep pack",
        )
    return file


def _for_arrow(source: Path | BinaryIO) -> Path | BinaryIO:
    """The same; opened where its name is not UTF-8, which is all that Arrow takes for one."""
    try:
        str(source).encode()
    except UnicodeEncodeError:
        return source.open("rb") if isinstance(source, Path) else source
    return source


def read_shard(path: Path, *, weights: bool) -> Iterator[pa.RecordBatch]:
    """The rows of one shard, of a set with `weights` or without, in order, one row group a batch.

    ShardError `damaged-shard`, `shard-schema`.
    """
    with open_part(path, path=path, schema=shard_schema(weights=weights), small=False) as file:
        yield from groups_of(file, columns=None, path=path)


def groups_of(file: pq.ParquetFile, *, columns: Sequence[str] | None, path: Path) -> Iterator[pa.RecordBatch]:
    """The rows of an open shard in order, one row group a batch. ShardError as `read_group`."""
    for group in range(file.num_row_groups):
        yield read_group(file, group, columns=columns, path=path)


def read_group(file: pq.ParquetFile, group: int, *, columns: Sequence[str] | None, path: Path) -> pa.RecordBatch:
    """One row group of an open shard; `path` names it. ShardError `damaged-shard` where it cannot be read."""
    try:
        # One thread: the caller decides how many cores it uses, and a row group is small.
        table = file.read_row_group(group, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    return table.combine_chunks().to_batches()[0]


def _damaged(path: Path, error: Exception) -> ShardError:
    return ShardError(
        f"the shard cannot be read: {str(error).partition(chr(10))[0]}",
        code="damaged-shard",
        place=str(path),
        hint="copy the set again, or write it again with sftprep pack",
    )
