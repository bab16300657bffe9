"""Shards of an object store on this machine: verified copies in bounded space.

A copy gets its name when all its bytes are there and have the manifest's sha256, so a killed process leaves nothing
that looks whole. All processes that name a cache share it: one fetches at a time, the others find the copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from sftprep.config.places import is_remote
from sftprep.errors import ShardError, UsageError
from sftprep.shards.manifest import Manifest, ShardRecord
from sftprep.shards.place import named_failures, sync_directory
from sftprep.shards.read import (
    ShardSet,
    missing_shard,
    no_manifest,
    open_shard_set,
    parse_manifest,
    refuse_missing,
    refuse_outside,
)
from sftprep.shards.schema import MANIFEST_NAME
from sftprep.stores import read as stores
from sftprep.stores.access import listed, tried

_PIECE_BYTES: Final = 1 << 23


def open_set(place: Path, *, cache_dir: Path, cache_gb: float) -> ShardSet:
    """The shard set at a path or a URL; of a URL the small files are copied now, shards when they are read.

    Raises:
        UsageError: `missing-file`, `not-a-directory`, `cache-too-small`; OutputError: the cache cannot be written.
        SourceError: `read-failed`. ShardError: what is wrong with the set, `no-manifest` first of all.
    """
    if not is_remote(place):
        _require_directory(place)
        return open_shard_set(place)
    content = _manifest(place)
    manifest = parse_manifest(content, place=place / MANIFEST_NAME)
    # By what the manifest says, checksums included: another set at the same URL has another directory.
    names = _names(place, manifest)
    directory = cache_dir.expanduser() / hashlib.sha256(content).hexdigest()[:32]
    with named_failures(directory):
        for name in names:
            _write(directory / name, stores.read_whole(place / name))
        _write(directory / MANIFEST_NAME, content)
    cache = ShardCache(place, manifest, directory=directory, max_bytes=int(cache_gb * 1e9))
    return ShardSet(directory=directory, manifest=manifest, copies=cache)


def require_something(place: Path) -> None:
    """UsageError `missing-file` where a path of this machine names nothing: the call is wrong, and no data yet."""
    if not place.exists():
        hint = "check the path: it is what sftprep pack --out wrote"
        raise UsageError("there is no such directory", code="missing-file", place=str(place), hint=hint)


def _require_directory(place: Path) -> None:
    require_something(place)
    if not place.is_dir():
        hint = "name what sftprep pack --out wrote"
        if place.name == MANIFEST_NAME:
            hint = f"name the directory: {place.parent}"
        raise UsageError("a shard set is a directory", code="not-a-directory", place=str(place), hint=hint)


class ShardCache:
    """The copies of one set's shards in `directory`, beside other sets' in the directory above, which is bounded.

    Where room is needed, copies that this run does not want go first, the longest unused before others, then those
    that it wants last. Who still reads a copy that went keeps reading it.
    """

    def __init__(self, source: Path, manifest: Manifest, *, directory: Path, max_bytes: int) -> None:
        largest = max((shard.num_bytes for shard in manifest.shards), default=0)
        if max_bytes < 2 * largest:
            raise UsageError(
                f"the cache may take {max_bytes:,} bytes, and a shard of the set has {largest:,}",
                code="cache-too-small",
                place=str(source),
                hint="--cache-gb must have room for two shards: the one that is read and the next",
            )
        self.num_fetched = 0
        """Shards that this process fetched."""
        self.num_late = 0
        """How often a shard was needed and not there yet."""
        self.source = source
        self._shards = manifest.shards
        self._directory = directory
        self._max_bytes = max_bytes
        self._wanted: Sequence[int] = ()
        self._checked: set[str] = set()

    def local(self, shard: ShardRecord) -> Path:
        """The verified copy of a shard, fetched where it is not there.

        Raises:
            ShardError: `missing-shard`, `shard-checksum`. SourceError: `read-failed`. UsageError: `no-access`.
            OutputError: `disk-full`, `output-not-writable`.
        """
        # Not by counting what is fetched meanwhile: another thread fetches what comes next.
        self.num_late += not self._is_good(self._directory / shard.file, shard)
        return self.fetch(shard)

    def fetch(self, shard: ShardRecord) -> Path:
        """As `local`, before anything needs it."""
        path = self._directory / shard.file
        if not self._is_good(path, shard):
            with named_failures(self._directory), self._lock():
                if not self._is_good(path, shard):
                    self._copy(path, shard)
        with suppress(OSError):
            os.utime(path)  # used now: the last to go
        return path

    def peek(self, shard: ShardRecord) -> Path | BinaryIO:
        """The copy where there is one, else a file that reads ranges in the store: for small columns."""
        path = self._directory / shard.file
        if path.is_file():
            return path
        return self._opened(shard)

    def next_missing(self, order: Sequence[int]) -> ShardRecord | None:
        """The first of these shards, the next one first, that has no copy and room beside those before it."""
        sizes = np.cumsum([self._shards[number].num_bytes for number in order])
        self._wanted = order[: int(np.searchsorted(sizes, self._max_bytes, side="right"))]
        found = (self._shards[number] for number in self._wanted)
        return next((shard for shard in found if not (self._directory / shard.file).is_file()), None)

    def _is_good(self, path: Path, shard: ShardRecord) -> bool:
        """Whether the copy is there; what another run left is read once before it is believed."""
        if not path.is_file():
            return False
        if shard.file not in self._checked:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    return False
            self._checked.add(shard.file)
        return True

    def _copy(self, path: Path, shard: ShardRecord) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._make_room(shard)
        partial, digest = path.with_name(f".{path.name}.partial"), hashlib.sha256()
        with self._opened(shard) as source, partial.open("wb") as file:
            while piece := source.read(_PIECE_BYTES):
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != shard.sha256:
            partial.unlink()
            raise ShardError(
                f"the shard's sha256 is {digest.hexdigest()[:12]}… and the manifest says {shard.sha256[:12]}…",
                code="shard-checksum",
                place=str(self.source / shard.file),
                hint="copy the set again, or write it again with sftprep pack",
            )
        partial.rename(path)
        sync_directory(path.parent)
        self._checked.add(shard.file)
        self.num_fetched += 1

    def _opened(self, shard: ShardRecord) -> BinaryIO:
        place = self.source / shard.file
        try:
            return stores.open_remote(place)
        except UsageError as error:
            if error.code != "missing-file":
                raise
            raise missing_shard(place) from error

    def _make_room(self, coming: ShardRecord) -> None:
        """Remove copies until `coming` fits; the lock is held, so that what is half copied is of a killed process."""
        for path in self._directory.parent.glob("*/shards/.*.partial"):
            path.unlink()
        rank = {self._directory / self._shards[number].file: place for place, number in enumerate(self._wanted)}
        found = {path: path.stat() for path in self._directory.parent.glob("*/shards/*.parquet")}
        used = sum(state.st_size for state in found.values())
        for path in sorted(found, key=lambda path: (path in rank, -rank.get(path, 0), found[path].st_mtime)):
            if used + coming.num_bytes <= self._max_bytes:
                break
            path.unlink()
            used -= found[path].st_size

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One copy is made at a time in the whole cache, so that its size is never more than it may be."""
        handle = os.open(self._directory.parent / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _manifest(place: Path) -> bytes:
    try:
        return stores.read_whole(place / MANIFEST_NAME)
    except UsageError as error:
        if error.code == "missing-file":
            raise no_manifest(place) from error
        raise


def _names(place: Any, manifest: Manifest) -> list[str]:
    """The model's files in the set; ShardError `missing-shard` where a shard is not there, or has another size."""
    with stores.named_failures(place):
        sizes = tried(partial(listed, place.fs, f"{place.path.rstrip('/')}/"))
    refuse_missing(manifest, sizes, place=place)
    names = sorted(name for name in sizes if name.startswith("model/"))
    for name in names:
        refuse_outside(name, place=place)
    return names


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, whoever else writes the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
