"""The mask-audit report: what a machine reads, and what the other reports show."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from sftprep.reports.findings import publishing
from sftprep.stages.lengths import PaddingWaste, Quantiles


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KindCount(_Frozen):
    """Tokens of one reason."""

    kind: str = Field(description="The span kind, lower case: why these tokens are, or are not, trained.")
    role: str = Field(description="Who wrote them: template, system, user, tool or assistant.")
    trained: bool
    num_tokens: int
    share: float = Field(description="Of all tokens, in [0, 1].")


class AuditFinding(_Frozen):
    """A promise that rows of the set break."""

    code: str
    num_rows: int
    rows: list[int] = Field(description="The first of them, counted from 0 through all shards.")


class AuditReport(_Frozen):
    """What the shards hold, counted on every row, and whether they keep what a shard set promises."""

    passed: bool = Field(description="No finding.")
    directory: str
    fingerprint: str
    model: str
    num_rows: int
    num_documents: int
    num_tokens: int
    num_trained: int
    trained_share: float
    weight_sum: float
    kinds: list[KindCount]
    lengths: Quantiles = Field(description="Tokens a document.")
    trained_lengths: Quantiles = Field(description="Trained tokens a document.")
    row_fill: float = Field(description="Share of positions that hold tokens where rows are padded to max_length.")
    max_length: int
    packing: bool
    waste: PaddingWaste
    left_out: dict[str, int] = Field(description="Rows left out when packing, by code.")
    findings: list[AuditFinding]


def write_report(report: AuditReport, path: Path) -> None:
    """Write the report, whole or not at all. OutputError where it cannot be written."""
    with publishing([path]) as publication:
        publication.files[0].write(report.model_dump_json(indent=2).encode("utf-8") + b"\n")
