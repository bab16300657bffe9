"""`sftprep audit`: a shard set to what is trained in it, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sftprep.config.audit import AuditConfig

_FIELDS = AuditConfig.model_fields


def _option(field: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*(names or (f"--{field.replace('_', '-')}",)), help=_FIELDS[field].description, **settings)


def audit(
    directory: Annotated[Path, typer.Argument(help=_FIELDS["directory"].description, metavar="DIR")],
    *,
    sample: Annotated[int, _option("sample", min=0)] = _FIELDS["sample"].default,
    row: Annotated[int | None, _option("row", min=0)] = None,
    seed: Annotated[int, _option("seed", min=0)] = _FIELDS["seed"].default,
    ids: Annotated[bool, _option("ids")] = False,
    json_file: Annotated[Path | None, _option("json_file", "--json")] = None,
    html: Annotated[Path | None, _option("html")] = None,
    html_rows: Annotated[int, _option("html_rows", min=0)] = _FIELDS["html_rows"].default,
    checksums: Annotated[bool, _option("checksums", "--checksums/--no-checksums")] = _FIELDS["checksums"].default,
) -> None:
    """Show which tokens of a shard set are trained and why, and check every row. Exit code 1 when a check fails.

    Example: sftprep audit packed --sample 2 --html audit.html
    """
    config = AuditConfig(**locals())
    from rich.console import Console  # as below

    # numpy, pyarrow and tokenizers take 0.3 s to import, which `sftprep --help` must not wait for.
    from sftprep.prepare.audit import audit as run
    from sftprep.prepare.audit import rows_at, shown_rows
    from sftprep.reports.mask_terminal import print_row, print_summary
    from sftprep.shards.read import open_shard_set

    console = Console(highlight=False)
    report = run(config)
    print_summary(report, console)
    shards = open_shard_set(config.directory)
    rows = shown_rows(shards, count=config.sample, seed=config.seed) if row is None else rows_at(shards, [row])
    for view in rows:
        print_row(view, console, ids=config.ids)
    if html is not None:
        console.print(f"\npage: {html}", soft_wrap=True, markup=False)
    if not report.passed:
        raise typer.Exit(1)
