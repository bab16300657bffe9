"""A report as JSON, and files that exist whole or not at all: on this machine, or as objects of a store."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from sftprep.config.places import is_remote, unwritten
from sftprep.errors import OutputError
from sftprep.stores.write import StoreFolder, check_place

_OPEN_FILES: Final = Path("/proc/self/fd")
"""Where Linux gives the process's open files names, those too that have no other."""


@dataclass(slots=True)
class Publication:
    """Files being written under temporary names; without `wanted` they are removed at the end."""

    files: list[BinaryIO] = field(default_factory=list)
    wanted: bool = True


@contextmanager
def publishing(paths: list[Path]) -> Iterator[Publication]:
    """Files under temporary names, renamed when the block ends well, removed when it does not.

    What goes to a URL lies in the temporary directory meanwhile, and is uploaded before the others get their names; on
    Linux it has no name there, so that nothing is left of it where the process is killed.

    OutputError where a file cannot be created, written or uploaded, UsageError `no-access`; the names given never hold
    half of anything.
    """
    partial: list[Path] = []
    publication = Publication()
    try:
        for path in filter(is_remote, paths):
            check_place(path)
        for path in paths:
            file, found = _opened(path)
            publication.files.append(file)
            partial.append(found)
        yield publication
        if publication.wanted:
            _publish(publication.files, partial, paths)
    except OSError as error:
        raise unwritten(", ".join(map(str, paths)), error) from error
    finally:
        _discard(publication.files, partial)


def check_places(paths: Iterable[Path | None]) -> None:
    """Whether a file can be put at each place: named before the work, not after it.

    OutputError `no-such-directory`, `store-failed`; UsageError `no-access`.
    """
    for path in paths:
        if path is None:
            continue
        if is_remote(path):
            check_place(path)
        elif path.is_dir() or not path.parent.is_dir():
            hint = "name a file in a directory that exists"
            raise OutputError("is not a place for a file", code="no-such-directory", place=str(path), hint=hint)


def _opened(path: Path) -> tuple[BinaryIO, Path]:
    """A file to write, and what it can be read by."""
    if not is_remote(path):
        found = path.with_name(f".{path.name}.{os.getpid()}.partial")
        return found.open("wb"), found
    handle, name = tempfile.mkstemp(prefix="sftprep-upload-")
    if (_OPEN_FILES / str(handle)).exists():
        Path(name).unlink()
        return os.fdopen(handle, "wb"), _OPEN_FILES / str(handle)
    return os.fdopen(handle, "wb"), Path(name)


def _publish(files: list[BinaryIO], partial: list[Path], paths: list[Path]) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    for source, target in zip(partial, paths, strict=True):
        if is_remote(target):
            StoreFolder(target.parent).put(target.name, source)
    for source, target in zip(partial, paths, strict=True):
        if not is_remote(target):
            source.replace(target)


def _discard(files: list[BinaryIO], partial: list[Path]) -> None:
    for file in files:
        # Closing flushes, which fails again on a full disk; the file is removed all the same.
        _close(file)
    for path in partial:
        if path.parent != _OPEN_FILES:
            path.unlink(missing_ok=True)


def _close(file: BinaryIO) -> None:
    try:
        file.close()
    except OSError:
        return


def json_bytes(report: BaseModel) -> bytes:
    """A report as indented JSON; half of a character, of a key or of a file's name, is the escape that JSON has."""
    try:
        return report.model_dump_json(indent=2).encode("utf-8") + b"\n"
    except PydanticSerializationError:
        text = json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace") + b"\n"
