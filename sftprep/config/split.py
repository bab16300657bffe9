"""Options of `sftprep split`."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sftprep.config.places import InputPlace, LocalPath


class SplitConfig(BaseModel):
    """What to split, and how much of it is held out."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    files: tuple[InputPlace, ...] = Field(min_length=1, description="Files of chat rows, one JSON object a line.")
    out: LocalPath = Field(description="New directory for train.jsonl, eval.jsonl and split.json.")
    held_out: str = Field(default="5%", description="Rows held out for evaluation, a number or a percentage.")
    seed: int = Field(default=0, ge=0, description="Draws the held-out rows; the same seed gives the same files.")
    near_duplicate: float = Field(
        default=0.8,
        ge=0.7,
        le=1,
        description="Jaccard similarity of 3-word shingles from which two prompts or conversations stay together.",
    )
    no_overlap: bool = Field(
        default=False,
        description="Hold out no row that shares a long n-gram with a training row: what `validate --against` finds.",
    )
    format: str | None = Field(default=None, description="As for validate: without it, each file's is detected.")

    @field_validator("held_out")
    @classmethod
    def _known(cls, value: str) -> str:
        if not re.fullmatch(r"[1-9]\d*|(?:\d{1,2}(?:\.\d+)?)%", value) or value.strip("0.%") == "":
            raise ValueError(
                f"must be a number of rows such as 500, or a percentage below 100 such as 5%, is {value!r}"
            )
        return value

    def num_held_out(self, num_rows: int) -> int:
        """How many of these rows are asked for, rounded down, at least one."""
        if self.held_out.endswith("%"):
            return max(int(num_rows * float(self.held_out[:-1]) / 100), 1)
        return int(self.held_out)
