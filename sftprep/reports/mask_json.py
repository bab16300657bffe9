"""The mask-audit report: what a machine reads, and what the other reports show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from sftprep.reports.parity_json import ParityCertificate
from sftprep.reports.publication import json_bytes, publishing
from sftprep.stages.lengths import PaddingWaste, Quantiles

FINDING_TEXTS: Final[Mapping[str, str]] = {
    "border-trained": "the first token of a document is trained: nothing before it predicts it",
    "column-length-mismatch": "columns do not belong together; the row is not counted",
    "completion-untrained": "a part of an answer is not trained",
    "context-trained": "text that is context only is trained: history, weight 0, or masked by policy",
    "count-mismatch": "the shards do not hold what the manifest counts",
    "document-empty": "a document has no tokens; the row is not counted",
    "id-out-of-range": "the model has no such token",
    "mask-not-binary": "the mask is neither 0 nor 1",
    "other-role-trained": "text of another role than assistant is trained",
    "row-over-max-length": "the row is longer than the set allows",
    "scaffold-trained": "text that the template writes is trained",
    "scalar-mismatch": "the row's totals are not those of its tokens: the trainer schedules by them",
    "source-unknown": "a document comes from a file that the manifest does not list; the row is not counted",
    "span-crosses-border": "one reason covers tokens of two documents",
    "span-kind-unknown": "a reason that this sftprep does not know; the row is not counted",
    "span-order": "the reasons do not cover the row in order; the row is not counted",
    "stop-id-unknown": "an answer ends in a token that stops no server",
    "stop-untrained": "an answer does not end in a trained stop token: the model would not learn to stop",
    "weight-mismatch": "a trained token has no weight, or an untrained one has",
}
"""What each code of a finding says."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KindCount(_Frozen):
    """Tokens of one reason."""

    kind: str = Field(description="The span kind, lower case: why these tokens are, or are not, trained.")
    role: str = Field(description="Who wrote them: template, system, user, tool or assistant.")
    trained: bool = Field(description="Whether tokens of this reason are to be trained.")
    num_tokens: int
    num_trained: int = Field(description="Of them, those that the mask does train.")
    share: float = Field(description="Of all tokens, in [0, 1].")


class SourceCount(_Frozen):
    """What one input file came to."""

    name: str
    num_documents: int
    num_tokens: int
    num_trained: int
    tokens_by_role: dict[str, int]


class StopCount(_Frozen):
    """How often a stop token ends a trained turn."""

    id: int
    token: str
    num_turns: int


class Bin(_Frozen):
    """How many things lie in `[start, stop)`; the last bin holds its stop too."""

    start: float
    stop: float
    count: int


class AuditFinding(_Frozen):
    """A promise that rows of the set break."""

    code: str
    message: str
    num_rows: int
    rows: list[int] = Field(description="The first of them, counted from 0 through all shards.")
    allowed: bool = Field(default=False, description="Waived by --allow: reported, and not a failure.")


class GateResult(_Frozen):
    """A condition of --fail-on and what was found."""

    gate: str = Field(description="As given: a code, or a code and its limit.")
    found: str
    passed: bool


class AuditReport(_Frozen):
    """What the shards hold, counted on every row, and whether they keep what a shard set promises."""

    passed: bool = Field(description="No finding but allowed ones, no gate failed, and what was to be proven is.")
    directory: str
    fingerprint: str
    model: str
    num_rows: int = Field(description="Rows counted: all that can be read.")
    num_documents: int
    num_tokens: int
    num_trained: int
    trained_share: float
    scaffold_tokens_in_loss: int = Field(description="Trained tokens that the template writes.")
    weight_sum: float
    has_weights: bool = Field(description="Tokens weigh differently, which other trainers ignore.")
    num_turns: int = Field(description="Trained assistant turns.")
    num_stopped: int = Field(description="Of them, those that end in a trained stop token.")
    stops: list[StopCount]
    kinds: list[KindCount]
    sources: list[SourceCount]
    lengths: Quantiles = Field(description="Tokens a document.")
    trained_lengths: Quantiles = Field(description="Trained tokens a document.")
    length_bins: list[Bin] = Field(description="Documents by tokens.")
    share_bins: list[Bin] = Field(description="Documents by the share of their tokens that is trained.")
    fill_bins: list[Bin] = Field(description="Rows by the share of max_length that they fill.")
    row_fill: float = Field(description="Share of positions that hold tokens where rows are padded to max_length.")
    documents_a_row: float
    max_length: int
    packing: bool
    waste: PaddingWaste
    num_left_out: int = Field(description="Rows left out when packing, with repetition.")
    num_taken: int = Field(description="Rows taken when packing, those left out among them, with repetition.")
    left_out: dict[str, int] = Field(description="Rows left out when packing, by code.")
    trained_lost: int = Field(description="Trained tokens of too long rows that are in no shard, as packed.")
    classes: dict[str, int] = Field(description="Trained turns by class, as packed.")
    remarks: dict[str, int] = Field(description="What packing remarked of turns and rows, by name.")
    num_conversations: int = Field(description="Rows of which documents were packed, with repetition.")
    repeated_tokens: int = Field(description="Tokens of history that documents of one row repeat, as packed.")
    findings: list[AuditFinding] = Field(description="Those of the most rows first.")
    gates: list[GateResult] = Field(default_factory=list)
    parity: ParityCertificate | None = Field(default=None, description="Where --prove asked for it.")


def write_report(report: BaseModel, path: Path) -> None:
    """Write a report, whole or not at all. OutputError where it cannot be written."""
    with publishing([path]) as publication:
        publication.files[0].write(json_bytes(report))
