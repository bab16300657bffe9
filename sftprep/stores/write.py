"""What is put under one URL of an object store: each object whole or not at all, tried again where a line is down."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from sftprep.errors import OutputError, SftprepError
from sftprep.stores.access import is_missing, is_refused, listed, no_access, said, tried

T = TypeVar("T")


def check_place(place: Path) -> None:
    """Whether one file can be put at a URL, as far as a store says so before it is written.

    OutputError `no-such-directory` where the URL names no file, `store-failed`; UsageError `no-access`.
    """
    if not place.name:
        hint = "name a file in it, as s3://bucket/report.json"
        raise OutputError("is not a place for a file", code="no-such-directory", place=str(place), hint=hint)
    StoreFolder(place.parent).has(place.name)


class StoreFolder:
    """Objects whose names begin with one URL; names here are what follows it.

    OutputError `store-failed` where the store does not answer, UsageError `no-access` where it lets nobody in.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        store: Any = place
        self._store = store.fs
        self._root = f"{store.path.rstrip('/')}/"

    def sizes(self) -> dict[str, int]:
        """Every object's name and bytes, as the store has them now."""
        # Some stores say that nothing is there of a prefix that nothing has; of a bucket, the first write will.
        return self._tried(partial(listed, self._store, self._root), missing={})

    def read(self, name: str) -> bytes | None:
        """An object's bytes; None where there is no such object."""

        def content() -> bytes | None:
            found: bytes = self._store.cat_file(self._root + name)
            return found

        return self._tried(content, missing=None)

    def has(self, name: str) -> bool:
        """Whether there is such an object."""

        def asked() -> bool:
            self._store.invalidate_cache(self._root)
            return bool(self._store.info(self._root + name))

        absent: bool = False
        return self._tried(asked, missing=absent)

    def put(self, name: str, source: Path) -> None:
        """Upload a file; the object has its name when all bytes of it are there."""
        self._tried(lambda: self._store.put_file(str(source), self._root + name))

    def write(self, name: str, content: bytes) -> None:
        """Put a few bytes there."""
        self._tried(lambda: self._store.pipe_file(self._root + name, content))

    def create(self, name: str, content: bytes) -> bytes:
        """Put an object there that nobody else has; the bytes that it has then, which are another's where it was first.

        S3 decides who is first (`If-None-Match`). Of a store that does not, the last of those who write at one moment
        wins, and the others see its bytes here.
        """

        def created() -> None:
            with suppress(FileExistsError):
                self._store.pipe_file(self._root + name, content, mode="create")

        self._tried(created)
        return self.read(name) or b""

    def remove(self, names: Iterable[str]) -> None:
        """Objects that are gone already are no fault."""
        for name in names:
            self._tried(partial(self._store.rm_file, self._root + name), missing=None)

    def _tried(self, ask: Callable[[], T], *, missing: T | Literal["error"] = "error") -> T:
        """What `ask` returns, or `missing` where there is no such object, unless that is an error."""
        try:
            return tried(ask)
        except SftprepError:
            raise
        except Exception as error:  # each store has exceptions of its own
            if is_missing(error) and missing != "error":
                return missing
            if is_refused(error):
                raise no_access(self.place, error) from error
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> OutputError:
        return OutputError(
            f"the store does not take it: {said(error)}",
            code="store-failed",
            place=str(self.place),
            hint="check the network, the endpoint and the credentials, and run the same command again",
        )
