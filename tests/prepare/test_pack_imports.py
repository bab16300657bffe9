"""What `sftprep pack` does not wait for: modules that it has no use for are not imported, in any of its processes.

In the place of each such module stands a trap that notes its name, so that it does not matter what is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAP = """import os
with open(os.environ["TRAPPED"], "a") as file:
    file.write(__name__ + chr(10))
raise ImportError
"""
OF_OTHER_COMMANDS = (
    "sftprep.cli.audit",
    "sftprep.config.evaluate",
    "sftprep.prepare.audit",
    "sftprep.prepare.prove",
    "sftprep.prepare.validate",
    "sftprep.reports.findings",
    "sftprep.reports.mask_html",
)
NEEDLESS = ("pandas", "torch", "transformers", "datasets", "polars", "ray", "fsspec", "huggingface_hub")


def trapped(folder: Path, *words: str) -> set[str]:
    """Which of the needless modules a Python that is given these words, or a child of it, tries to import."""
    traps, note = folder / "traps", folder / "trapped"
    traps.mkdir()
    note.touch()
    for name in NEEDLESS:
        (traps / f"{name}.py").write_text(TRAP, encoding="utf-8")
    paths = os.pathsep.join([str(traps), str(Path(__file__).resolve().parents[2])])
    environment = {**os.environ, "PYTHONPATH": paths, "TRAPPED": str(note)}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(note.read_text(encoding="utf-8").split())


def test_the_trap_sees_what_pyarrow_imports_unasked(tmp_path: Path) -> None:
    assert trapped(tmp_path, "-c", "import pyarrow; pyarrow.array([1])") == {"pandas"}


@pytest.mark.parametrize("workers", [1, 2])
def test_packing_for_a_local_model_imports_nothing_needless(tmp_path: Path, samples: Path, workers: int) -> None:
    rows = [str(path) for path in sorted((samples / "good").glob("*.jsonl"))]
    words = ["-m", "sftprep", "pack", *rows, "--model", str(samples / "model"), "--out", str(tmp_path / "set")]
    assert trapped(tmp_path, *words, "--max-length", "512", "--max-drop", "100%", "--workers", str(workers)) == set()
    assert (tmp_path / "set" / "manifest.json").exists()


def test_packing_imports_nothing_of_what_other_commands_do(tmp_path: Path, samples: Path) -> None:
    rows, out = str(samples / "good" / "openai.jsonl"), tmp_path / "set"
    words = ["pack", rows, "--model", str(samples / "model"), "--out", str(out), "--max-length", "512"]
    program = (
        "import sys\nfrom sftprep.cli.app import app\ntry:\n    app(sys.argv[1:])\nfinally:\n    print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    found = set(done.stdout.splitlines()[-1].split())
    assert (out / "manifest.json").exists()
    assert "sftprep.prepare.pack" in found
    assert found & set(OF_OTHER_COMMANDS) == set()
    assert set(OF_OTHER_COMMANDS) <= {f"sftprep.{name}" for name in _modules()}, "a module was renamed"


def _modules() -> list[str]:
    package = Path(__file__).resolve().parents[2] / "sftprep"
    return [".".join(path.relative_to(package).with_suffix("").parts) for path in package.rglob("*.py")]
