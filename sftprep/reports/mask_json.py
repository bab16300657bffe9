"""The mask report as a value: what is trained, why, and whether every invariant held; it is JSON as it stands."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from sftprep.data import Severity
from sftprep.stages.lengths import PaddingWaste, Quantiles


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenShare(_Frozen):
    """Tokens of one kind, role or source."""

    name: str
    num_tokens: int
    num_trained: int
    token_share: float = Field(description="Of all tokens, in [0, 1].")
    trained_share: float = Field(description="Of these tokens, in [0, 1].")


class KindShare(TokenShare):
    """Tokens of one span kind, and who wrote them."""

    role: str


class SourceShare(TokenShare):
    """Tokens of one source file."""

    num_documents: int


class AuditFinding(_Frozen):
    """Something that does not hold, and the first rows where."""

    code: str
    severity: Severity
    num_rows: int = Field(description="Rows that have it; 0 where it is about the whole set.")
    rows: list[int] = Field(description="The first of them, counted from 0.")
    message: str


class AuditReport(_Frozen):
    """What a shard set trains and why, counted on every row as it is on disk."""

    fingerprint: str
    model: str
    packing: bool
    max_length: int
    num_rows: int
    num_documents: int
    num_tokens: int
    num_trained: int
    trained_share: float
    weight_sum: float
    num_turns: int = Field(description="Turns that have trained tokens.")
    num_turns_stopped: int = Field(description="Those of them whose stop token is trained: all of them, or a finding.")
    num_untrained_documents: int = Field(description="Documents without a trained token.")
    kinds: list[KindShare]
    roles: list[TokenShare]
    sources: list[SourceShare]
    lengths: Quantiles = Field(description="Tokens a document.")
    trained_lengths: Quantiles = Field(description="Trained tokens a document.")
    length_histogram: list[int] = Field(description="Documents by length: bin i holds lengths in [2^i, 2^(i+1)).")
    fill: float = Field(description="Share of the rows' room, at max_length a row, that holds tokens.")
    fill_histogram: list[int] = Field(description="Rows by fill, in twenty equal bins from 0 to 1.")
    documents_per_row: float
    waste: PaddingWaste
    left_out: dict[str, int] = Field(description="Rows that pack left out, by code.")
    findings: list[AuditFinding] = Field(description="Gravest first.")

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)
