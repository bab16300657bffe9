"""Imports point one way, and the pinned environment covers what the package asks for."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=directory, capture_output=True, text=True, check=False
    )


def copy_of_the_package(directory: Path) -> Path:
    """Every module, its imports kept, as a package of its own in a new place."""
    for path in (ROOT / "sftprep").rglob("*.py"):
        target = directory / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (directory / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    return directory


def test_the_package_keeps_its_import_contract(tmp_path: Path) -> None:
    done = lint_imports(copy_of_the_package(tmp_path))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("data.py", "import sftprep.cli.app\n"),
        ("stages/planted.py", "import sftprep.stages.pack\n"),
        ("stages/planted.py", "import torch\n"),
        ("prepare/planted.py", "import sftprep.train\n"),
        ("placeless.py", "x = 1\n"),
    ],
    ids=["a noun that imports a command", "stage to stage", "torch in a stage", "prepare to train", "without a place"],
)
def test_the_contract_refuses_a_planted_import(tmp_path: Path, module: str, source: str) -> None:
    package = copy_of_the_package(tmp_path) / "sftprep"
    with (package / module).open("a", encoding="utf-8") as file:
        file.write(source)
    assert lint_imports(tmp_path).returncode == 1


def canonical(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_the_lock_pins_every_dependency_of_the_image() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin)] == []
    wanted = {canonical(name) for name in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["train"]}
    assert wanted <= {canonical(pin) for pin in pins}
