"""Write a shard set so that it exists whole or not at all.

Everything is written into a hidden directory beside the destination; `publish` writes the manifest last and renames
the directory into place. Whatever happens before that, the destination is as it was and the hidden directory is gone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sftprep.shards.manifest import Manifest, ShardRecord
from sftprep.shards.place import check_output, named_failures, replace_directory, sync_directory
from sftprep.shards.read import ShardSet
from sftprep.shards.schema import MANIFEST_NAME, SHARD_SCHEMA, WEIGHTS_FIELD

SHARD_TOKENS: Final = 1 << 26
"""Tokens after which a new file is begun: about 140 MB, small enough to copy and to check one by one."""

OnShard = Callable[[Path, ShardRecord], None]
"""Told of each shard when it is finished, and where it lies until the set is published."""

_ENCODINGS: Final = {
    "input_ids.list.element": "BYTE_STREAM_SPLIT",
    "span_starts.list.element": "DELTA_BINARY_PACKED",
    "doc_lines.list.element": "DELTA_BINARY_PACKED",
}
_DICTIONARIES: Final = [
    f"{name}.list.element"
    for name in ("assistant_masks", "span_kinds", "span_messages", "doc_files", "doc_samples", "doc_kwargs", "weights")
]


class ShardWriter:
    """Writes `out/shards/part-*.parquet`; nothing is at `out` before `publish`.

        with ShardWriter(out, fingerprint=fingerprint) as writer:
            for batch in gather(documents, plan):
                writer.write(batch)
            records = writer.finish()
            writer.add_file("report.json", report)
            writer.publish(manifest)

    `out` may be missing, empty, or hold a shard set of the same fingerprint (with `overwrite`: any shard set), which
    is replaced at `publish`. OutputError otherwise, and where the place cannot be written or is full.
    """

    def __init__(
        self,
        out: Path,
        *,
        fingerprint: str,
        shard_tokens: int = SHARD_TOKENS,
        weights: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.out = Path(out).resolve()  # a link is followed: the set belongs where it points
        self.directory = self.out
        """Where files are now: hidden until published."""
        self._fingerprint = fingerprint
        self._overwrite = overwrite
        self._shard_tokens = shard_tokens
        self.has_weights = weights
        self.num_taken_over = 0
        """Shards that were there before."""
        self.on_shard: OnShard | None = None
        self._records: list[ShardRecord] = []
        self._part: _Part | None = None
        self._published = False

    def __enter__(self) -> Self:
        check_output(self.out, fingerprint=self._fingerprint, overwrite=self._overwrite)
        # Named before it is made: whatever interrupts, it is known what to remove. Not tempfile's name: that makes
        # the directory private to its owner, and the set would stay so.
        self.directory = self.out.with_name(f".{self.out.name}.partial-{uuid4().hex[:12]}")
        try:
            with named_failures(self.out):
                self.out.parent.mkdir(parents=True, exist_ok=True)
                self.directory.mkdir()
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        return self

    def take_over(self, base: ShardSet) -> None:
        """Before the first row: the shards and the model of the set at `out` stay as they are, new ones stand behind.

        They are second names of the same files where the file system has those.
        """
        paths = [*(base.directory / shard.file for shard in base.manifest.shards)]
        with named_failures(self.out):
            for path in (*paths, *(base.directory / "model").iterdir()):
                place = self.directory / path.relative_to(base.directory)
                place.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, place)
                except OSError:
                    shutil.copy2(path, place)
        self._records = list(base.manifest.shards)
        self.num_taken_over = len(self._records)
        self.has_weights |= base.manifest.has_weights

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._part is not None:
            self._part.abandon()
        if not self._published:
            shutil.rmtree(self.directory, ignore_errors=True)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows as one row group; a file that has reached its tokens is closed first."""
        with named_failures(self.out):
            if self._part is not None and self._part.num_tokens >= self._shard_tokens:
                self._close_part()
            if self._part is None:
                schema = SHARD_SCHEMA.append(WEIGHTS_FIELD) if self.has_weights else SHARD_SCHEMA
                self._part = _Part(self.directory, number=len(self._records), schema=schema)
            self._part.write(batch)

    def finish(self) -> list[ShardRecord]:
        """Close the last file; what the manifest says of each, those taken over first."""
        with named_failures(self.out):
            self._close_part()
        return list(self._records)

    def add_file(self, name: str, content: bytes | Iterable[bytes]) -> None:
        """Write a file beside the shards, by its path relative to the set; `content` may come in pieces."""
        path = self.directory / name
        with named_failures(self.out):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.writelines((content,) if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest and rename the set into place; a set that was there is gone only then."""
        if manifest.shards != self.finish():
            raise ValueError("the manifest lists other shards than were written")
        self.add_file(MANIFEST_NAME, (manifest.model_dump_json(indent=2) + "\n").encode())
        check_output(self.out, fingerprint=self._fingerprint, overwrite=self._overwrite)
        with named_failures(self.out):
            for folder in (*(path for path in self.directory.rglob("*") if path.is_dir()), self.directory):
                sync_directory(folder)
            replace_directory(self.directory, target=self.out)
            self._published = True
            sync_directory(self.out.parent)

    def _close_part(self) -> None:
        if self._part is None:
            return
        record = self._part.close()
        self._part = None
        self._records.append(record)
        if self.on_shard is not None:
            self.on_shard(self.directory / record.file, record)


def parquet_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """How shards are encoded and compressed; `sink` is a binary file that is written from its start to its end."""
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=_DICTIONARIES,
        column_encoding=_ENCODINGS,
    )


class _Part:
    """One Parquet file that is being written, and its counts."""

    def __init__(self, directory: Path, *, number: int, schema: pa.Schema) -> None:
        self.name = f"shards/part-{number:05}.parquet"
        self.num_rows = 0
        self.num_tokens = 0
        self.num_trained = 0
        self.weight_sum = 0.0
        path = directory / self.name
        path.parent.mkdir(exist_ok=True)
        self._sink = _Sink(path)
        self._writer = parquet_writer(self._sink, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch, row_group_size=max(1, len(batch)))
        self.num_rows += len(batch)
        self.num_tokens += pc.sum(pc.list_value_length(batch["input_ids"])).as_py()
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
    """A new file that knows the digest of its bytes, is on the disk when closed, and can be given up."""

    def __init__(self, path: Path) -> None:
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
