"""The files that a command line means: patterns and saved datasets are written out, in an order that does not vary."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from sftprep.config.places import is_remote, place_of
from sftprep.errors import SftprepError, UsageError
from sftprep.sources.compressed import STDIN
from sftprep.stores.read import identity, named_failures

_STATE: Final = "state.json"
_SPLITS: Final = "dataset_dict.json"


def expand(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Each path, or the files that a pattern (`data/**/*.jsonl`) or a saved `datasets` directory stands for.

    Raises:
        UsageError: `missing-file` where a pattern matches nothing, `several-splits` where a directory holds splits.
    """
    return tuple(found for path in paths for found in _files(path))


def total_bytes(paths: Sequence[Path]) -> int | None:
    """Bytes of all files that the paths stand for; None where standard input is one, or a file cannot be asked."""
    try:
        files = expand(paths)
        if STDIN in files:
            return None
        return sum(identity(file)[1] if is_remote(file) else file.stat().st_size for file in files)
    except (OSError, SftprepError):
        return None


def _files(path: Path) -> Iterator[Path]:
    if is_remote(path):
        yield from _remote_files(path)
    elif path == STDIN or path.is_file():
        yield path
    elif path.is_dir():
        yield from _saved(path)
    elif glob.has_magic(str(path)):
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            hint = "check the pattern; ** stands for directories in directories"
            raise UsageError("no file matches", code="missing-file", place=str(path), hint=hint)
        yield from (Path(match) for match in matches if not Path(match).is_dir())
    else:
        yield path


def _remote_files(path: Path) -> Iterator[Path]:
    if not glob.has_magic(str(path)):
        yield path
        return
    place: Any = path
    with named_failures(path):
        matches = sorted(place.fs.glob(place.path, detail=False))
    if not matches:
        hint = "check the pattern; ** stands for directories in directories"
        raise UsageError("no file matches", code="missing-file", place=str(path), hint=hint)
    yield from (place_of(f"{place.protocol}://{match.lstrip('/')}") for match in matches)


def _saved(path: Path) -> Iterator[Path]:
    """The Arrow files of a directory that `datasets` saved; another directory is left for its reader to refuse."""
    if (path / _SPLITS).is_file():
        splits = ", ".join(sorted(str(entry) for entry in path.iterdir() if (entry / _STATE).is_file()))
        hint = f"name the split that is meant: {splits}"
        raise UsageError("the directory holds several splits", code="several-splits", place=str(path), hint=hint)
    state = path / _STATE
    if not state.is_file():
        yield path
        return
    try:
        entries = json.loads(state.read_bytes())["_data_files"]
        yield from [path / str(entry["filename"]) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        what = f"{_STATE} does not name the files of a saved dataset"
        raise UsageError(what, code="bad-dataset", place=str(path), hint="save the dataset again") from error
