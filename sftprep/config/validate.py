"""Options of `sftprep validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ValidateConfig(BaseModel):
    """What to check, and what to write beside the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[Path, ...] = Field(min_length=1, description="JSONL files, plain, gzip or zstd.")
    format: str | None = Field(
        default=None,
        description="openai, sharegpt, alpaca or prompt-response; without it, each file's format is detected.",
    )
    max_errors: int = Field(
        default=100, ge=0, description="Errors, and as many warnings, that are listed (0: all); all are counted."
    )
    json_file: Path | None = Field(default=None, description="Write the report as JSON into this file.")
    good: Path | None = Field(default=None, description="Write the rows without errors into this file, as they came.")
    bad: Path | None = Field(default=None, description="Write each row with errors into this file, with its findings.")
    fail_on: Literal["error", "warning"] = Field(
        default="error", description="The least severity that makes the exit code 1."
    )
