"""The place where a shard set is put: whether it may be used, and how a finished directory gets there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from sftprep.config.places import unwritten
from sftprep.errors import OutputError
from sftprep.shards.manifest import Manifest
from sftprep.shards.schema import MANIFEST_NAME


def holds_something(out: Path) -> bool:
    """Whether something is in the directory `out`. OutputError `output-not-a-directory`, `output-not-writable`."""
    with named_failures(out):
        try:
            out.stat()  # `exists` would be silent about links that lead to each other
        except FileNotFoundError:
            return False
        if not out.is_dir():
            raise OutputError(
                "the output is a file", code="output-not-a-directory", place=str(out), hint="name a directory"
            )
        return any(out.iterdir())


def check_output(out: Path, *, fingerprint: str, overwrite: bool) -> None:
    """OutputError unless `out` is missing, empty, or a shard set that may be replaced."""
    if not holds_something(out):
        return
    with named_failures(out):
        found = _fingerprint_in(out)
    if found is None:
        raise OutputError(
            "the directory is not empty and is not a shard set",
            code="output-not-empty",
            place=str(out),
            hint="name an empty or new directory; only a shard set is ever replaced",
        )
    if found != fingerprint and not overwrite:
        raise OutputError(
            "the directory holds another shard set",
            code="output-other-shards",
            place=str(out),
            hint="name another directory, or replace the set with --overwrite",
        )


def _fingerprint_in(out: Path) -> str | None:
    """The fingerprint of the shard set there, '' where its manifest is damaged, None where there is none."""
    path = out / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes()).fingerprint
    except ValidationError:
        return ""


def replace_directory(staged: Path, *, target: Path) -> None:
    """Rename `staged` to `target`; a set that was there is set aside first and put back if that fails."""
    if not target.exists() or not any(target.iterdir()):
        staged.replace(target)
        return
    aside = staged.with_name(f"{staged.name}.old")
    target.replace(aside)
    try:
        staged.replace(target)
    except BaseException:  # an interrupt too: the old set must not stay aside
        aside.replace(target)
        raise
    # First of all: a set that is half removed when the process is killed must not be taken for a whole one.
    (aside / MANIFEST_NAME).unlink(missing_ok=True)
    shutil.rmtree(aside)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def named_failures(out: Path) -> Iterator[None]:
    """An OSError while writing becomes an OutputError that says what to do: `disk-full`, `output-not-writable`."""
    try:
        yield
    except OSError as error:
        raise unwritten(out, error) from error
