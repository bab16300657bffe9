"""`sftprep schema`: JSON Schemas of the files that sftprep reads and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sftprep.config.places import on_this_machine, unwritten
from sftprep.errors import UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaMode


def schema(
    name: Annotated[str, typer.Argument(help="Which schema to print; without it, the names are listed.")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Write every schema into this directory instead.")] = None,
) -> None:
    """Print the JSON Schema of a row, a report, the manifest or a configuration.

    Example: sftprep schema manifest
    """
    texts = schema_texts()
    if out is not None:
        try:
            on_this_machine(out)
        except ValueError as error:
            raise UsageError(f"--out: {error}", code="bad-option", hint="see sftprep schema --help") from error
        _write(texts, out)
    elif not name:
        typer.echo("\n".join(texts))
    elif name in texts:
        typer.echo(texts[name], nl=False)
    else:
        known = ", ".join(texts)
        raise UsageError(f"there is no schema called {name!r}", code="unknown-schema", hint=f"one of: {known}")


def _write(texts: dict[str, str], out: Path) -> None:
    """Write all schemas or none. OutputError where that cannot be done."""
    # Files that are whole or not there are the reports', whose imports a list of commands must not wait for.
    from sftprep.reports.publication import publishing

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritten(out, error) from error
    with publishing([out / f"{name}.schema.json" for name in texts]) as publication:
        for file, text in zip(publication.files, texts.values(), strict=True):
            file.write(text.encode("utf-8"))


def schema_texts() -> dict[str, str]:
    """JSON Schema text by name: the same models give the same bytes."""
    return {
        name: json.dumps(model.model_json_schema(mode=mode), ensure_ascii=False, indent=2, sort_keys=True) + "\n"
        for name, (model, mode) in _models().items()
    }


def _models() -> dict[str, tuple[type[BaseModel], JsonSchemaMode]]:
    # These import pyarrow and polars, 0.3 s and more that `sftprep --help` must not wait for.
    from sftprep.config.audit import AuditConfig
    from sftprep.config.demo import DemoConfig
    from sftprep.config.evaluate import EvaluateConfig
    from sftprep.config.pack import PackConfig
    from sftprep.config.quality import QualityConfig
    from sftprep.config.split import SplitConfig
    from sftprep.config.train import TrainConfig
    from sftprep.config.validate import ValidateConfig
    from sftprep.evaluate.suite import Case, Suite
    from sftprep.prepare.pack_report import PackReport, RunReport
    from sftprep.records.openai import ChatRow
    from sftprep.reports.diff_json import DiffReport
    from sftprep.reports.evaluate_json import EvaluateReport
    from sftprep.reports.findings import ValidationReport
    from sftprep.reports.mask_json import AuditReport
    from sftprep.reports.parity_json import ParityCertificate
    from sftprep.reports.quality_json import QualityReport
    from sftprep.reports.quality_split import SplitReport
    from sftprep.shards.manifest import Manifest

    return {
        "chat-row": (ChatRow, "validation"),
        "suite": (Suite, "validation"),
        "suite-case": (Case, "validation"),
        "manifest": (Manifest, "serialization"),
        "audit-report": (AuditReport, "serialization"),
        "diff-report": (DiffReport, "serialization"),
        "evaluate-report": (EvaluateReport, "serialization"),
        "parity-certificate": (ParityCertificate, "serialization"),
        "pack-report": (PackReport, "serialization"),
        "run-report": (RunReport, "serialization"),
        "quality-report": (QualityReport, "serialization"),
        "split-report": (SplitReport, "serialization"),
        "validation-report": (ValidationReport, "serialization"),
        "audit-config": (AuditConfig, "validation"),
        "demo-config": (DemoConfig, "validation"),
        "evaluate-config": (EvaluateConfig, "validation"),
        "pack-config": (PackConfig, "validation"),
        "quality-config": (QualityConfig, "validation"),
        "split-config": (SplitConfig, "validation"),
        "train-config": (TrainConfig, "validation"),
        "validate-config": (ValidateConfig, "validation"),
    }
