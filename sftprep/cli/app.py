"""The `sftprep` command: its subcommands, and the one place where an error becomes an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from sftprep import __version__
from sftprep.cli.interrupt import end_interrupted
from sftprep.engines.panics import named_panics
from sftprep.errors import SftprepError, UsageError

SUMMARIES: Final = {
    "validate": "Check chat data row by row: every fault, at its file, line and JSON pointer, with what to do "
    "about it.",
    "split": "Hold rows out for evaluation, whole clusters of near duplicates at a time, and prove that none is "
    "in both.",
    "pack": "Pack chats into training rows for one model: its own tokenizer and template, exact masks, "
    "no conversation cut.",
    "audit": "Show which tokens of a shard set are trained and why, and check every row. "
    "Exit code 1 when a check fails.",
    "train": "Train a model on a shard set: the loss counts its trained tokens and nothing else.",
    "evaluate": "Judge a model on suites and held-out rows, compare it with a baseline, and fail where a gate does "
    "not hold.",
    "demo": "Validate, pack, audit and train on the samples that come with sftprep, then ask the trained model. "
    "Offline.",
    "schema": "Print the JSON Schema of a row, a report, the manifest or a configuration.",
}
"""The commands, in the order of use, and what each one's help begins with: to list them none is imported."""

_REFUSALS: Final = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
"""What a system says of a path that it does not look at."""


class _OnDemand(Mapping[str, Any]):
    """The commands by name, of the module and the function of that name: one is imported when it is asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in SUMMARIES:
            raise KeyError(name)
        if name not in self._made:
            alone = typer.Typer(add_completion=False)
            alone.command(name)(getattr(import_module(f"sftprep.cli.{name}"), name))
            self._made[name] = typer.main.get_command(alone)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARIES)

    def __len__(self) -> int:
        return len(SUMMARIES)


class _Commands(TyperGroup):
    """Commands that need not be there to be named; and an interrupted one that ends with a word, unlike Typer's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = _OnDemand()

    def list_commands(self, _: Any) -> list[str]:
        """The commands' names, in their order."""
        return list(self.commands)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, with the commands as `SUMMARIES` has them."""
        commands, self.commands = self.commands, {name: TyperCommand(name, help=SUMMARIES[name]) for name in SUMMARIES}
        try:
            super().format_help(ctx, formatter)
        finally:
            self.commands = commands

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            end_interrupted(interrupt)


app = typer.Typer(
    name="sftprep",
    cls=_Commands,
    help="The compiler for supervised fine-tuning data of chat models.",
    epilog="Begin with: sftprep demo. Of your own chats: sftprep validate chats.jsonl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sftprep {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    """The compiler for supervised fine-tuning data of chat models."""


@contextmanager
def _named_refusals() -> Iterator[None]:
    """UsageError `unreadable-file` where the system refuses a path, such as one in a directory that may not be entered.

    Even to ask whether a file is there is refused then, wherever a command asks that.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS or error.filename is None:
            raise
        hint = "check the path, its permissions and those of the directories above"
        place = os.fsdecode(error.filename)
        raise UsageError(
            f"cannot be opened: {error.strerror}", code="unreadable-file", place=place, hint=hint
        ) from error


def main() -> None:
    """Run the command line; a SftprepError is printed to stderr and becomes its exit code."""
    try:
        # Transformers, and engines beside the reference, encode without telling breakdowns apart.
        with named_panics(), _named_refusals():
            app()
    except SftprepError as error:
        typer.echo("\n  ".join([f"error: {error}", *getattr(error, "__notes__", ())]), err=True)
        sys.exit(error.exit_code)
