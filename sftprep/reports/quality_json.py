"""The quality report: what a machine reads, and what the terminal shows."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from sftprep.reports.publication import json_bytes, publishing

QUALITY_CODES: Final = frozenset(
    {
        "refusal",
        "truncated-ending",
        "wrong-language",
        "leaked-instructions",
        "repetition-loop",
        "repeats-prompt",
        "ungrounded",
        "length-outlier",
        "near-duplicate-prompts",
        "near-duplicate-responses",
        "near-duplicate-conversations",
        "eval-overlap",
        "eval-near-duplicate",
    }
)
"""What `by_code` counts, and `--fail-on` may name."""


UNNAMED: Final = "(none)"
"""The source of rows that name none."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(_Frozen):
    """A place in the data, and the beginning of what stands there."""

    place: str = Field(description="file:line, and :/messages/N where one message is meant.")
    excerpt: str
    score: float = Field(default=0.0, description="What it is ranked by, where it is: in [0, 1].")


class Ranked(_Frozen):
    """Rows or answers that have something in common."""

    size: int
    examples: list[Example] = Field(description="The first and the last of them.")


class Duplicates(_Frozen):
    """Repetition of one kind of text."""

    view: str = Field(description="prompts, responses or conversations.")
    num_texts: int = Field(description="Rows that have such a text.")
    num_exact: int = Field(description="Rows whose text an earlier row has, character by character.")
    num_near: int = Field(description="Rows with an earlier near duplicate, exact ones included.")
    share_near: float = Field(description="num_near of num_texts.")
    clusters: list[Ranked] = Field(description="The largest clusters of near duplicates.")


class Distinct(_Frozen):
    """Distinct n-grams of all answers."""

    n: int
    num_distinct: int
    num_total: int
    share: float


class Groups(_Frozen):
    """Texts that share a part: openings of answers, templates of prompts."""

    kind: str
    num_grouped: int = Field(description="Texts in groups of at least group_rows.")
    share: float
    largest: list[Ranked]


class StockPhrase(_Frozen):
    """Answers that use a stock phrase."""

    phrase: str
    num_answers: int
    share: float


class Diversity(_Frozen):
    """How varied the data is."""

    distinct: list[Distinct]
    openings: Groups
    templates: list[Groups] = Field(description="Prompts alike once numbers and names are masked, or at their edges.")
    num_stock: int = Field(description="Answers with at least one stock phrase.")
    share_stock: float
    stock_phrases: list[StockPhrase]


class Flaw(_Frozen):
    """Answers with one kind of low quality."""

    code: str
    meaning: str
    reach: str = Field(description="What was measured of the detector, on answers that were read: how far to trust it.")
    num_judged: int = Field(description="Answers that the detector could judge.")
    num_answers: int
    share: float = Field(description="num_answers of num_judged.")
    examples: list[Example] = Field(description="The worst first.")


class SourceStats(_Frozen):
    """Rows that name the same source, or `(none)`."""

    source: str
    human: bool
    num_rows: int
    num_answers: int
    mean_words: float = Field(description="Words an answer.")
    share_near_duplicates: float = Field(description="Rows whose responses have an earlier near duplicate.")
    share_stock: float = Field(description="Answers with a stock phrase.")
    share_flawed: float = Field(description="Answers with any flaw but an outlying length.")
    distinct_bigrams: float = Field(description="Distinct of the first 20,000 bigrams of its answers.")

    @property
    def author(self) -> str:
        """Who wrote them, as far as the source says."""
        if self.source == UNNAMED:
            return "not said"
        return "human" if self.human else "model"


class Gap(_Frozen):
    """One measure over human and over synthetic sources."""

    measure: str
    human: float
    synthetic: float


class Leak(_Frozen):
    """A held-out row and the training row that shares most with it."""

    code: str = Field(description="eval-overlap: n-grams; eval-near-duplicate: prompt or conversation.")
    what: str = Field(description="What is shared: ngrams, prompts or conversations.")
    held_out: str
    training: str
    score: float = Field(description="Share of the held-out row's n-grams, or Jaccard similarity; in [0, 1].")
    excerpt: str = Field(description="The held-out row's beginning.")


class Leakage(_Frozen):
    """What the training rows share with held-out rows. Each held-out row is listed once a kind, the worst first."""

    held_out_files: list[str]
    num_held_out: int
    num_skipped: int = Field(description="Held-out rows with errors, which were not compared.")
    ngram: int = Field(description="Words of an n-gram: the held-out rows' 5th percentile length, 8 to 13.")
    num_overlapping: int = Field(description="Held-out rows with at least one shared n-gram.")
    num_near_duplicates: int = Field(description="Held-out rows with a near duplicate prompt or conversation.")
    leaks: list[Leak]


class QualityReport(_Frozen):
    """The outcome of the measures of quality: counts are complete, examples are the worst."""

    files: list[str]
    num_rows: int = Field(description="Rows measured.")
    num_skipped: int = Field(description="Rows with errors, which were not measured.")
    num_answers: int
    near_duplicate: float = Field(description="The similarity from which texts are near duplicates.")
    duplicates: list[Duplicates]
    diversity: Diversity
    flaws: list[Flaw]
    sources: list[SourceStats] = Field(description="Empty where no row names a source.")
    gaps: list[Gap] = Field(description="Empty unless both human and synthetic rows name their source.")
    leakage: Leakage | None

    @property
    def by_code(self) -> dict[str, int]:
        """How often each code was found, for thresholds and exit codes."""
        counts = {flaw.code: flaw.num_answers for flaw in self.flaws}
        counts |= {f"near-duplicate-{found.view}": found.num_near for found in self.duplicates}
        if self.leakage is not None:
            counts["eval-overlap"] = self.leakage.num_overlapping
            counts["eval-near-duplicate"] = self.leakage.num_near_duplicates
        return counts


def write_quality(report: QualityReport, *, path: Path) -> None:
    """The report as JSON, whole or not at all. OutputError where it cannot be written."""
    with publishing([path]) as publication:
        publication.files[0].write(json_bytes(report))
