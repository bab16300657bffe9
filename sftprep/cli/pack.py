"""`sftprep pack`: chat files to a shard set for one model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sftprep.cli.importing import importing
from sftprep.cli.options import option_of, read_config
from sftprep.config.pack import OverLength, PackConfig

if TYPE_CHECKING:
    from sftprep.prepare.unchanged import PackResult
    from sftprep.sources.compressed import OnBytes

_FIELDS = PackConfig.model_fields
_DRY_RUN = "Compile a sample of the rows, say what the run would make of all, and how sure that is; write nothing."


def _option(field: str, *names: str, **settings: Any) -> Any:
    return option_of(PackConfig, field, *names, **settings)


def _default(field: str) -> Any:
    return _FIELDS[field].get_default(call_default_factory=True)


def pack(
    files: Annotated[list[str] | None, typer.Argument(help=_FIELDS["files"].description, metavar="FILE")] = None,
    *,
    sources: Annotated[list[str] | None, _option("sources", "--source", metavar="NAME=FILE[:WEIGHT]")] = None,
    model: Annotated[str, _option("model", metavar="DIR_OR_HUB_ID")],
    out: Annotated[str, _option("out", metavar="DIR_OR_URL")],
    max_length: Annotated[int | None, _option("max_length", min=1)] = _default("max_length"),
    packing: Annotated[bool, _option("packing", "--packing/--no-packing")] = _default("packing"),
    over_length: Annotated[OverLength, _option("over_length")] = _default("over_length"),
    num_rows: Annotated[int | None, _option("num_rows", min=1)] = _default("num_rows"),
    rows_multiple_of: Annotated[int, _option("rows_multiple_of", min=1)] = _default("rows_multiple_of"),
    max_drop: Annotated[str, _option("max_drop", metavar="COUNT|PERCENT%")] = _default("max_drop"),
    seed: Annotated[int, _option("seed", min=0)] = _default("seed"),
    row_format: Annotated[str | None, _option("format")] = _default("format"),
    train_on: Annotated[Literal["all", "last"], _option("train_on")] = _default("train_on"),
    history: Annotated[Literal["expand", "last-turn", "as-rendered"], _option("history")] = _default("history"),
    reasoning: Annotated[Literal["train", "mask"], _option("reasoning")] = _default("reasoning"),
    tool_calls: Annotated[Literal["train", "mask"], _option("tool_calls")] = _default("tool_calls"),
    mask: Annotated[Literal["contract", "generation-tags"], _option("mask")] = _default("mask"),
    merge_consecutive: Annotated[bool, _option("merge_consecutive")] = _default("merge_consecutive"),
    control_tokens: Annotated[Literal["error", "split", "allow"], _option("control_tokens")] = _default(
        "control_tokens"
    ),
    allow: Annotated[list[str] | None, _option("allow", metavar="CODE")] = None,
    template_kwargs: Annotated[str, _option("template_kwargs", metavar="JSON")] = "{}",
    now: Annotated[datetime, _option("now")] = _default("now"),
    shard_tokens: Annotated[int | None, _option("shard_tokens", min=1)] = _default("shard_tokens"),
    tokenizer_engine: Annotated[Literal["auto", "reference"], _option("tokenizer_engine")] = _default(
        "tokenizer_engine"
    ),
    plans: Annotated[bool, _option("plans", "--plans/--no-plans")] = _default("plans"),
    workers: Annotated[int | None, _option("workers", min=1)] = _default("workers"),
    runner: Annotated[Literal["local", "ray"], _option("runner")] = _default("runner"),
    ray_address: Annotated[str | None, _option("ray_address", metavar="HOST:PORT")] = _default("ray_address"),
    work_dir: Annotated[Path, _option("work_dir")] = _default("work_dir"),
    overwrite: Annotated[bool, _option("overwrite")] = _default("overwrite"),
    rehash: Annotated[bool, _option("rehash")] = _default("rehash"),
    append: Annotated[bool, _option("append")] = _default("append"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help=_DRY_RUN)] = False,
) -> None:
    """Pack chats into training rows for one model: its own tokenizer and template, exact masks, no conversation cut.

    Example: sftprep pack chats.jsonl --model path/to/model --out shards --max-length 4096

    Example: sftprep pack chats.jsonl --source math=sums.jsonl:2.5 --model org/model --out shards --max-length 4096

    Every row is packed, or listed with its address and the reason; nothing is published when more rows than --max-drop
    cannot be exact. Exit code 0: published, or there already; 1: the data; 2: the call.
    """
    options = {**locals(), "files": files or (), "sources": sources or (), "allow": allow or ()}
    options["format"] = options.pop("row_format")
    del options["dry_run"]
    config = read_config(PackConfig, options, command="pack", names={"sources": "--source"})
    if dry_run:
        _foretell(config)
    else:
        _run(config)


def _foretell(config: PackConfig) -> None:
    # pyarrow, tokenizers and the hub client take 0.3 s and more to import, which `sftprep --help` must not wait for.
    from sftprep.prepare.dry_run import dry_run
    from sftprep.reports.console import terminal_console
    from sftprep.reports.dry_run import print_dry_run

    with _progress(config) as on_bytes:
        report = dry_run(config, on_bytes=on_bytes)
    print_dry_run(report, terminal_console(markup=True))


def _run(config: PackConfig) -> None:
    if (config.workers or 1) > 1:
        # Brings what starts processes, which most runs have no use for.
        from sftprep.prepare.child_process import start_importing, will_be_asked

        if will_be_asked(config):
            start_importing()
    with importing():
        # pyarrow takes 0.1 s and more to import, which `sftprep --help` must not wait for.
        from sftprep.prepare.pack_report import summary
        from sftprep.prepare.unchanged import find_unchanged
        from sftprep.reports.console import terminal_console
        from sftprep.reports.mask_terminal import print_summary
        from sftprep.reports.pack_terminal import print_pack

    result = find_unchanged(config, on_left_out=_tell) or _pack(config)
    told = summary(result.shards.manifest, result.report, out=str(config.out), unchanged=result.unchanged)
    told = replace(told, rendering=result.rendering, engine_differed=result.engine_differed)
    console = terminal_console(markup=True)
    print_pack(told, console)
    print_summary(result.report.audit.model_copy(update={"directory": str(config.out)}), console)


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _pack(config: PackConfig) -> PackResult:
    with importing():
        # Templates and tokenizers take 0.2 s and more to import: not for a run that finds nothing to do.
        from sftprep.prepare.pack import pack_read

    with _progress(config) as on_bytes:
        return pack_read(config, on_bytes=on_bytes, on_left_out=_tell)


@contextmanager
def _progress(config: PackConfig) -> Iterator[OnBytes | None]:
    """A bar of input bytes on stderr; none where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    # rich takes 0.1 s, and pyarrow as much, which runs without a bar do not wait for.
    from sftprep.reports.progress import byte_progress
    from sftprep.sources.paths import total_bytes  # as above

    with byte_progress("pack", lambda: total_bytes([spec.path for spec in config.inputs])) as on_bytes:
        yield on_bytes
