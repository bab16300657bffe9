"""Options of `sftprep validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sftprep.config.places import FilePlace, InputPlace, LocalPath, ModelName

_STDIN: Final = Path("-")


class ValidateConfig(BaseModel):
    """What to check, and what to write beside the report."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    files: tuple[InputPlace, ...] = Field(
        min_length=1,
        description="JSONL or JSON arrays, plain, gzip or zstd; Parquet, Arrow, saved `datasets` directories; patterns "
        "such as 'data/**/*.jsonl'; URLs (s3://…, extra `remote`); - for standard input.",
    )
    format: str | None = Field(
        default=None,
        description="openai, sharegpt, alpaca or prompt-response; without it, each row's format is detected.",
    )
    model: ModelName | None = Field(
        default=None,
        description="Model directory or hub id: every row is rendered with its chat template and encoded with its "
        "tokenizer, as `pack` does.",
    )
    max_length: int | None = Field(
        default=None, ge=1, lt=2**31, description="Tokens that a row may have; needs --model. Longer rows are errors."
    )
    max_errors: int = Field(
        default=100, ge=0, description="Errors, and as many warnings, that are listed (0: all); all are counted."
    )
    fail_on: tuple[str, ...] = Field(
        default=("error",),
        description="What makes the exit code 1: `error`, `warning` (either), or a finding's code; repeatable.",
    )
    json_file: FilePlace | None = Field(
        default=None,
        description="Write the report as JSON into this file, or to this URL, as every file that is written.",
    )
    html: FilePlace | None = Field(default=None, description="Write the report as one HTML page into this file.")
    good: FilePlace | None = Field(
        default=None, description="Write the rows without errors into this file, as they came."
    )
    bad: FilePlace | None = Field(
        default=None, description="Write each row with errors into this file, with its findings."
    )
    fix_to: FilePlace | None = Field(
        default=None,
        description="Write the rows without errors into this file, each as a row of the format openai.",
    )
    quality: bool = Field(
        default=False,
        description="Measure quality too: duplicates, diversity, low-quality answers; needs the extra `quality`.",
    )
    against: tuple[InputPlace, ...] = Field(
        default=(),
        description="Held-out rows: report what the files share with them, by both addresses; implies --quality.",
    )
    quality_json: FilePlace | None = Field(
        default=None, description="Write the quality report as JSON into this file; implies --quality."
    )
    quality_config: LocalPath | None = Field(
        default=None, description="TOML file with thresholds of quality, such as loop_share = 0.3; implies --quality."
    )
    source_key: str = Field(
        default="source", description="The row's metadata key that names its source, for the report on quality."
    )
    workers: int = Field(default=1, ge=1, description="Processes; the report is the same for any number.")

    @property
    def measures_quality(self) -> bool:
        """Whether the report on quality was asked for, by name or by what it is needed for."""
        files = (self.quality_json, self.quality_config)
        return self.quality or bool(self.against) or any(path is not None for path in files)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_length is not None and self.model is None:
            raise ValueError("--max-length counts tokens: it needs --model")
        if self.files.count(_STDIN) > 1 or (self.measures_quality and _STDIN in self.files):
            raise ValueError("standard input can be read once: write the rows into a file first")
        return self
