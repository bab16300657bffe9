"""What `sftprep audit` is told."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class AuditConfig(BaseModel):
    """The options of an audit; each description is the option's help."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path = Field(description="The shard set that `sftprep pack` wrote.")
    sample: int = Field(default=1, ge=0, description="Show the tokens of this many rows, drawn by the seed.")
    row: int | None = Field(default=None, ge=0, description="Show the tokens of this row instead of drawn ones.")
    seed: int = Field(default=0, ge=0, description="Draws the rows to show.")
    ids: bool = Field(default=False, description="Show each token's id behind its text.")
    json_file: Path | None = Field(default=None, description="Write the report as JSON to this file.")
    html: Path | None = Field(default=None, description="Write one self-contained page with the report and rows.")
    html_rows: int = Field(default=20, ge=0, description="Rows that the page shows, drawn by the seed.")
    checksums: bool = Field(default=True, description="Compare every shard's sha256 with the manifest's.")
