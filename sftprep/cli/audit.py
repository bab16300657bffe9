"""`sftprep audit`: a shard set to what is trained in it, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sftprep.cli.options import option_of, read_config
from sftprep.config.audit import AuditConfig

_FIELDS = AuditConfig.model_fields


def _option(field: str, *names: str, **settings: Any) -> Any:
    return option_of(AuditConfig, field, *names, **settings)


def audit(
    directory: Annotated[str, typer.Argument(help=_FIELDS["directory"].description, metavar="DIR_OR_URL")],
    *,
    sample: Annotated[int, _option("sample", min=0)] = _FIELDS["sample"].default,
    row: Annotated[int | None, _option("row", min=0)] = None,
    where: Annotated[str | None, _option("where", metavar="EXPR")] = None,
    seed: Annotated[int, _option("seed", min=0)] = _FIELDS["seed"].default,
    ids: Annotated[bool, _option("ids")] = False,
    json_file: Annotated[str | None, _option("json_file", "--json")] = None,
    html: Annotated[str | None, _option("html")] = None,
    html_rows: Annotated[int, _option("html_rows", min=0)] = _FIELDS["html_rows"].default,
    checksums: Annotated[bool, _option("checksums", "--checksums/--no-checksums")] = _FIELDS["checksums"].default,
    allow: Annotated[list[str] | None, _option("allow", metavar="CODE")] = None,
    fail_on: Annotated[list[str] | None, _option("fail_on", metavar="GATE")] = None,
    prove: Annotated[bool, _option("prove")] = False,
    model: Annotated[str | None, _option("model", metavar="DIR_OR_HUB_ID")] = None,
    cache_dir: Annotated[Path, _option("cache_dir")] = _FIELDS["cache_dir"].default,
    cache_gb: Annotated[float, _option("cache_gb")] = _FIELDS["cache_gb"].default,
    diff: Annotated[str | None, _option("diff", metavar="DIR_OR_URL")] = None,
) -> None:
    """Show which tokens of a shard set are trained and why, and check every row. Exit code 1 when a check fails.

    Example: sftprep audit packed --sample 2 --html audit.html

    Example: sftprep audit packed --fail-on stop-untrained --fail-on trained-share=0.1..0.9 --fail-on left-out=1%

    Example: sftprep audit packed --prove --model path/to/model --sample 0

    Example: sftprep audit packed --diff other_trainer/prepared
    """
    options = {**locals(), "allow": allow or (), "fail_on": fail_on or ()}
    config = read_config(AuditConfig, options, command="audit")
    if config.diff is None:
        _run(config)
    else:
        _compare(config, config.diff)


def _run(config: AuditConfig) -> None:
    # numpy, pyarrow, tokenizers and polars take 0.5 s to import, which `sftprep --help` must not wait for.
    from sftprep.prepare.audit import audit as run
    from sftprep.reports.console import terminal_console
    from sftprep.reports.mask_terminal import print_row, print_summary

    console = terminal_console()
    found = run(config)
    print_summary(found.report, console)
    chosen = found.chosen()
    if config.where is not None and config.sample and not chosen:
        console.print(f"\nno row matches --where {config.where!r}", soft_wrap=True, markup=False)
    for view in found.rows(chosen):
        print_row(view, console, ids=config.ids)
    if config.html is not None:
        console.print(f"\npage: {config.html}", soft_wrap=True, markup=False)
    if not found.report.passed:
        raise typer.Exit(1)


def _compare(config: AuditConfig, other: Path) -> None:
    # As above.
    from sftprep.prepare.diff import diff
    from sftprep.prepare.diff_sides import Copies
    from sftprep.reports.console import terminal_console
    from sftprep.reports.diff_terminal import print_diff
    from sftprep.reports.mask_json import write_report

    report = diff(config.directory, other, copies=Copies(config.cache_dir, config.cache_gb))
    if config.json_file is not None:
        write_report(report, config.json_file)
    print_diff(report, terminal_console())
    if not report.same:
        raise typer.Exit(1)
