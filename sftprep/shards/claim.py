"""Who may write a shard set: one process at a time, and what a killed one left beside the set is put right first.

Hidden names beside an output belong to it: `.NAME.lock`, `.NAME.spool-…` (what a pack keeps until it is done),
`.NAME.partial-…` (a set that is not published) and `.NAME.partial-….old` (a set that is about to be replaced).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from sftprep.errors import OutputError
from sftprep.shards.place import named_failures
from sftprep.shards.schema import MANIFEST_NAME

_DIGITS = r"[0-9a-f]{12}"


class OutputClaim:
    """The sole right to write at `out`, held until the end of the `with` block or of the process.

        with OutputClaim(out) as claim:
            claim.clear(keep=spool)

    OutputError `output-busy` where another process has it, `output-not-lockable` where the file system has no locks.
    """

    def __init__(self, out: Path, *, named: Path | None = None) -> None:
        self._out = out
        self._named = named or out
        """What the caller calls the place."""
        self._place = out.resolve()  # a link is followed: two names of one place are one claim
        self._lock = self._place.with_name(f".{self._place.name}.lock")

    def __enter__(self) -> Self:
        with named_failures(self._out):
            self._place.parent.mkdir(parents=True, exist_ok=True)
            self._handle = self._locked()
            self._put_back()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Removed while it is held: who opened it meanwhile sees that its file has no name any more.
        self._lock.unlink(missing_ok=True)
        os.close(self._handle)

    def clear(self, *, keep: Path) -> None:
        """Remove what killed runs left beside the output, but for the spool `keep`."""
        for path in self._left(rf"(spool|partial)-{_DIGITS}(\.old)?"):
            if path != keep:
                shutil.rmtree(path, ignore_errors=True)

    def _locked(self) -> int:
        while True:
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._lock_at_once(handle)
                if self._is_current(handle):
                    return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    def _lock_at_once(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                "another process is writing there",
                code="output-busy",
                place=str(self._named),
                hint="wait for it, or name another directory",
            ) from error
        except OSError as error:
            raise OutputError(
                f"the file system lets no process lock a file: {error.strerror}",
                code="output-not-lockable",
                place=str(self._out),
                hint="write to a local disk and copy it",
            ) from error

    def _is_current(self, handle: int) -> bool:
        """Whether the locked file still has the name: the process that held it before may have removed it."""
        try:
            named = os.stat(self._lock)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(handle))

    def _put_back(self) -> None:
        """Give a set its name again that was set aside when the process that replaced it was killed.

        One without its manifest was on its way out already.
        """
        if self._place.exists():
            return
        for path in self._left(rf"partial-{_DIGITS}\.old"):
            if (path / MANIFEST_NAME).is_file():
                path.rename(self._place)
                return

    def _left(self, pattern: str) -> list[Path]:
        wanted = re.compile(rf"\.{re.escape(self._place.name)}\.{pattern}")
        return sorted(path for path in self._place.parent.iterdir() if wanted.fullmatch(path.name))
