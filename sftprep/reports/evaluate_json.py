"""What an evaluation found: the report as a value and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sftprep.reports.publication import json_bytes, publishing


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScoreRecord(_Frozen):
    """What one scorer said of one answer."""

    kind: str
    value: float = Field(ge=0, le=1)
    passed: bool
    note: str


class AnswerRecord(_Frozen):
    """One model's answer to a case, and how it was judged."""

    text: str
    num_tokens: int = Field(description="Generated tokens, the stop token included.")
    stopped: bool = Field(description="The model ended the answer by itself.")
    repetition: float = Field(description="Share of the answer's 4-word runs that stood there before.")
    value: float = Field(description="Mean of the scorers' values.")
    passed: bool = Field(description="Every scorer passed it.")
    scores: list[ScoreRecord]


class CaseRecord(_Frozen):
    """One case, and the answers side by side."""

    suite: str
    id: str
    tags: list[str]
    source: str | None = Field(default=None, description="Who wrote it: human or synthetic.")
    prompt: str = Field(description="The messages, as `role: text` lines.")
    reference: str | None
    answer: AnswerRecord
    baseline: AnswerRecord | None


class Comparison(_Frozen):
    """A group's cases against the baseline's, paired by case."""

    pass_rate: float = Field(description="The baseline's.")
    mean_value: float = Field(description="The baseline's.")
    gained: int = Field(description="Cases that only the new model passes.")
    lost: int = Field(description="Cases that only the baseline passes.")
    p_value: float = Field(description="McNemar's exact two-sided test of gained against lost.")
    p_of_values: float | None = Field(
        description="Two-sided sign-flip test of the difference of the values; null where each is just passed or not."
    )
    difference: float = Field(description="Mean of new value minus baseline's.")
    low: float = Field(description="Lower end of its interval, by paired bootstrap over cases.")
    high: float = Field(description="Upper end.")
    confidence: float = Field(description="Of the interval: 0.95, corrected for the number of groups compared.")
    verdict: Literal["worse", "better", "no difference shown"] = Field(
        description="`p_value` below 1 - confidence shows a difference; where there is `p_of_values`, one of the two "
        "below half of that."
    )


class GroupRecord(_Frozen):
    """All cases of a suite, or of a tag."""

    name: str
    num_cases: int
    num_passed: int
    pass_rate: float
    low: float = Field(description="Wilson's 95 % interval of the pass rate.")
    high: float
    mean_value: float
    stops: float = Field(description="Share of answers that the model ended by itself.")
    repetition: float = Field(description="Mean share of repeated 4-word runs.")
    against_baseline: Comparison | None


class LossChange(_Frozen):
    """A held-out loss against the baseline's on the same documents."""

    baseline: float = Field(description="The baseline's nats per token.")
    difference: float = Field(description="Nats per token, new minus baseline.")
    low: float = Field(description="Its 95 % interval, by paired bootstrap over documents.")
    high: float


class LossRecord(_Frozen):
    """A held-out loss: nats summed over trained tokens."""

    num_tokens: int
    num_bytes: int
    nats: float
    per_token: float
    per_byte: float | None = Field(description="None where the category has no text, such as stop tokens.")
    change: LossChange | None = Field(default=None, description="Where there is a baseline.")


class LikelihoodRecord(_Frozen):
    """Held-out loss over trained tokens."""

    directory: str
    num_documents: int
    total: LossRecord
    categories: dict[str, LossRecord] = Field(
        description="`kind:…` by span kind, `source:…` by file, `origin:…` by what rows say under `source`."
    )
    baseline: LossRecord | None
    difference: float | None = Field(description="Nats per token, new minus baseline.")
    low: float | None = Field(description="Its 95 % interval, by paired bootstrap over documents.")
    high: float | None
    unread: list[str] = Field(
        default=[], description="Files that are gone or another, so that nobody can tell who wrote their rows."
    )


class Contamination(_Frozen):
    """Whether training rows hold the suites' cases."""

    files: list[str] = Field(description="Training rows that were compared.")
    unread: list[str] = Field(description="Sources of the set that are gone or another, so that nobody can compare.")
    num_rows: int
    ngram: int = Field(description="Words of the n-grams that were compared.")
    found: list[str] = Field(description="`case: row (code, score)`, the worst first.")


class WinRate(_Frozen):
    """How often a judge prefers the new answers, each pair shown in both orders."""

    judge: str
    against: str = Field(description="The baseline, or the suites' references.")
    num_cases: int
    num_unreadable: int = Field(description="Pairs left out: the judge said neither A, B nor tie.")
    wins: int = Field(description="Pairs that the new answer wins over both orders.")
    ties: int
    losses: int
    win_rate: float = Field(description="Ties are halves, and so is a verdict that changes with the order.")
    low: float = Field(description="Its 95 % interval, by bootstrap over cases.")
    high: float
    length_controlled: float = Field(description="The win-rate that answers of equal length would have.")
    first_position: float = Field(description="Share of decided verdicts for the answer shown first; 0.5 is unbiased.")


class HarnessScore(_Frozen):
    """One metric of one task, as lm-evaluation-harness gives it."""

    task: str
    metric: str
    filter: str = Field(description="What the harness takes of an answer before it is judged.")
    is_main: bool = Field(description="The task's first metric, by which gates judge it.")
    value: float
    stderr: float | None
    higher_is_better: bool
    num_documents: int
    num_fewshot: int
    version: str = Field(description="Of the task.")
    chat_template: bool = Field(description="Whether questions went through the model's chat template.")
    baseline: float | None = None
    against_baseline: Comparison | None = Field(
        default=None, description="Paired by document; None where documents have no numbers, or lower ones are better."
    )


class GateRecord(_Frozen):
    """One condition and whether it holds."""

    gate: str
    passed: bool
    what: str = Field(description="What was measured.")


class ModelRecord(_Frozen):
    """A model that answered."""

    name: str
    num_prompts_proven: int = Field(description="Prompts whose ids are those that transformers would send.")
    stop_tokens: list[str]
    tokenizer_sha256: str
    template_sha256: str
    endpoint: str | None = Field(default=None, description="The server that was asked; it renders prompts itself.")


class EvaluateReport(_Frozen):
    """The outcome of `sftprep evaluate`."""

    passed: bool = Field(description="Every gate holds.")
    model: ModelRecord
    baseline: ModelRecord | None
    suites: list[GroupRecord]
    tags: list[GroupRecord]
    sources: list[GroupRecord] = Field(default=[], description="Human and synthetic cases, where they say so.")
    likelihood: LikelihoodRecord | None
    contamination: Contamination | None = Field(description="None where no training rows were given: not checked.")
    win_rate: WinRate | None = Field(description="With --judge.")
    harness: list[HarnessScore] = Field(default=[], description="With --harness.")
    gates: list[GateRecord]
    cases: list[CaseRecord]

    @property
    def regressions(self) -> list[CaseRecord]:
        """Cases whose value fell, or that are no longer passed, the largest fall first."""
        compared = [(case, case.baseline) for case in self.cases if case.baseline is not None]
        fallen = [
            (case.answer.value - old.value, case)
            for case, old in compared
            if case.answer.value < old.value or (old.passed and not case.answer.passed)
        ]
        return [case for _, case in sorted(fallen, key=lambda item: (item[0], item[1].suite, item[1].id))]


def write_evaluation(report: EvaluateReport, path: Path) -> None:
    """Write the report as JSON, whole or not at all. OutputError where it cannot be written."""
    with publishing([path]) as publication:
        publication.files[0].write(json_bytes(report))
