"""The files that a command line means: patterns and saved datasets are written out, in an order that does not vary."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sftprep.errors import UsageError
from sftprep.sources.compressed import STDIN

_STATE: Final = "state.json"
_SPLITS: Final = "dataset_dict.json"


def expand(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Each path, or the files that a pattern (`data/**/*.jsonl`) or a saved `datasets` directory stands for.

    Raises:
        UsageError: `missing-file` where a pattern matches nothing, `several-splits` where a directory holds splits.
    """
    return tuple(found for path in paths for found in _files(path))


def _files(path: Path) -> Iterator[Path]:
    if path == STDIN or path.is_file():
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
