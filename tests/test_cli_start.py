"""The command line starts fast, explains itself, and its examples are real."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from sftprep.cli.app import SUMMARIES, app

HEAVY = ("torch", "transformers", "polars", "pyarrow", "datasets", "huggingface_hub")
PROGRAM = """
import json, sys
from sftprep.cli.app import main
sys.argv = {argv}
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("\\n" + json.dumps([name for name in {heavy} if name in sys.modules]))
"""
ROOT_COMMAND: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = ROOT_COMMAND.commands


def heavy_modules(*argv: str) -> list[str]:
    """Which heavy modules the command line has imported once it has answered."""
    program = PROGRAM.format(argv=["sftprep", *argv], heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("argv", [(), *((name,) for name in COMMANDS)], ids=lambda argv: " ".join(argv) or "sftprep")
def test_help_imports_nothing_heavy(argv: tuple[str, ...]) -> None:
    # pyarrow and huggingface_hub are not forbidden by the contract; they are merely what help has no use for.
    assert heavy_modules(*argv, "--help") == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_does_not_wait_for_the_others(name: str) -> None:
    program = PROGRAM.format(argv=["sftprep", name, "--help"], heavy="sys.modules")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = set(json.loads(done.stdout.splitlines()[-1]))
    assert {other for other in COMMANDS if f"sftprep.cli.{other}" in found} == {name}


def test_the_list_of_commands_waits_for_none_of_them_nor_for_their_options() -> None:
    program = PROGRAM.format(argv=["sftprep", "--help"], heavy="sys.modules")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *shown, found = done.stdout.splitlines()
    assert {"pydantic", *(f"sftprep.cli.{name}" for name in COMMANDS)}.isdisjoint(json.loads(found))
    lines = [line.strip("│ ").split(maxsplit=1) for line in shown]
    assert {name for name in COMMANDS if any(words[:1] == [name] for words in lines)} == set(COMMANDS)


def test_after_the_list_the_commands_are_whole_again(capsys: pytest.CaptureFixture[str]) -> None:
    context = ROOT_COMMAND.context_class(ROOT_COMMAND, info_name="sftprep")
    ROOT_COMMAND.format_help(context, context.make_formatter())
    assert SUMMARIES["split"].split(",")[0] in " ".join(capsys.readouterr().out.split())
    assert ROOT_COMMAND.commands is COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_a_command_what_its_own_help_begins_with(name: str) -> None:
    assert SUMMARIES[name] == (COMMANDS[name].help or "").partition("\n\n")[0].replace("\n", " ")


def test_the_probe_sees_what_is_imported() -> None:
    assert "pyarrow" in heavy_modules("schema", "manifest")


def test_a_command_seldom_looks_for_cycles_of_objects() -> None:
    program = (
        "import gc\nfrom sftprep.__main__ import main\ntry:\n    main()\nfinally:\n    print(gc.get_threshold()[0])"
    )
    done = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) >= 50_000


WATCHED = """
import gc, json, sys, traceback
gc.set_threshold(500)
gc.set_threshold = lambda *_: None
inside = set()
def watch(phase, _):
    frames = traceback.extract_stack()
    for own, called in zip(frames, frames[1:]):
        if own.name in ("_run", "_pack") and called.filename.startswith("<frozen importlib"):
            inside.add(own.name)
from sftprep.__main__ import main
gc.callbacks.append(watch)
sys.argv = {argv}
try:
    main()
except SystemExit as stop:
    print("\\n" + json.dumps([stop.code, sorted(inside), gc.get_freeze_count(), gc.isenabled()]))
"""


def test_a_pack_looks_for_no_cycles_in_what_its_imports_make(samples: Path, tmp_path: Path) -> None:
    argv = ["pack", samples / "good" / "openai.jsonl", "--model", samples / "model", "--out", tmp_path / "out"]
    program = WATCHED.format(argv=["sftprep", *map(str, argv), "--max-length", "512"])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    code, inside, frozen, is_enabled = json.loads(done.stdout.splitlines()[-1])
    assert (code, is_enabled, inside) == (0, True, [])
    assert frozen > 50_000


def parameters(command: Any) -> Iterator[Any]:
    return (parameter for parameter in command.params if parameter.name not in {"help"})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_says_what_it_does(name: str) -> None:
    silent = [parameter.name for parameter in parameters(COMMANDS[name]) if not getattr(parameter, "help", None)]
    assert silent == []


def examples(command: Any) -> list[list[str]]:
    """The words of every `Example: sftprep …` line of a command's help."""
    lines = [line.strip().removeprefix("Example:").strip() for line in (command.help or "").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("sftprep ")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_its_own_parser_takes(name: str) -> None:
    found = examples(COMMANDS[name])
    assert found, f"sftprep {name} --help has no line 'Example: sftprep {name} …'"
    for words in found:
        assert words[:2] == ["sftprep", name]
        context = COMMANDS[name].context_class(COMMANDS[name], info_name=name)
        COMMANDS[name].make_parser(context).parse_args(list(words[2:]))


@pytest.mark.parametrize("words", [["--no-such-option"], ["demo", "--stpes", "3"], ["no-such-command"]])
def test_a_wrong_call_exits_with_two(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "sftprep", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no such" in done.stderr.lower()
    assert "Traceback" not in done.stderr
