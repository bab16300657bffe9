"""Options of `sftprep audit`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class AuditConfig(BaseModel):
    """What to look at, how much of it to show, and where to write the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path = Field(description="The shard set: the directory that sftprep pack --out wrote.")
    sample: int = Field(default=1, ge=0, description="Rows to show, drawn from the seed.")
    row: int | None = Field(default=None, ge=0, description="Show this row whole instead, counted from 0.")
    ids: bool = Field(default=False, description="Show token ids beside their texts.")
    seed: int = Field(default=0, ge=0, description="Decides which rows --sample draws.")
    checksums: bool = Field(default=True, description="Read every shard's sha256 and compare it with the manifest's.")
    json_file: Path | None = Field(default=None, description="Write the report as JSON.")
    html_file: Path | None = Field(
        default=None, description="Write one self-contained page: the report and sample rows, tokens coloured."
    )
