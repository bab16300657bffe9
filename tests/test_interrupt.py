"""Ctrl-C is heeded at any moment: an import that drops what is raised in it does not drop the interrupt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    sum(range(1000))
except BaseException:
    pass
"""
PROGRAM = """
import sys, time
from sftprep.cli.interrupt import keep_interrupts

if {kept}:
    keep_interrupts()
try:
    import swallows
    print("imported")
    for _ in range(200):
        time.sleep(0.01)
    print("lost")
except KeyboardInterrupt:
    print("heeded")
"""


def run(folder: Path, program: str) -> list[str]:
    (folder / "swallows.py").write_text(SWALLOWS, encoding="utf-8")
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("kept", [True, False])
def test_an_interrupt_inside_an_import_is_heeded_behind_it(tmp_path: Path, kept: bool) -> None:
    said = run(tmp_path, PROGRAM.format(kept=kept))
    assert said[-1] == ("heeded" if kept else "lost"), "the module does drop it where nothing keeps it"
    assert "lost" not in said or not kept


def test_a_process_that_ignores_interrupts_goes_on_ignoring_them(tmp_path: Path) -> None:
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    assert run(tmp_path, ignoring + PROGRAM.format(kept=True))[-1] == "lost"


ENDS = """
import atexit, os, signal, time
from sftprep.cli.interrupt import end_interrupted, keep_interrupts

def again():
    os.kill(os.getpid(), signal.SIGINT)
    # As one that came during an import does.
    os.kill(os.getpid(), signal.SIGALRM)
    sum(range(1000))

keep_interrupts()
atexit.register(again)
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(100)
except KeyboardInterrupt as interrupt:
    end_interrupted(interrupt)
"""


def test_one_more_interrupt_changes_neither_the_exit_code_nor_what_is_said() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted: nothing was published\n")
