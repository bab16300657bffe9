"""`sftprep split`: chat rows to training and held-out rows that share no near duplicate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sftprep.cli.options import option_of, read_config
from sftprep.config.extras import require_extra
from sftprep.config.split import SplitConfig

_FIELDS = SplitConfig.model_fields


def _option(field: str, *names: str, **settings: Any) -> Any:
    return option_of(SplitConfig, field, *names, **settings)


def split(
    files: Annotated[list[str], typer.Argument(help=_FIELDS["files"].description, metavar="FILE")],
    *,
    out: Annotated[Path, _option("out")],
    held_out: Annotated[str, _option("held_out", "--eval", metavar="COUNT|PERCENT%")] = _FIELDS["held_out"].default,
    seed: Annotated[int, _option("seed", min=0)] = _FIELDS["seed"].default,
    near_duplicate: Annotated[float, _option("near_duplicate")] = _FIELDS["near_duplicate"].default,
    no_overlap: Annotated[bool, _option("no_overlap", "--no-overlap")] = False,
    format: Annotated[str | None, _option("format")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the report.")] = False,
) -> None:
    """Hold rows out for evaluation, whole clusters of near duplicates at a time, and prove that none is in both.

    Example: sftprep split chats.jsonl --eval 5% --out parts --seed 1

    Exit code 0: written; 1: something is wrong with the data; 2: something is wrong with the call.
    """
    options = {key: value for key, value in locals().items() if key != "quiet"}
    config = read_config(SplitConfig, {**options, "files": tuple(files)}, command="split", names={"held_out": "--eval"})
    require_extra("quality", ["rensa"], what="split")
    # numpy, pyarrow and rich take 0.3 s to import, which `sftprep --help` must not wait for.
    from sftprep.prepare.split import split as run
    from sftprep.reports.console import terminal_console
    from sftprep.reports.progress import byte_progress
    from sftprep.reports.quality_split import print_split
    from sftprep.sources.paths import total_bytes

    with byte_progress("split", lambda: total_bytes(config.files), quiet=quiet) as on_bytes:
        report = run(config, on_bytes=on_bytes)
    print_split(report, terminal_console(markup=True))
