"""A shard set at a URL: made whole on this machine, its shards uploaded as they are finished, its manifest last.

An object store renames nothing, so a set is published by its manifest: who reads finds none before everything else is
there. Who writes is told by the object `packing.json`, which the store gives to the first that asks for it, and which
goes when the set is published. What is uploaded is noted beside the local set, so that the same command, on the same
machine, goes on behind it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from sftprep.config.pack import PackConfig
from sftprep.errors import DataError, OutputError, SftprepError, ShardError
from sftprep.prepare.left_out import LEFT_OUT_NAME
from sftprep.prepare.pack_report import REPORT_NAME, RUN_NAME
from sftprep.prepare.store_base import fetch_base
from sftprep.prepare.unchanged import parts_of
from sftprep.reports.parity_json import CERTIFICATE_NAME
from sftprep.shards.cache import open_set
from sftprep.shards.claim import OutputClaim
from sftprep.shards.manifest import Manifest, ShardRecord
from sftprep.shards.read import ShardSet, no_manifest, refuse_missing
from sftprep.shards.schema import MANIFEST_NAME
from sftprep.stores.write import StoreFolder

CLAIM_NAME: Final = "packing.json"
"""The object that says who is writing a set."""

_CACHE_GB: Final = 10.0
_OF_SETS: Final = ("shards/part-", "model/", "reports/part-", CERTIFICATE_NAME, RUN_NAME)
_KEPT_IN_SPITE_OF: Final = frozenset({"worker-died"})
"""Errors of the machine that come as errors of the data."""


@dataclass(slots=True)
class _Note:
    """What this machine knows of a set that it is publishing."""

    token: str
    """What stands in the claim, if it is ours."""
    uploaded: dict[str, str] = field(default_factory=dict)
    """Names of shards that are in the store, and their sha256; some may be of another set, which nobody ended."""


@contextmanager
def store_output(config: PackConfig, *, fingerprint: str) -> Iterator[StoreOutput]:
    """The place of a pack to a URL, held until the end of the block.

    Raises:
        OutputError: `output-busy` where another pack has it; `output-other-shards`, `output-not-empty`, `store-failed`.
        UsageError: `no-access`. ShardError: the set is there and lacks shards.
    """
    name = hashlib.sha256(str(config.out).encode()).hexdigest()[:32]
    base = config.work_dir.expanduser() / name
    with OutputClaim(base, named=config.out):
        output = StoreOutput(config, base, fingerprint=fingerprint)
        try:
            output.begin()
            yield output
        except BaseException as error:
            output.leave(error)
            if isinstance(error, SftprepError):  # what is wrong with the set that is made here is wrong with that set
                error.place = error.place.replace(str(output.directory), str(config.out))
            raise


class StoreOutput:
    """Made by `store_output`, which holds the lock of this machine for it."""

    def __init__(self, config: PackConfig, base: Path, *, fingerprint: str) -> None:
        self._config = config
        self._base = base
        self._folder = StoreFolder(config.out)
        self._fingerprint = fingerprint
        self._note = self._noted() or _Note(uuid4().hex)
        self._is_claimed = False
        self._sizes: dict[str, int] = {}
        self.directory = base / "set"
        """Where the set is made."""
        self.there: ShardSet | None = None
        """The set of this fingerprint, where it is published already."""
        self._kept: frozenset[str] = frozenset()
        """Shards of the set that is added to, and its model: they are there, and stay as they are."""

    def begin(self) -> None:
        """Look at what is there, and claim the place unless it is this very set."""
        self._sizes = self._folder.sizes()
        claim = self._folder.read(CLAIM_NAME)
        if claim is not None and self._token_in(claim) != self._note.token:
            raise self._busy(claim)
        if MANIFEST_NAME in self._sizes:
            self.there = self._whole_set()
        elif self._config.append:
            raise no_manifest(self._config.out)
        elif claim is None and self._sizes:
            raise OutputError(
                "there are objects with this prefix, and they are not a shard set",
                code="output-not-empty",
                place=str(self._config.out),
                hint="name a prefix that is new; only a shard set is ever replaced",
            )
        self._is_claimed = claim is not None
        if self.there is not None:
            self._end()
            return
        if claim is None:
            self._claim()
        if self._config.append:
            self._fetch()

    def _fetch(self) -> None:
        """Bring the set here that is added to, as it is now that the place is claimed and nobody else adds to it."""
        self._sizes = self._folder.sizes()
        base = fetch_base(self._folder, self._sizes, self.directory, fingerprint=self._fingerprint)
        model = {name for name in self._sizes if name.startswith("model/")}
        self._kept = frozenset({shard.file for shard in base.shards} | model)

    def upload(self, path: Path, shard: ShardRecord) -> None:
        """Put a finished shard there, unless it is; `path` is where it lies here."""
        noted = self._note.uploaded.get(shard.file) == shard.sha256
        if shard.file in self._kept or (noted and self._sizes.get(shard.file) == shard.num_bytes):
            return
        if MANIFEST_NAME in self._sizes and not self._config.append:
            # --overwrite: a reader of the old set finds none now, rather than the shards of two.
            self._folder.remove([MANIFEST_NAME])
            del self._sizes[MANIFEST_NAME]
        self._note.uploaded.pop(shard.file, None)
        self._folder.put(shard.file, path)
        self._sizes[shard.file] = shard.num_bytes
        self._note.uploaded[shard.file] = shard.sha256
        self._keep_note()

    def publish(self) -> ShardSet:
        """Put there what is not, the manifest last, and open the set."""
        manifest = Manifest.model_validate_json((self.directory / MANIFEST_NAME).read_bytes())
        for shard in manifest.shards:
            self.upload(self.directory / shard.file, shard)
        files = {str(path.relative_to(self.directory)): path for path in self.directory.rglob("*") if path.is_file()}
        shards = {shard.file for shard in manifest.shards}
        for name in sorted(set(files) - shards - self._kept - {MANIFEST_NAME}):
            self._folder.put(name, files[name])
        # Only what sets consist of: whatever else somebody has put there stays.
        self._folder.remove(sorted(name for name in set(self._sizes) - set(files) if name.startswith(_OF_SETS)))
        self._refuse_lost(files)
        self._folder.put(MANIFEST_NAME, files[MANIFEST_NAME])
        self._end()
        return self._opened(manifest)

    def leave(self, error: BaseException) -> None:
        """Where nothing is uploaded, or the data is refused, nothing stays there; else the same command goes on."""
        refused = isinstance(error, DataError) and error.code not in _KEPT_IN_SPITE_OF
        down = isinstance(error, OutputError) and error.code in {"store-failed", "output-busy"}
        if down or (self._note.uploaded and not refused):
            if self._note.uploaded:
                error.add_note(
                    f"{len(self._note.uploaded)} shards are uploaded: the same command on this machine goes on"
                )
            return
        if not self._is_claimed:  # what lies there is of another call
            return
        with suppress(SftprepError):  # what ended the run is to be told, not that the store is down too
            if self._token_in(self._folder.read(CLAIM_NAME) or b"") == self._note.token:
                self._folder.remove([*self._note.uploaded, CLAIM_NAME])
                self._note_path.unlink(missing_ok=True)

    def _claim(self) -> None:
        """Ours or OutputError. The token is noted first: who is killed here knows its claim again."""
        self._keep_note()
        host, now = os.uname().nodename, datetime.now(UTC).isoformat(timespec="seconds")
        about = {"token": self._note.token, "host": host, "process": os.getpid(), "since": now}
        found = self._folder.create(CLAIM_NAME, json.dumps(about).encode())
        if self._token_in(found) != self._note.token:
            raise self._busy(found)
        self._is_claimed = True

    def _end(self) -> None:
        """Give up the claim, if there is one, and what was made here."""
        if self._is_claimed:
            self._folder.remove([CLAIM_NAME])
        shutil.rmtree(self._base, ignore_errors=True)

    def _whole_set(self) -> ShardSet | None:
        """The set that is there, where it has this fingerprint; OutputError where it has another and may not go.

        With `--append` also the one that has a part of this fingerprint, and any other may be there.
        """
        content = self._folder.read(MANIFEST_NAME) or b""
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError:
            manifest = None
        if manifest is not None and self._config.append:
            is_new = self._fingerprint not in [part.fingerprint for part in parts_of(manifest)]
        else:
            is_new = manifest is None or manifest.fingerprint != self._fingerprint
        if manifest is None or is_new:
            if not (self._config.overwrite or self._config.append):
                raise OutputError(
                    "there is another shard set",
                    code="output-other-shards",
                    place=str(self._config.out),
                    hint="name another prefix, or replace the set with --overwrite",
                )
            return None
        try:
            refuse_missing(manifest, self._sizes, place=self._config.out)
        except ShardError:
            if self._config.overwrite:
                return None
            raise
        return self._with_reports(self._opened(manifest))

    def _with_reports(self, there: ShardSet) -> ShardSet:
        for name in (REPORT_NAME, LEFT_OUT_NAME):
            (there.directory / name).write_bytes(self._folder.read(name) or b"")
        return there

    def _opened(self, manifest: Manifest) -> ShardSet:
        largest = max((shard.num_bytes for shard in manifest.shards), default=0)
        cache_gb = max(_CACHE_GB, 2 * largest / 1e9)
        return open_set(self._config.out, cache_dir=self._config.work_dir / "copies", cache_gb=cache_gb)

    def _refuse_lost(self, files: dict[str, Path]) -> None:
        """OutputError unless the store has every byte that was sent."""
        sizes = self._folder.sizes()
        lost = [
            name for name, path in files.items() if name != MANIFEST_NAME and sizes.get(name) != path.stat().st_size
        ]
        if lost:
            raise OutputError(
                f"the store took {lost[0]} and does not have it",
                code="store-failed",
                place=str(self._config.out),
                hint="run the same command again",
            )

    @property
    def _note_path(self) -> Path:
        return self._base / "note.json"

    def _noted(self) -> _Note | None:
        try:
            return TypeAdapter(_Note).validate_json(self._note_path.read_bytes())
        except (OSError, ValidationError):
            return None

    def _keep_note(self) -> None:
        self._base.mkdir(parents=True, exist_ok=True)
        partial = self._note_path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self._note)), encoding="utf-8")
        partial.replace(self._note_path)

    def _token_in(self, claim: bytes) -> str:
        try:
            return str(json.loads(claim)["token"])
        except (ValueError, KeyError, TypeError):
            return ""

    def _busy(self, claim: bytes) -> OutputError:
        about = claim.decode("utf-8", "replace").partition("\n")[0][:300]
        return OutputError(
            f"another pack has claimed the place: {about}",
            code="output-busy",
            place=str(self._config.out),
            hint=f"wait for it; where it is dead for good, remove all objects below {self._config.out}",
        )
