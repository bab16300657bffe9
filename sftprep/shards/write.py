"""Write a shard set so that it exists whole or not at all.

Everything is written into a hidden directory beside the destination; `publish` writes the manifest last and renames
the directory into place. Whatever happens before that, the destination is as it was and the hidden directory is gone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from sftprep.shards.manifest import Manifest, ShardRecord
from sftprep.shards.place import check_output, named_failures, replace_directory, sync_directory
from sftprep.shards.read import ShardSet
from sftprep.shards.schema import MANIFEST_NAME

OnShard = Callable[[Path, ShardRecord], None]
"""Told of each shard when it is finished, and where it lies until the set is published."""


class ShardWriter:
    """Writes `out/shards/part-*.parquet`; nothing is at `out` before `publish`.

        with ShardWriter(out, fingerprint=fingerprint) as writer:
            writer.add(write_shard(writer.directory, gather(documents, plan), number=0, weights=False))
            writer.add_file("report.json", report)
            writer.publish(manifest)

    `out` may be missing, empty, or hold a shard set of the same fingerprint (with `overwrite`: any shard set), which
    is replaced at `publish`. OutputError otherwise, and where the place cannot be written or is full.
    """

    def __init__(self, out: Path, *, fingerprint: str, overwrite: bool = False) -> None:
        self.out = Path(out).resolve()  # a link is followed: the set belongs where it points
        self.directory = self.out
        """Where files are now: hidden until published."""
        self._fingerprint = fingerprint
        self._overwrite = overwrite
        self.num_taken_over = 0
        """Shards that were there before."""
        self.on_shard: OnShard | None = None
        self._records: list[ShardRecord] = []
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
        """Before the first shard: those and the model of the set at `out` stay as they are, new ones stand behind.

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._published:
            shutil.rmtree(self.directory, ignore_errors=True)

    def add(self, record: ShardRecord) -> None:
        """The next shard, which `write_shard` has written into `directory`."""
        self._records.append(record)
        if self.on_shard is not None:
            self.on_shard(self.directory / record.file, record)

    @property
    def records(self) -> list[ShardRecord]:
        """What the manifest says of each shard, those taken over first."""
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
        if manifest.shards != self._records:
            raise ValueError("the manifest lists other shards than were written")
        self.add_file(MANIFEST_NAME, (manifest.model_dump_json(indent=2) + "\n").encode())
        check_output(self.out, fingerprint=self._fingerprint, overwrite=self._overwrite)
        with named_failures(self.out):
            for folder in (*(path for path in self.directory.rglob("*") if path.is_dir()), self.directory):
                sync_directory(folder)
            replace_directory(self.directory, target=self.out)
            self._published = True
            sync_directory(self.out.parent)
