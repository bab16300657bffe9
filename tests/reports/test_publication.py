"""A file is whole or not there, and what was on its way leaves nothing behind, wherever it was to go."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from sftprep.config.places import place_of
from sftprep.reports.publication import publishing

KILLED = """
import os, signal
from sftprep.config.places import place_of
from sftprep.reports.publication import publishing

with publishing([place_of("memory://bucket/good.jsonl")]) as publication:
    publication.files[0].write(b"a row" * 1_000_000)
    publication.files[0].flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux uploads files that have no name")
def test_what_was_to_be_uploaded_leaves_nothing_where_the_process_is_killed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], env={"TMPDIR": str(tmp_path)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_what_is_uploaded_is_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    url, here = place_of("memory://bucket/whole.jsonl"), tmp_path / "whole.jsonl"
    content = b"a row\n" * 1_000_000
    with publishing([url, here]) as publication:
        for file in publication.files:
            file.write(content)
        assert not here.exists()
        assert not url.exists()
    assert url.read_bytes() == here.read_bytes() == content
    assert list(tmp_path.iterdir()) == [here]


def test_nothing_is_uploaded_or_left_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    url = place_of("memory://bucket/half.jsonl")
    with suppress(ValueError), publishing([url]) as publication:
        publication.files[0].write(b"half")
        raise ValueError
    assert not url.exists()
    assert list(tmp_path.iterdir()) == []
