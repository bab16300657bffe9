"""`sftprep validate`: is this data fit to train on, and if not, where and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sftprep.config.validate import ValidateConfig

if TYPE_CHECKING:
    from sftprep.reports.findings import ValidationReport

_HELP = {name: field.description for name, field in ValidateConfig.model_fields.items()}


def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help=_HELP["files"])],
    *,
    format: Annotated[str | None, typer.Option("--format", help=_HELP["format"])] = None,
    max_errors: Annotated[int, typer.Option("--max-errors", min=0, help=_HELP["max_errors"])] = 100,
    json_file: Annotated[Path | None, typer.Option("--json", help=_HELP["json_file"])] = None,
    good: Annotated[Path | None, typer.Option("--good", help=_HELP["good"])] = None,
    bad: Annotated[Path | None, typer.Option("--bad", help=_HELP["bad"])] = None,
    fail_on: Annotated[str, typer.Option("--fail-on", metavar="error|warning", help=_HELP["fail_on"])] = "error",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the totals.")] = False,
) -> None:
    """Check chat data row by row: every fault, at its file, line and JSON pointer, with what to do about it.

    Exit code 0: fit to pack; 1: something is wrong with the data; 2: something is wrong with the call.

    Example: sftprep validate data_samples/good/openai.jsonl --max-errors 20
    """
    if fail_on not in {"error", "warning"}:
        raise typer.BadParameter("one of: error, warning", param_hint="--fail-on")
    config = ValidateConfig.model_validate(
        {
            "files": tuple(files),
            "format": format,
            "max_errors": max_errors,
            "json_file": json_file,
            "good": good,
            "bad": bad,
            "fail_on": fail_on,
        }
    )
    report = _run(config, quiet=quiet)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _run(config: ValidateConfig, *, quiet: bool) -> ValidationReport:
    # pyarrow comes with the nouns, 0.3 s that `sftprep --help` must not wait for.
    from sftprep.prepare.validate import validate_files
    from sftprep.reports.findings import byte_progress, print_report, write_report

    with byte_progress(config.files, quiet=quiet) as on_progress:
        report = validate_files(config, on_progress=on_progress)
    if config.json_file is not None:
        write_report(report, path=config.json_file)
    print_report(report, quiet=quiet)
    return report
