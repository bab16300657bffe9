"""Options of the measures of quality: duplicates, diversity, low-quality answers, leakage."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from sftprep.config.places import FilePlace, InputPlace


class QualityConfig(BaseModel):
    """What to measure, and from where on it is shown."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    files: tuple[InputPlace, ...] = Field(min_length=1, description="Files of chat rows.")
    format: str | None = Field(default=None, description="As for validate: without it, each file's is detected.")
    against: tuple[InputPlace, ...] = Field(
        default=(), description="Held-out rows: report what the files share with them, by both addresses."
    )
    json_file: FilePlace | None = Field(default=None, description="Write the quality report as JSON into this file.")
    examples: int = Field(default=5, ge=0, description="Examples of each ranking, the worst first.")
    near_duplicate: float = Field(
        default=0.8, ge=0.7, le=1, description="Jaccard similarity of 3-word shingles from which two texts are alike."
    )
    source_key: str = Field(default="source", description="The row's metadata key that names where it came from.")
    human_sources: tuple[str, ...] = Field(
        default=("human",), description="Values of the source key that people wrote; all others count as synthetic."
    )
    group_rows: int = Field(default=5, ge=2, description="Rows from which a shared opening or template is a group.")
    loop_share: float = Field(default=0.25, gt=0, le=1, description="Share of an answer inside a repetition loop.")
    echo_share: float = Field(default=0.8, gt=0, le=1, description="Share of the prompt that an answer repeats.")
    language_probability: float = Field(
        default=0.9, gt=0, le=1, description="How sure both languages must be where prompt and answer differ."
    )
    length_deviations: float = Field(
        default=4.0, gt=0, description="Deviations of the log length from the median that make an outlier."
    )
    unsupported_share: float = Field(
        default=0.6, gt=0, le=1, description="Share of an answer's names, numbers and words that its context lacks."
    )
