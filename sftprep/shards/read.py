"""Read a shard set: the manifest first, then rows in a stream, a row by its number, or small columns of all rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from sftprep.arrow import flat, list_values
from sftprep.errors import ShardError
from sftprep.shards.manifest import Manifest, ShardRecord
from sftprep.shards.part import groups_of, open_part, read_group
from sftprep.shards.schema import FORMAT_VERSION, MANIFEST_NAME, shard_schema


@dataclass(frozen=True, slots=True)
class Scalars:
    """What a schedule needs to know of every row, without its tokens. All arrays `[num_rows]`."""

    num_tokens: npt.NDArray[np.int64]
    num_documents: npt.NDArray[np.int64]
    num_trained: npt.NDArray[np.int64]
    weight_sum: npt.NDArray[np.float64]
    sum_len2: npt.NDArray[np.int64]


class Copies(Protocol):
    """Shards of another place, copied into the set's directory when they are read."""

    source: Path

    def local(self, shard: ShardRecord) -> Path:
        """The whole and verified copy."""

    def peek(self, shard: ShardRecord) -> Path | BinaryIO:
        """The copy, or a file that reads ranges where there is none: for small columns."""


@dataclass(frozen=True, slots=True)
class ShardSet:
    """A directory of shards and its manifest. Rows are numbered from 0 through all shards in the manifest's order."""

    directory: Path
    manifest: Manifest
    copies: Copies | None = None
    """Where shards come from that are not in the directory yet; verified when they come."""

    @property
    def place(self) -> Path:
        """What errors and reports call it: the URL that it is copied from, else the directory."""
        return self.directory if self.copies is None else self.copies.source

    @property
    def num_rows(self) -> int:
        """Rows (packs, or documents without packing), as the manifest says."""
        return sum(shard.num_rows for shard in self.manifest.shards)

    @property
    def schema(self) -> pa.Schema:
        """The columns that every shard has."""
        return shard_schema(weights=self.manifest.has_weights)

    def verify(self, *, checksums: bool = True) -> None:
        """ShardError where a file's rows (`shard-count`) or bytes (`shard-checksum`) are not the manifest's."""
        for shard in self.manifest.shards:
            if checksums and self.copies is None:  # a copy has been checked when it was made
                _check_digest(self.directory / shard.file, shard)
            with self.open_shard(shard) as file:
                _check_rows(self.place / shard.file, found=file.metadata.num_rows, shard=shard)

    def iter_batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in order, one row group a batch; only `columns` where given."""
        for shard in self.manifest.shards:
            yield from self.iter_shard(shard, columns)

    def iter_shard(self, shard: ShardRecord, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of one shard in order, one row group a batch."""
        with self.open_shard(shard) as file:
            yield from groups_of(file, columns=columns, path=self.place / shard.file)

    def row(self, index: int) -> pa.RecordBatch:
        """Row `index` as a batch of one row; IndexError where there is none."""
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.num_rows}")
        for shard in self.manifest.shards:
            if index < shard.num_rows:
                return self._row_of(shard, index)
            index -= shard.num_rows
        raise IndexError(index)

    def scalars(self) -> Scalars:
        """The small columns of all rows, read by projection."""
        names = ["seq_lengths", "num_trained", "weight_sum", "sum_len2"]
        batches = [batch for shard in self.manifest.shards for batch in self._small_columns(shard, names)]
        return Scalars(
            num_tokens=_join([_row_sums(batch["seq_lengths"]) for batch in batches], np.int64),
            num_documents=_join([pc.list_value_length(batch["seq_lengths"]) for batch in batches], np.int64),
            num_trained=_join([batch["num_trained"] for batch in batches], np.int64),
            weight_sum=_join([batch["weight_sum"] for batch in batches], np.float64),
            sum_len2=_join([batch["sum_len2"] for batch in batches], np.int64),
        )

    def group_rows(self) -> list[list[int]]:
        """Rows of each row group, a list a shard."""
        return [self._group_rows(shard) for shard in self.manifest.shards]

    def _group_rows(self, shard: ShardRecord) -> list[int]:
        with self._open(shard, small=True) as file:
            return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]

    def _small_columns(self, shard: ShardRecord, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with self._open(shard, small=True) as file:
            yield from groups_of(file, columns=names, path=self.place / shard.file)

    def _row_of(self, shard: ShardRecord, index: int) -> pa.RecordBatch:
        path = self.place / shard.file
        with self.open_shard(shard) as file:
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if index < size:
                    return read_group(file, group, columns=None, path=path).slice(index, 1)
                index -= size
            raise _count_error(path, found=file.metadata.num_rows, shard=shard)

    def open_shard(self, shard: ShardRecord) -> pq.ParquetFile:
        """The shard's file, to be closed. ShardError `damaged-shard`, `shard-schema`, and what copying it raises."""
        return self._open(shard, small=False)

    def _open(self, shard: ShardRecord, *, small: bool) -> pq.ParquetFile:
        path = self.place / shard.file
        source: Path | BinaryIO = path
        if self.copies is not None:
            source = self.copies.peek(shard) if small else self.copies.local(shard)
        return open_part(source, path=path, schema=self.schema, small=small)


def open_shard_set(path: Path) -> ShardSet:
    """The shard set in a directory: its manifest is whole, of a known format, and its files are there.

    ShardError: `no-manifest`, `damaged-manifest`, `unknown-format-version`, `missing-shard`.
    """
    place = path / MANIFEST_NAME
    if not place.is_file():
        raise no_manifest(path)
    shards = ShardSet(directory=path, manifest=read_manifest(place))
    for shard in shards.manifest.shards:
        if not (path / shard.file).is_file():
            raise missing_shard(path / shard.file)
    return shards


def missing_shard(place: Path) -> ShardError:
    """The error that says that a shard of the manifest is not at its place, or not whole."""
    hint = "copy the set again, or write it again with sftprep pack"
    return ShardError("the shard is not there, or not whole", code="missing-shard", place=str(place), hint=hint)


def refuse_missing(manifest: Manifest, sizes: Mapping[str, int], *, place: Path) -> None:
    """ShardError `missing-shard` unless a store, whose objects have these sizes, has every shard of the manifest."""
    for shard in manifest.shards:
        if sizes.get(shard.file) != shard.num_bytes:
            raise missing_shard(place / shard.file)


def no_manifest(path: Path) -> ShardError:
    """The error that says that what is at a path or URL is no set, or not yet."""
    return ShardError(
        "not a shard set: there is no manifest",
        code="no-manifest",
        place=str(path),
        hint="name what sftprep pack --out wrote; without a manifest a set is not whole",
    )


def read_manifest(place: Path) -> Manifest:
    """The manifest in a file. ShardError `damaged-manifest`, `unknown-format-version`."""
    try:
        content = place.read_bytes()
    except OSError as error:
        raise _unreadable(place, error) from error
    return parse_manifest(content, place=place)


def parse_manifest(content: bytes, *, place: Path) -> Manifest:
    """The manifest of these bytes; `place` is where they are from. ShardError as `read_manifest`."""
    try:
        data = json.loads(content)
        _check_version(data, place=place)
        manifest = Manifest.model_validate(data)
    except (ValueError, ValidationError) as error:
        raise _unreadable(place, error) from error
    for shard in manifest.shards:
        refuse_outside(shard.file, place=place)
    return manifest


def refuse_outside(name: str, *, place: Path) -> None:
    """ShardError where a file of a set, which comes with the data, would be anywhere else on this machine."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ShardError(f"a file is named outside of the set: {name}", code="damaged-manifest", place=str(place))


def _unreadable(place: Path, error: Exception) -> ShardError:
    what = f"the manifest cannot be read: {_first_line(error)}"
    return ShardError(what, code="damaged-manifest", place=str(place), hint="copy the set again, or pack it again")


def _check_version(data: Any, *, place: Path) -> None:
    found = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(found, int) and found != FORMAT_VERSION:
        raise ShardError(
            f"the set has format {found} and this sftprep reads format {FORMAT_VERSION}",
            code="unknown-format-version",
            place=str(place),
            hint="write the set again with this sftprep, or read it with the version that the manifest names",
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _check_rows(path: Path, *, found: int, shard: ShardRecord) -> None:
    if found != shard.num_rows:
        raise _count_error(path, found=found, shard=shard)


def _count_error(path: Path, *, found: int, shard: ShardRecord) -> ShardError:
    return ShardError(
        f"the shard has {found} rows and the manifest says {shard.num_rows}", code="shard-count", place=str(path)
    )


def _check_digest(path: Path, shard: ShardRecord) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shard.sha256:
        raise ShardError(
            f"the shard's sha256 is {found[:12]}… and the manifest says {shard.sha256[:12]}…",
            code="shard-checksum",
            place=str(path),
            hint="copy the set again, or write it again with sftprep pack",
        )


def _row_sums(column: pa.ListArray) -> npt.NDArray[np.int64]:
    """The sum of each row's list; rows are never empty."""
    offsets = flat(column.offsets)
    totals = np.concatenate([[0], np.cumsum(list_values(column), dtype=np.int64)])
    sums: npt.NDArray[np.int64] = np.diff(totals[offsets - offsets[0]])
    return sums


def _join(parts: list[Any], kind: Any) -> npt.NDArray[Any]:
    found = (flat(part) if isinstance(part, pa.Array) else part for part in parts)
    return np.concatenate([np.empty(0, kind), *found]).astype(kind)
