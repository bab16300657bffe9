"""Files of object stores: what names their bytes, and reading that goes on where a connection broke off."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from sftprep.errors import SftprepError, SourceError, UsageError
from sftprep.stores.access import is_missing, is_refused, no_access, said, tried

_BLOCK_BYTES: Final = 1 << 23
_NAMES_OF_BYTES: Final = (
    "VersionId",
    "version_id",
    "ETag",
    "etag",
    "blob_id",
    "md5Hash",
    "content_md5",
    "created",
    "mtime",
)
"""What stores call the thing that changes with a file's bytes, the surest first."""


Identity = tuple[str, int]
"""What a store calls a file's bytes, and their number."""


def identity(path: Path) -> Identity:
    """What the store calls the bytes that the file has now (`ETag abc`), and their number.

    Raises:
        UsageError: `missing-file`, `is-directory`. SourceError: `read-failed`, `no-identity`.
    """
    store: Any = path

    def asked() -> dict[str, Any]:
        store.fs.invalidate_cache(store.parent.path)
        info: dict[str, Any] = store.fs.info(store.path)
        return info

    with named_failures(path):
        info = tried(asked)
    if info.get("type") == "directory":
        raise UsageError(
            "is a directory, not a file",
            code="is-directory",
            place=str(path),
            hint="name the files in it, or a pattern",
        )
    name = next((name for name in _NAMES_OF_BYTES if info.get(name)), None)
    if name is None or info.get("size") is None:
        hint = "copy the file to a disk, or to a store that has ETags or versions"
        what = "the store does not say which bytes the file has"
        raise SourceError(what, code="no-identity", place=str(path), hint=hint)
    return f"{name} {info[name]}", int(info["size"])


def open_remote(path: Path, *, known: Identity | None = None) -> BinaryIO:
    """The file, to be read from any place; a connection that breaks off is made again at the byte that was reached.

    `known` is the `identity` of the bytes that are meant, where those may have gone since.
    SourceError `source-changed` where the file has other bytes then, `read-failed` where the store gives none.
    """
    return io.BufferedReader(_Reader(path, known), buffer_size=1 << 20)


def read_whole(path: Path) -> bytes:
    """The bytes of a small file. UsageError `missing-file`, `no-access`; SourceError."""
    with open_remote(path) as file:
        return file.read()


def copy_below(place: Path, folder: Path) -> None:
    """Copy the file, or all files whose URLs begin with this one, into a new folder, by what follows in their names.

    UsageError `missing-file`, `no-access`; SourceError. OSError where the folder cannot be written.
    """
    store: Any = place
    with named_failures(place):
        store.fs.invalidate_cache()
        found: list[str] = tried(lambda: store.fs.find(store.path))
    if not found:
        raise UsageError("there is nothing there", code="missing-file", place=str(place), hint="check the URL")
    root = store.path.rstrip("/")
    for path in found:
        name = path.removeprefix(root).lstrip("/")
        target = folder / (name or place.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_remote(place / name if name else place) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, _BLOCK_BYTES)


class _Reader(io.RawIOBase):
    """Reads ranges, each tried again for some time."""

    def __init__(self, path: Path, known: Identity | None) -> None:
        super().__init__()
        self._path = path
        self._identity, self._size = known or identity(path)
        self._at = 0
        self._file: Any = None
        if known is not None:
            self._refuse_changed()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size:
            self._refuse_changed()
            return 0
        data = self._read(min(len(buffer), self._size - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._let_go()
        super().close()

    def _read(self, size: int) -> bytes:
        def once() -> bytes:
            try:
                return self._read_once(size)
            except BaseException:
                self._let_go()
                raise

        with named_failures(self._path):
            return tried(once, between=self._refuse_changed)

    def _read_once(self, size: int) -> bytes:
        if self._file is None:
            place: Any = self._path
            self._file = place.fs.open(place.path, "rb", block_size=_BLOCK_BYTES, cache_type="readahead")
        self._file.seek(self._at)
        data: bytes = self._file.read(size)
        if not data:
            raise EOFError(f"no byte came at {self._at} of {self._size}")
        return data

    def _refuse_changed(self) -> None:
        if identity(self._path) != (self._identity, self._size):
            raise SourceError(
                "the file changed while it was read",
                code="source-changed",
                place=str(self._path),
                hint="run again when nothing writes to it",
            )

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@contextmanager
def named_failures(path: Path) -> Iterator[None]:
    """What a store raises gets a name and a place: UsageError `missing-file`, `no-access`, or SourceError."""
    try:
        yield
    except SftprepError:
        raise
    except Exception as error:  # each store has exceptions of its own
        if is_missing(error):
            what = "there is no such file"
            raise UsageError(what, code="missing-file", place=str(path), hint="check the URL") from error
        if is_refused(error):
            raise no_access(path, error) from error
        raise SourceError(
            f"the store does not answer: {said(error)}",
            code="read-failed",
            place=str(path),
            hint="check the network, the endpoint and the credentials, and run the same command again",
        ) from error
