"""`sftprep validate`: is this data fit to train on, and if not, where and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sftprep.cli.options import read_config
from sftprep.config.extras import require_extra
from sftprep.config.validate import ValidateConfig
from sftprep.errors import SftprepError

if TYPE_CHECKING:
    from sftprep.config.quality import QualityConfig
    from sftprep.reports.findings import ValidationReport
    from sftprep.reports.quality_json import QualityReport

_HELP = {name: field.description for name, field in ValidateConfig.model_fields.items()}


def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help=_HELP["files"])],
    *,
    row_format: Annotated[str | None, typer.Option("--format", help=_HELP["format"])] = None,
    model: Annotated[str | None, typer.Option("--model", help=_HELP["model"])] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", min=1, help=_HELP["max_length"])] = None,
    max_errors: Annotated[int, typer.Option("--max-errors", min=0, help=_HELP["max_errors"])] = 100,
    fail_on: Annotated[list[str] | None, typer.Option("--fail-on", metavar="CODE", help=_HELP["fail_on"])] = None,
    json_file: Annotated[str | None, typer.Option("--json", help=_HELP["json_file"])] = None,
    html: Annotated[str | None, typer.Option("--html", help=_HELP["html"])] = None,
    good: Annotated[str | None, typer.Option("--good", help=_HELP["good"])] = None,
    bad: Annotated[str | None, typer.Option("--bad", help=_HELP["bad"])] = None,
    fix_to: Annotated[str | None, typer.Option("--fix-to", help=_HELP["fix_to"])] = None,
    quality: Annotated[bool, typer.Option("--quality", help=_HELP["quality"])] = False,
    against: Annotated[list[str] | None, typer.Option("--against", help=_HELP["against"])] = None,
    quality_json: Annotated[str | None, typer.Option("--quality-json", help=_HELP["quality_json"])] = None,
    quality_config: Annotated[Path | None, typer.Option("--quality-config", help=_HELP["quality_config"])] = None,
    source_key: Annotated[str, typer.Option("--source-key", help=_HELP["source_key"])] = "source",
    workers: Annotated[int, typer.Option("--workers", min=1, help=_HELP["workers"])] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the totals.")] = False,
) -> None:
    """Check chat data row by row: every fault, at its file, line and JSON pointer, with what to do about it.

    Exit code 0: fit to pack; 1: something is wrong with the data; 2: something is wrong with the call.

    Example: sftprep validate data_samples/good/openai.jsonl --max-errors 20

    Example: sftprep validate chats.jsonl --quality --against eval.jsonl --fail-on error --fail-on eval-overlap

    Example: sftprep validate 'data/**/*.parquet' --model path/to/model --max-length 4096 --html report.html
    """
    options = {**locals(), "files": tuple(files), "fail_on": tuple(fail_on or ("error",))}
    options["against"] = tuple(against or ())
    options["format"] = options.pop("row_format")
    del options["quiet"]
    config = read_config(ValidateConfig, options, command="validate", names={"json_file": "--json"})
    # Wrong thresholds are told before a file is read.
    measures = _measures(config) if config.measures_quality else None
    report = _run(config, quiet=quiet)
    try:
        found = None if measures is None else _measure(measures, quiet=quiet)
    except SftprepError:
        # A file that cannot be measured was told of already; the page has what was found in all of them.
        _write_page(config, report, None)
        raise
    if found is not None:
        report = _judge(config, report, found)
    _write_page(config, report, found)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _run(config: ValidateConfig, *, quiet: bool) -> ValidationReport:
    # pyarrow comes with the nouns, 0.3 s that `sftprep --help` must not wait for.
    from sftprep.prepare.validate import validate_files
    from sftprep.reports.findings import print_report, write_report
    from sftprep.reports.progress import byte_progress
    from sftprep.sources.paths import total_bytes

    with byte_progress("validate", lambda: total_bytes(config.files), quiet=quiet) as on_progress:
        report = validate_files(config, on_progress=on_progress)
    if config.json_file is not None:
        write_report(report, path=config.json_file)
    print_report(report, quiet=quiet)
    withheld = [path for path in (config.good, config.bad, config.fix_to) if path is not None]
    if withheld and not report.quarantine_published:
        names = ", ".join(map(str, withheld))
        typer.echo(f"not written, as a file could not be read to its end: {names}", err=True)
    return report


def _measures(config: ValidateConfig) -> QualityConfig:
    """UsageError where the file of thresholds is wrong, or what measures is not installed."""
    require_extra("quality", ["rensa", "py3langid"], what="the report on quality")
    from sftprep.config.quality import QualityConfig  # Only who measures quality waits for it.
    from sftprep.sources.thresholds import read_thresholds  # as above

    return QualityConfig(
        files=config.files,
        format=config.format,
        against=config.against,
        json_file=config.quality_json,
        source_key=config.source_key,
        **(read_thresholds(config.quality_config) if config.quality_config is not None else {}),
    )


def _measure(measures: QualityConfig, *, quiet: bool) -> QualityReport:
    """Measure quality and print it."""
    # numpy and the measures take 0.4 s to import, which a plain validation must not wait for.
    from sftprep.prepare.quality import measure_quality
    from sftprep.reports.console import terminal_console
    from sftprep.reports.progress import byte_progress
    from sftprep.reports.quality_terminal import print_quality
    from sftprep.sources.paths import total_bytes

    with byte_progress("quality", lambda: total_bytes(measures.files), quiet=quiet) as on_bytes:
        found = measure_quality(measures, on_bytes=on_bytes)
    if not quiet:
        print_quality(found, terminal_console(markup=True))
    return found


def _judge(config: ValidateConfig, report: ValidationReport, found: QualityReport) -> ValidationReport:
    """The report with what quality decides; the JSON, written before the long measures, is corrected."""
    from sftprep.reports.findings import write_report  # as above

    judged = report.judged_with(found.by_code)
    if judged != report and config.json_file is not None:
        write_report(judged, path=config.json_file)
    for code in config.fail_on:
        if count := found.by_code.get(code):
            typer.echo(f"fails on {code}: {count:,}")
    return judged


def _write_page(config: ValidateConfig, report: ValidationReport, found: QualityReport | None) -> None:
    if config.html is None:
        return
    from sftprep.reports.validate_html import write_html  # Jinja takes 0.1 s to import, which few runs need.

    write_html(report, quality=found, path=config.html)
