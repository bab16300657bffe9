"""`sftprep demo`: the whole path in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sftprep.cli.options import read_config
from sftprep.config.demo import DemoConfig

_FIELDS = DemoConfig.model_fields


def demo(
    out: Annotated[Path, typer.Option("--out", help=_FIELDS["out"].description)] = _FIELDS["out"].default,
    steps: Annotated[int, typer.Option("--steps", min=1, help=_FIELDS["steps"].description)] = _FIELDS["steps"].default,
    overwrite: Annotated[bool, typer.Option("--overwrite", help=_FIELDS["overwrite"].description)] = False,
) -> None:
    """Validate, pack, audit and train on the samples that come with sftprep, then ask the trained model. Offline.

    Example: sftprep demo --out demo --steps 120
    """
    config = read_config(DemoConfig, {"out": out, "steps": steps, "overwrite": overwrite}, command="demo")
    # torch, transformers and polars take seconds to import, which `sftprep --help` must not wait for.
    from sftprep.demo import run_demo

    run_demo(config)
