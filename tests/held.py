"""The command, held at a place in its course: a test that stops it there depends on no clock and on no machine.

A process that is to be killed while it has work in hand, or told Ctrl-C, is faster or slower than whoever waits for it.
So it is run with a pause in it, which it tells of and which ends where the test says so, or with the process.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PATIENCE = 200
"""Seconds in which a process must have come to where it is to be held."""

PROGRAM = """
import importlib.abc, runpy, sys, time
from pathlib import Path

at, number, told = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
del sys.argv[1:4]

def hold():
    told.touch()
    while not told.with_suffix(".go").exists():
        time.sleep(0.01)

def held_after(owner, name):
    call, calls = getattr(owner, name), 0

    def counted(*arguments, **options):
        nonlocal calls
        result = call(*arguments, **options)
        calls += 1
        if calls == number:
            hold()
        return result

    setattr(owner, name, counted)

class Importing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "sftprep.prepare.pack" and not told.exists():
            hold()

if at == "import":
    sys.meta_path.insert(0, Importing())
elif at == "chunk":
    from sftprep.prepare.spool import Spool
    held_after(Spool, "_add")
else:
    from sftprep.shards.write import ShardWriter
    held_after(ShardWriter, "add")
runpy.run_module("sftprep", run_name="__main__", alter_sys=True)
"""


class Pause:
    """Where a command is held: in the `import` of what packs, behind a kept `chunk`, or behind a `shard`."""

    def __init__(self, told: Path, *, at: str, number: int = 1) -> None:
        self.at, self.number, self._told = at, number, told
        for path in (told, told.with_suffix(".go")):
            path.unlink(missing_ok=True)

    def command(self, words: Sequence[str]) -> list[str]:
        """`python -m sftprep …` with the pause in it."""
        assert words[:3] == [sys.executable, "-m", "sftprep"]
        return [sys.executable, "-c", PROGRAM, self.at, str(self.number), str(self._told), *words[3:]]

    def reached(self, process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> bool:
        """Wait until the process is held there; False where it came to its end without it."""
        deadline = time.monotonic() + PATIENCE
        while not self._told.exists():
            if process.poll() is not None:
                return self._told.exists()
            assert time.monotonic() < deadline, f"not held at the {self.at} in {PATIENCE} seconds"
            time.sleep(0.005)
        return True

    def end(self) -> None:
        """Let it go on."""
        self._told.with_suffix(".go").touch()
