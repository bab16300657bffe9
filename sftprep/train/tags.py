"""What rows say under a key of their own (`--tag KEY`), so that a run tells its loss apart by it too.

Shards carry no tags: they are read again, once before the first step, from the files that the set was packed from.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sftprep.config.places import recorded
from sftprep.errors import ShardError, SourceError, UsageError
from sftprep.shards.manifest import Manifest, SourceRecord

NONE: Final = "(none)"
OTHERS: Final = "(other)"
_MOST: Final = 20
"""Values that are told apart: those of the most rows; the others are one."""


@dataclass(frozen=True, slots=True)
class Tags:
    """`names` are the values told apart, none where nobody asked; `by_line` int32 has a source's numbers by line."""

    names: tuple[str, ...] = ()
    by_line: tuple[npt.NDArray[np.int32], ...] = ()

    def joint(self, files: npt.NDArray[np.int32], lines: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Documents' numbers of source and tag together, `source * tags + tag`. int32 `[documents]`.

        Raises:
            ShardError: `source-unknown`: a document of no row of the sources.
        """
        pairs = list(zip(files.tolist(), lines.tolist(), strict=True))
        for file, line in pairs:
            if not (0 <= file < len(self.by_line) and 0 <= line < len(self.by_line[file])):
                raise ShardError("a document of no row of its source", code="source-unknown")
        return np.array([f * len(self.names) + self.by_line[f][line] for f, line in pairs], np.int32)


UNTAGGED: Final = Tags()


def read_tags(manifest: Manifest, key: str | None) -> Tags:
    """What the sources of a set say under `key`: texts as they are, other values as JSON.

    Raises:
        UsageError: `missing-file`. SourceError: `source-changed`, and what reading a source raises.
    """
    if key is None:
        return UNTAGGED
    seen: dict[str, int] = {NONE: 0}
    found = [_numbered(source, key, seen) for source in manifest.sources]
    counts = np.bincount(np.concatenate([np.zeros(1, np.int32), *(numbers for _, numbers in found)]), minlength=1)
    most = [number for number in np.argsort(-counts, kind="stable").tolist() if number][:_MOST]
    values = list(seen)
    names = (NONE, *(values[number] for number in most), *([OTHERS] if len(values) > len(most) + 1 else []))
    shown = np.full(len(values), len(names) - 1, np.int32)
    shown[[0, *most]] = np.arange(len(most) + 1)
    return Tags(names, tuple(_by_line(lines, shown[numbers]) for lines, numbers in found))


def told_apart(sums: npt.NDArray[np.float64], manifest: Manifest, tags: Tags) -> dict[str, Any]:
    """Nats a trained token and trained tokens of each source, and of each tag: fields of a step's record.

    `sums` float64 `[2, sources * tags]`: nats and targets.
    """
    sources = [source.name for source in manifest.sources] or ["all"]
    parts = sums.reshape(2, len(sources), -1)
    fields = _fields("source", sources, parts.sum(axis=2))
    return fields | (_fields("tag", tags.names, parts.sum(axis=1)) if tags.names else {})


def _fields(what: str, names: Any, sums: npt.NDArray[np.float64]) -> dict[str, Any]:
    found = {name: (float(nll), int(count)) for name, nll, count in zip(names, *sums, strict=True) if count}
    return {
        f"nll_by_{what}": {name: nll / count for name, (nll, count) in found.items()},
        f"trained_by_{what}": {name: count for name, (_, count) in found.items()},
    }


def _numbered(
    source: SourceRecord, key: str, seen: dict[str, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Each row's line, and the number of its value in `seen`, which grows: twelve bytes a row."""
    # Training reads no sources but for this: what could tokenise or render must not even be loaded.
    from sftprep.sources.lines import read_rows

    lines, numbers = array("q"), array("i")
    for row in read_rows(_unchanged(source), name=source.name):
        lines.append(row.address.line)
        numbers.append(seen.setdefault(_said(row.raw, key), len(seen)))
    return np.array(lines, np.int64), np.array(numbers, np.int32)


def _unchanged(source: SourceRecord) -> Path:
    """The file that a set was packed from, with the bytes that it had then."""
    # As above.
    from sftprep.sources.lines import content_name

    path, what = recorded(source.path), "--tag reads the files that the set was packed from"
    try:
        changed = content_name(path) != source.bytes_name
    except UsageError as error:
        hint = "put it where it was, or leave out --tag"
        raise UsageError(f"{what}: {error.message}", code=error.code, place=source.path, hint=hint) from error
    if changed:
        hint = "pack again, or leave out --tag"
        raise SourceError(f"{what}, and this one is another", code="source-changed", place=source.path, hint=hint)
    return path


def _said(raw: bytes, key: str) -> str:
    """The row's value; NONE where it has none."""
    try:
        row = json.loads(raw)
    except ValueError:  # such a row was left out when the set was packed
        return NONE
    value = row.get(key) if isinstance(row, dict) else None
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _by_line(lines: npt.NDArray[np.int64], numbers: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    by_line = np.zeros(int(lines.max(initial=0)) + 1, np.int32)
    by_line[lines] = numbers
    return by_line
