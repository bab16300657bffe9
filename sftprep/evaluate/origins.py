"""Who wrote the held-out rows: what each row says under the key `source`, read again from the files of the set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sftprep.config.places import recorded
from sftprep.prepare.validate import read_conversations
from sftprep.shards.manifest import SourceRecord
from sftprep.shards.read import ShardSet

KEY: Final = "source"
_MOST: Final = 20
_OTHER: Final = "(other)"


@dataclass(frozen=True, slots=True)
class Origins:
    """The value of each row that has one, by file number and line; `unread` are files that are gone or another."""

    by_row: dict[tuple[int, int], str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def read_origins(shards: ShardSet, *, state: Callable[[SourceRecord], str]) -> Origins:
    """The rows' own sources; beyond twenty of them the rest are one. `state` says `read` of a file that is unchanged.

    Raises:
        SourceError: a file cannot be read.
    """
    found = Origins()
    for number, source in enumerate(shards.manifest.sources):
        said = state(source)
        if said != "read":
            found.unread.append(f"{source.path} ({said})")
            continue
        for row in read_conversations(recorded(source.path), name=source.name):
            value = None if row.conversation is None else row.conversation.metadata.get(KEY)
            if row.conversation is not None and isinstance(value, str):
                found.by_row[number, row.conversation.address.line] = value
    most = {name for name, _ in Counter(found.by_row.values()).most_common(_MOST)}
    return Origins({row: name if name in most else _OTHER for row, name in found.by_row.items()}, found.unread)
