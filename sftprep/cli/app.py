"""The `sftprep` command: its subcommands, and the one place where an error becomes an exit code."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from sftprep import __version__
from sftprep.cli.audit import audit
from sftprep.cli.demo import demo
from sftprep.cli.evaluate import evaluate
from sftprep.cli.interrupt import end_interrupted
from sftprep.cli.pack import pack
from sftprep.cli.schema import schema
from sftprep.cli.split import split
from sftprep.cli.train import train
from sftprep.cli.validate import validate
from sftprep.errors import SftprepError


class _Commands(TyperGroup):
    """Typer would end an interrupted command without a word."""

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


app.command("audit")(audit)
app.command("demo")(demo)
app.command("evaluate")(evaluate)
app.command("pack")(pack)
app.command("schema")(schema)
app.command("split")(split)
app.command("validate")(validate)
app.command("train")(train)


def main() -> None:
    """Run the command line; a SftprepError is printed to stderr and becomes its exit code."""
    try:
        app()
    except SftprepError as error:
        typer.echo("\n  ".join([f"error: {error}", *getattr(error, "__notes__", ())]), err=True)
        sys.exit(error.exit_code)
