"""The sources that a manifest names, read again: only where they still have the bytes that were packed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from sftprep.config.places import recorded
from sftprep.data import Conversation
from sftprep.errors import UsageError
from sftprep.prepare.validate import read_conversations
from sftprep.shards.manifest import SourceRecord
from sftprep.shards.read import ShardSet
from sftprep.sources.lines import file_sha256
from sftprep.stores.read import identity


def source_state(record: SourceRecord) -> Literal["read", "missing", "changed"]:
    """Whether a source can be read at its recorded path, with its recorded bytes.

    UsageError `no-access`, SourceError `read-failed` where a store does not say.
    """
    path = recorded(record.path)
    if record.identity:
        return _remote_state(path, record)
    if not path.is_file():
        return "missing"
    return "read" if file_sha256(path) == record.sha256 else "changed"


def _remote_state(path: Path, record: SourceRecord) -> Literal["read", "missing", "changed"]:
    try:
        return "read" if identity(path) == (record.identity, record.num_bytes) else "changed"
    except UsageError as error:
        if error.code != "missing-file":  # nobody knows whether it is there: no word on it would be true
            raise
        return "missing"


def conversations(shards: ShardSet, record: SourceRecord) -> Iterator[tuple[int, Conversation]]:
    """The good rows of a source, each with its line."""
    named = shards.manifest.config.get("format")
    rows = read_conversations(recorded(record.path), name=record.path, format=None if named is None else str(named))
    for row in rows:
        if row.conversation is not None:
            yield row.address.line, row.conversation
