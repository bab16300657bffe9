"""README and code say the same: commands, options, error codes, modules."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import typer.main

from sftprep.cli.app import app
from sftprep.records.codes import CODES
from sftprep.reports.mask_json import FINDING_TEXTS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "sftprep"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def command_lines() -> list[list[str]]:
    lines = [line.strip().removeprefix("$ ") for text in blocks("sh") + blocks("console") for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("sftprep ")]


def test_every_command_line_names_a_command_and_options_that_exist() -> None:
    commands = typer.main.get_command(app).commands
    lines = command_lines()
    assert {words[1] for words in lines} >= {"validate", "pack", "audit", "train"}
    for words in lines:
        known = {
            option for parameter in commands[words[1]].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        used = {word.split("=")[0] for word in words[2:] if word.startswith("-")}
        assert used <= known, f"{' '.join(words)}: {used - known}"


def test_the_two_commands_are_there_each_on_one_line() -> None:
    demo, tests = (next(b for b in blocks("sh") if word in b) for word in ("sftprep demo", "pytest"))
    assert len(demo.strip().splitlines()) == len(tests.strip().splitlines()) == 1
    assert "-e '.[dev]'" in tests


def codes_in_code() -> set[str]:
    """Every code that an error or a finding can carry."""
    literal = re.compile(r"code=\"([a-z0-9-]+)\"")
    named = re.compile(r"^[A-Z_]+(?:: Final)? = \"([a-z]+-[a-z-]+)\"$", re.MULTILINE)
    found = set(CODES)
    for path in PACKAGE.rglob("*.py"):
        found |= set(literal.findall(path.read_text(encoding="utf-8")))
    for module in ("templates/exact.py", "prepare/chunk.py"):
        found |= set(named.findall((PACKAGE / module).read_text(encoding="utf-8")))
    return found | set(FINDING_TEXTS)


def test_every_error_code_of_the_package_is_in_the_table_and_no_other() -> None:
    section = README.partition("## Errors")[2].partition("\n## ")[0]
    table = set(re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)+)`", section))
    code = {c for c in codes_in_code() if "-" in c}
    assert sorted(code - table) == [], "codes that README does not list"
    assert sorted(table - code) == [], "codes that no longer exist"


def test_every_finding_of_a_row_has_its_severity_and_a_line_of_meaning() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (error|warning) \| (.{8,}) \|$", README, re.MULTILINE)
    assert [(code, severity) for code, severity, _ in rows] == [(c, entry.severity.value) for c, entry in CODES.items()]


def test_the_tree_names_every_directory_of_the_package() -> None:
    tree = README.partition("## The tree")[2].partition("\n## ")[0]
    for path in PACKAGE.iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert f"{path.name}/" in tree
        elif path.suffix == ".py" and path.stem not in {"__init__", "__main__"}:
            assert path.name in tree
