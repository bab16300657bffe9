"""What a pack run tells: the audit of its shards' masks, and what other choices would have done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from sftprep.prepare.ledger import Ledger
from sftprep.reports.mask_json import AuditReport
from sftprep.reports.pack_terminal import OverLengthLine, PackSummary, SourceLine
from sftprep.shards.manifest import LeftOut, Lengths, Manifest, OverLengthRecord, Waste
from sftprep.stages.lengths import COMMON_MAX_LENGTHS, DropAt, Quantiles, drops, quantiles

REPORT_NAME: Final = "report.json"
"""Beside the manifest."""

RUN_NAME: Final = "run.json"
"""Beside it, and of no fingerprint: how the rows were made decides no byte of them."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DropRecord(_Frozen):
    """What one --max-length would do to the conversations of this input."""

    max_length: int
    num_conversations: int = Field(description="Longer ones: `--over-length drop` leaves them out, `refuse` fails.")
    num_tokens: int = Field(description="Their tokens.")
    conversation_share: float
    token_share: float


class PackReport(_Frozen):
    """`report.json` of a shard set."""

    fingerprint: str
    row_lengths: Lengths = Field(
        description="Tokens of the longest document of each exact conversation, those over --max-length among them."
    )
    drops: list[DropRecord] = Field(description="By --max-length, up to the first that drops nothing.")
    waste: Waste
    left_out: LeftOut
    over_length: OverLengthRecord | None
    over_length_tokens: int = Field(description="Tokens of the conversations that are exact and too long.")
    audit: AuditReport = Field(description="Of every row, as it was read back from the shards before publishing.")
    warnings: dict[str, int] = Field(description="Warnings of validation by code; their rows are kept.")


class RunReport(_Frozen):
    """`run.json` of a shard set: how this run came to its rows. Another run of the same call may say otherwise."""

    num_rows: int = Field(description="Rows that have no error of validation.")
    num_planned: int = Field(description="Rows that a plan of their shape rendered.")
    num_opaque: int = Field(description="Rows that went through the template by themselves: their shape has no plan.")
    planned_share: float
    opaque_share: float
    num_checked: int = Field(description="Rows that were encoded or compiled again in another way, and agreed.")
    rows_by_engine: dict[str, int] = Field(description="Planned rows by the tokenizer engine that encoded them.")
    engine_differed: str = Field(description="The row for which a fast engine gave other ids, empty where none did.")


def build_run(rendering: Mapping[str, int], *, engine_differed: str) -> RunReport:
    """What is told of a run: `rendering` as chunks count it."""
    planned, opaque = rendering.get("replayed", 0), rendering.get("traced", 0)
    engines = {name.removeprefix("engine "): n for name, n in rendering.items() if name.startswith("engine ")}
    return RunReport(
        num_rows=planned + opaque,
        num_planned=planned,
        num_opaque=opaque,
        planned_share=planned / max(1, planned + opaque),
        opaque_share=opaque / max(1, planned + opaque),
        num_checked=rendering.get("checked", 0),
        rows_by_engine=dict(sorted(engines.items())),
        engine_differed=engine_differed,
    )


def build_report(manifest: Manifest, ledger: Ledger, *, audit: AuditReport) -> PackReport:
    """The report of a set that is about to be published."""
    longest, num_tokens = ledger.row_lengths
    lengths = sorted({*COMMON_MAX_LENGTHS, manifest.max_length})
    return PackReport(
        fingerprint=manifest.fingerprint,
        row_lengths=Lengths(**asdict(quantiles(longest))),
        drops=[DropRecord(**asdict(drop)) for drop in drops(longest, num_tokens=num_tokens, max_lengths=lengths)],
        waste=manifest.waste,
        left_out=manifest.left_out,
        over_length=manifest.over_length,
        over_length_tokens=ledger.left_out.num_tokens,
        # The directory of the moment is a hidden one; the report lies in the set itself.
        audit=audit.model_copy(update={"directory": "."}),
        warnings=dict(sorted(ledger.warnings.items())),
    )


def _told(manifest: Manifest) -> OverLengthLine | None:
    record = manifest.over_length
    return OverLengthLine(**record.model_dump()) if record is not None and record.num_rows else None


def summary(manifest: Manifest, report: PackReport, *, out: str, unchanged: bool) -> PackSummary:
    """What the terminal shows of a set."""
    counts = manifest.counts
    fields = {"name", "num_rows", "epochs", "num_taken", "num_documents", "num_left_out"}
    return PackSummary(
        out=out,
        fingerprint=manifest.fingerprint,
        unchanged=unchanged,
        packing=manifest.packing,
        max_length=manifest.max_length,
        num_conversations=counts.num_conversations,
        num_documents=counts.num_documents,
        num_packs=counts.num_packs,
        num_tokens=counts.num_tokens,
        num_turns=counts.num_turns,
        repeated_tokens=counts.repeated_tokens,
        classes=counts.documents_by_class,
        remarks=counts.remarks,
        over_length=_told(manifest),
        sources=[SourceLine(**source.model_dump(include=fields)) for source in manifest.sources],
        warnings=report.warnings,
        lengths=Quantiles(**report.row_lengths.model_dump()),
        drops=[DropAt(**drop.model_dump()) for drop in report.drops],
    )
