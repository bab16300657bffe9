"""A shard set at a URL that is added to, copied here whole: it is audited with what is added, and taken over."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sftprep.errors import ShardError
from sftprep.prepare.left_out import LEFT_OUT_NAME
from sftprep.prepare.pack_report import REPORT_NAME
from sftprep.prepare.unchanged import parts_of
from sftprep.shards.cache import ShardCache
from sftprep.shards.manifest import Manifest
from sftprep.shards.read import open_shard_set, parse_manifest, refuse_missing, refuse_outside
from sftprep.shards.schema import MANIFEST_NAME
from sftprep.stores.write import StoreFolder

_BESIDE: Final = ("model/", "reports/part-")


def fetch_base(folder: StoreFolder, sizes: Mapping[str, int], directory: Path, *, fingerprint: str) -> Manifest:
    """Make `directory` the set at `folder`, whose files have these sizes, and return its manifest.

    It stays as it is where it is that set already, or that set with the part of this fingerprint behind it. Shards
    that an earlier run fetched are not fetched again.

    Raises:
        ShardError: `damaged-manifest`, `missing-shard`, `missing-file`, `shard-checksum`. OutputError: `disk-full`,
            `output-not-writable`, `store-failed`. SourceError: `read-failed`. UsageError: `no-access`.
    """
    content = folder.read(MANIFEST_NAME) or b""
    manifest = parse_manifest(content, place=folder.place / MANIFEST_NAME)
    refuse_missing(manifest, sizes, place=folder.place)
    if _is_made_of(directory, content, manifest, fingerprint=fingerprint):
        return manifest
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    shutil.rmtree(directory / "reports", ignore_errors=True)
    cache = ShardCache(folder.place, manifest, directory=directory, max_bytes=sys.maxsize)
    for shard in manifest.shards:
        cache.fetch(shard)
    beside = [name for name in sizes if name.startswith(_BESIDE)]
    for name in (*beside, REPORT_NAME, LEFT_OUT_NAME):
        refuse_outside(name, place=folder.place)
        _copy(folder, name, directory / name)
    (directory / MANIFEST_NAME).write_bytes(content)
    return manifest


def _is_made_of(directory: Path, content: bytes, manifest: Manifest, *, fingerprint: str) -> bool:
    """Whether a directory holds the set, alone or with the new part."""
    path = directory / MANIFEST_NAME
    if not path.is_file():
        return False
    if path.read_bytes() == content:
        return True
    try:
        parts = [part.fingerprint for part in parts_of(open_shard_set(directory).manifest)]
    except ShardError:
        return False
    return parts == [*(part.fingerprint for part in parts_of(manifest)), fingerprint]


def _copy(folder: StoreFolder, name: str, target: Path) -> None:
    content = folder.read(name)
    if content is None:
        what = f"the set lacks {name}, and nothing can be added to it"
        raise ShardError(what, code="missing-file", place=str(folder.place), hint="pack the set again")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
