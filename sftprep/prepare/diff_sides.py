"""The sides of a comparison, read once and kept in mapped files: memory does not grow with their tokens."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sftprep.config.places import CACHE_DIR, CACHE_GB, is_remote
from sftprep.errors import OutputError, SftprepError, ShardError
from sftprep.prepare.audit_tally import audit_facts
from sftprep.shards.cache import open_set, require_something
from sftprep.shards.read import ShardSet
from sftprep.shards.schema import MANIFEST_NAME
from sftprep.sources.prepared import PreparedRows, read_prepared
from sftprep.stages.align import TokenDocuments
from sftprep.stages.mask_audit import readable_rows
from sftprep.stores.read import copy_below

Kinds = npt.NDArray[np.int8]
Numbers = npt.NDArray[np.int64]

_COLUMNS: Final = (
    "input_ids",
    "assistant_masks",
    "seq_lengths",
    "span_starts",
    "span_kinds",
    "doc_files",
    "doc_lines",
)
_TOKEN_TYPES: Final = {"ids": np.dtype(np.int32), "trained": np.dtype(np.bool_), "kinds": np.dtype(np.int8)}


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two sets: `kinds` int8 `[tokens]` where it is a shard set; of documents: row, file and line."""

    path: Path
    directory: Path
    """Where the files of it that are small lie on this machine."""
    docs: TokenDocuments
    rows: Numbers
    kinds: Kinds | None = None
    files: npt.NDArray[np.int32] | None = None
    lines: Numbers | None = None
    names: Sequence[str] = ()

    def place(self, number: int) -> str:
        """Where a document is."""
        row = int(self.rows[number])
        document = number - int(np.searchsorted(self.rows, row))
        place = f"row {row}, document {document}"
        if self.files is None or self.lines is None:
            return place
        return f"{place} ({self.names[self.files[number]]}:{self.lines[number]})"

    def kinds_of(self, number: int) -> Kinds | None:
        """The reasons of a document's tokens."""
        return None if self.kinds is None else self.kinds[self.docs.offsets[number] : self.docs.offsets[number + 1]]


@dataclass(frozen=True, slots=True)
class Copies:
    """Where shards of a URL are copied, and how much of the disk they may take."""

    directory: Path = CACHE_DIR
    gigabytes: float = CACHE_GB


def read_side(path: Path, folder: Path, copies: Copies) -> Side:
    """A shard set or a prepared dataset, its tokens in files in an existing folder (six bytes a token).

    Raises:
        UsageError, SourceError: as `read_prepared`, where it is no shard set.
        ShardError: as `open_set`.
    """
    shards = _shards(path, copies)
    if shards is not None:
        origin = _Origin(path, shards.directory, [source.path for source in shards.manifest.sources])
        return _collected(origin, folder, _shard_parts(shards))
    if not is_remote(path):
        return _collected(_Origin(path, path), folder, map(_prepared_part, read_prepared(path)))
    copy = folder / "copy"
    copy_below(path, copy)
    try:
        return _collected(_Origin(path, copy), folder, map(_prepared_part, read_prepared(copy)))
    except SftprepError as error:  # it names the copy, which is gone when that is read
        error.place = error.place.replace(str(copy), str(path))
        raise


@dataclass(frozen=True, slots=True)
class _Origin:
    path: Path
    directory: Path
    names: Sequence[str] | None = None
    """Of the sources, where it is a shard set."""


def _shards(path: Path, copies: Copies) -> ShardSet | None:
    """None where there is no manifest."""
    if not is_remote(path):
        require_something(path)
        if not (path / MANIFEST_NAME).is_file():
            return None
    try:
        return open_set(path, cache_dir=copies.directory, cache_gb=copies.gigabytes)
    except ShardError as error:
        if error.code == "no-manifest":
            return None
        raise


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards. OutputError where it, or a file in it, cannot be written."""
    folder = ""
    try:
        with tempfile.TemporaryDirectory(prefix="sftprep-diff-") as folder:
            yield Path(folder)
    except OSError as error:
        if folder and error.filename is not None and not Path(error.filename).is_relative_to(folder):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise OutputError(
            f"cannot keep the tokens to compare in the temporary directory: {error.strerror or error}",
            code="disk-full" if full else "output-not-writable",
            hint="set TMPDIR to a directory with room for six bytes a token of both sets",
        ) from error


Part = dict[str, npt.NDArray[Any]]
"""Columns of some rows: of tokens those of `_TOKEN_TYPES`, of documents `lengths`, `rows`, `files` and `lines`."""


def _prepared_part(rows: PreparedRows) -> Part:
    return {"ids": rows.ids, "trained": rows.trained, "lengths": rows.doc_lengths, "rows": rows.doc_rows}


def _shard_parts(shards: ShardSet) -> Iterator[Part]:
    facts = audit_facts(shards)
    first = 0
    for batch in shards.iter_batches():
        own, numbers, _ = readable_rows(batch, facts)
        flat = {name: own[name].flatten().to_numpy() for name in _COLUMNS}
        sizes, spans, docs = (
            np.diff(own[name].offsets.to_numpy()).astype(np.int64)
            for name in ("input_ids", "span_starts", "seq_lengths")
        )
        starts = flat["span_starts"] + np.repeat(np.cumsum(sizes) - sizes, spans)
        yield {
            "ids": flat["input_ids"],
            "trained": flat["assistant_masks"] != 0,
            "kinds": np.repeat(flat["span_kinds"], np.diff(starts, append=sizes.sum())),
            "lengths": flat["seq_lengths"].astype(np.int64),
            "rows": first + np.repeat(numbers, docs),
            "files": flat["doc_files"].astype(np.int32),
            "lines": flat["doc_lines"].astype(np.int64),
        }
        first += batch.num_rows


def _collected(origin: _Origin, folder: Path, parts: Iterator[Part]) -> Side:
    documents: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in ("lengths", "rows", "files", "lines")}
    for part in parts:
        for name, values in part.items():
            if name in documents:
                documents[name].append(values)
            else:
                _append(folder / name, values)
    lengths = _joined(documents["lengths"])
    docs = TokenDocuments(
        ids=_mapped(folder / "ids"),
        trained=_mapped(folder / "trained"),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
    )
    side = Side(origin.path, origin.directory, docs, _joined(documents["rows"]))
    if origin.names is None:
        return side
    files = _joined(documents["files"]).astype(np.int32)
    kinds = _mapped(folder / "kinds")
    return replace(side, kinds=kinds, files=files, lines=_joined(documents["lines"]), names=origin.names)


def _append(file: Path, values: npt.NDArray[Any]) -> None:
    kind = _TOKEN_TYPES[file.name]
    with file.open("ab") as target:
        target.write(np.ascontiguousarray(values, dtype=kind).data)


def _mapped(file: Path) -> npt.NDArray[Any]:
    kind = _TOKEN_TYPES[file.name]
    # A file of no bytes cannot be mapped.
    if not file.is_file() or not file.stat().st_size:
        return np.zeros(0, kind)
    return np.memmap(file, dtype=kind, mode="r")


def _joined(parts: Sequence[npt.NDArray[Any]]) -> Numbers:
    joined: Numbers = np.concatenate([np.zeros(0, np.int64), *parts])
    return joined
