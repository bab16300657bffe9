"""Files of object stores: what names their bytes, and reading that goes on where a connection broke off."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from sftprep.errors import SftprepError, SourceError, UsageError
from sftprep.stores.access import is_refused, no_access

TRIES: Final = 5
"""How often a read is tried before it is an error; the store's own client tries some more each time."""

_FIRST_PAUSE_SECONDS: Final = 0.5
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


def identity(path: Path) -> tuple[str, int]:
    """What the store calls the bytes that the file has now (`ETag abc`), and their number.

    Raises:
        UsageError: `missing-file`, `is-directory`. SourceError: `read-failed`, `no-identity`.
    """
    store: Any = path
    with named_failures(path):
        store.fs.invalidate_cache(store.parent.path)
        info = store.fs.info(store.path)
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


def open_remote(path: Path) -> BinaryIO:
    """The file, to be read from any place; a connection that breaks off is made again at the byte that was reached.

    SourceError `source-changed` where the file has other bytes then, `read-failed` where the store gives none.
    """
    return io.BufferedReader(_Reader(path), buffer_size=1 << 20)


class _Reader(io.RawIOBase):
    """Reads ranges, each tried again for some time."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._identity, self._size = identity(path)
        self._at = 0
        self._file: Any = None

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
        for attempt in range(TRIES):
            try:
                return self._read_once(size)
            except SourceError:
                raise
            except Exception as error:  # each store has exceptions of its own for a line that is down
                self._let_go()
                if attempt == TRIES - 1 or is_refused(error):
                    raise _failed(self._path, error) from error
                time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
                self._refuse_changed()
        raise AssertionError("the last try returns or raises")

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


def _failed(path: Path, error: Exception) -> SftprepError:
    """The error that says that a store does not answer, or to whom it does not."""
    if is_refused(error):
        return no_access(path, error)
    return SourceError(
        f"the store does not answer: {str(error).partition(chr(10))[0]:.200}",
        code="read-failed",
        place=str(path),
        hint="check the network, the endpoint and the credentials, and run the same command again",
    )


@contextmanager
def named_failures(path: Path) -> Iterator[None]:
    """What a store raises gets a name and a place: UsageError `missing-file`, `no-access`, or SourceError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError("there is no such file", code="missing-file", place=str(path), hint="check the URL") from error
    except Exception as error:  # each store has exceptions of its own
        raise _failed(path, error) from error
