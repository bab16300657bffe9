"""A tally as the report: shares, quantiles, bins, findings ranked, and the conditions that a caller sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from sftprep.config.audit import LIMITS, Gate
from sftprep.data import TRAINED_KINDS, SpanKind
from sftprep.prepare.audit_tally import NUM_BINS, Tally, tally
from sftprep.reports.mask_json import (
    FINDING_TEXTS,
    AuditFinding,
    AuditReport,
    Bin,
    GateResult,
    KindCount,
    SourceCount,
    StopCount,
)
from sftprep.reports.mask_view import ROLES
from sftprep.reports.parity_json import PROVEN, ParityCertificate
from sftprep.reports.wording import counted
from sftprep.shards.manifest import Manifest
from sftprep.shards.read import ShardSet
from sftprep.stages.lengths import LengthCounts, PaddingWaste

_SCAFFOLD: Final = (SpanKind.HEADER, SpanKind.SEPARATOR)


def summarise(shards: ShardSet) -> AuditReport:
    """Count and check every row of an open set."""
    return report(shards, tally(shards))


def report(shards: ShardSet, total: Tally) -> AuditReport:
    """The report of a whole set."""
    manifest = shards.manifest
    findings = _findings(total)
    return AuditReport(
        passed=not findings,
        directory=str(shards.place),
        fingerprint=manifest.fingerprint,
        model=manifest.model.name,
        num_rows=total.num_rows,
        num_documents=total.lengths.total,
        num_tokens=total.num_tokens,
        num_trained=total.num_trained,
        trained_share=total.num_trained / max(total.num_tokens, 1),
        scaffold_tokens_in_loss=int(sum(total.kind_trained[kind] for kind in _SCAFFOLD)),
        weight_sum=total.weight_sum,
        has_weights=manifest.has_weights,
        num_turns=total.turns,
        num_stopped=total.stopped,
        stops=_stops(manifest, total),
        kinds=_kinds(total),
        sources=_sources(manifest, total),
        lengths=total.lengths.quantiles(),
        trained_lengths=total.trained_lengths.quantiles(),
        length_bins=_bins(total.lengths, stop=int(total.lengths.quantiles().max)),
        share_bins=[_bin(number, int(count)) for number, count in enumerate(total.share_bins)],
        fill_bins=_fill_bins(total.row_lengths, manifest.max_length),
        row_fill=total.num_tokens / max(total.num_rows * manifest.max_length, 1),
        documents_a_row=total.lengths.total / max(total.num_rows, 1),
        max_length=manifest.max_length,
        packing=manifest.packing,
        waste=PaddingWaste(**manifest.waste.model_dump()),
        num_left_out=manifest.left_out.num_rows,
        num_taken=sum(source.num_taken for source in manifest.sources),
        trained_lost=0 if manifest.over_length is None else manifest.over_length.num_trained_lost,
        left_out=manifest.left_out.by_code,
        classes=manifest.counts.documents_by_class,
        remarks=manifest.counts.remarks,
        num_conversations=manifest.counts.num_conversations,
        repeated_tokens=manifest.counts.repeated_tokens,
        findings=findings,
    )


def _findings(total: Tally) -> list[AuditFinding]:
    ranked = sorted(total.found.items(), key=lambda item: (-item[1].count, item[0]))
    return [
        AuditFinding(code=code, message=FINDING_TEXTS[code], num_rows=rows.count, rows=rows.first)
        for code, rows in ranked
    ]


def _stops(manifest: Manifest, total: Tally) -> list[StopCount]:
    names = dict(zip(manifest.model.stop_ids, manifest.model.stop_tokens, strict=True))
    return [StopCount(id=i, token=names.get(i, ""), num_turns=count) for i, count in total.stops.most_common()]


def _kinds(total: Tally) -> list[KindCount]:
    tokens = total.kind_tokens.sum(axis=0)
    return [
        KindCount(
            kind=kind.name.lower(),
            role=ROLES.get(kind, "template"),
            trained=kind in TRAINED_KINDS,
            num_tokens=int(tokens[kind]),
            num_trained=int(total.kind_trained[kind]),
            share=int(tokens[kind]) / max(total.num_tokens, 1),
        )
        for kind in SpanKind
        if tokens[kind]
    ]


def _sources(manifest: Manifest, total: Tally) -> list[SourceCount]:
    return [
        SourceCount(
            name=source.name,
            num_documents=int(total.source_documents[number]),
            num_tokens=int(total.kind_tokens[number].sum()),
            num_trained=int(total.source_trained[number]),
            tokens_by_role=_by_role(total, number),
        )
        for number, source in enumerate(manifest.sources)
    ]


def _by_role(total: Tally, number: int) -> dict[str, int]:
    roles: dict[str, int] = {}
    for kind in SpanKind:
        count = int(total.kind_tokens[number, kind])
        if count:
            role = ROLES.get(kind, "template")
            roles[role] = roles.get(role, 0) + count
    return roles


def _bins(lengths: LengthCounts, *, stop: int) -> list[Bin]:
    """Of equal width, over [0, stop]."""
    width = max(1, -(-(stop + 1) // NUM_BINS))
    padded = np.zeros(width * NUM_BINS, np.int64)
    padded[: len(lengths.counts)] = lengths.counts[: len(padded)]
    sums = padded.reshape(NUM_BINS, width).sum(axis=1)
    return [Bin(start=n * width, stop=(n + 1) * width, count=int(count)) for n, count in enumerate(sums)]


def _bin(number: int, count: int) -> Bin:
    return Bin(start=number / NUM_BINS, stop=(number + 1) / NUM_BINS, count=count)


def _fill_bins(row_lengths: LengthCounts, max_length: int) -> list[Bin]:
    number = np.minimum(np.arange(len(row_lengths.counts)) * NUM_BINS // max_length, NUM_BINS - 1)
    sums = np.bincount(number, weights=row_lengths.counts, minlength=NUM_BINS)
    return [_bin(n, int(count)) for n, count in enumerate(sums)]


def waived(found: AuditReport, allowed: Sequence[str]) -> AuditReport:
    """The report with the findings of these codes waived (B4)."""
    findings = [f.model_copy(update={"allowed": f.code in allowed}) for f in found.findings]
    return found.model_copy(update={"findings": findings, "passed": all(f.allowed for f in findings)})


def proven(found: AuditReport, certificate: ParityCertificate) -> AuditReport:
    """The report with its certificate; what is not proven has not passed."""
    passed = found.passed and certificate.verdict in PROVEN
    return found.model_copy(update={"parity": certificate, "passed": passed})


def gated(found: AuditReport, gates: Sequence[Gate]) -> AuditReport:
    """The report with the results of its conditions; one that does not hold fails the audit."""
    results = [_result(found, gate) for gate in gates]
    passed = found.passed and all(result.passed for result in results)
    return found.model_copy(update={"gates": [*found.gates, *results], "passed": passed})


def _result(found: AuditReport, gate: Gate) -> GateResult:
    if gate.code == "trained-share":
        share = found.trained_share
        return GateResult(gate=gate.text, found=f"{share:.4f}", passed=gate.low <= share <= gate.high)
    if gate.code in LIMITS:
        return _at_most(found, gate)
    if gate.code == "stop-untrained":
        missing = found.num_turns - found.num_stopped
        return GateResult(
            gate=gate.text, found=f"{missing:,} of {counted(found.num_turns, 'turn')}", passed=not missing
        )
    if gate.code == "has-weights":
        text = "weights that other trainers ignore: train with sftprep train" if found.has_weights else "none"
        return GateResult(gate=gate.text, found=text, passed=not found.has_weights)
    if gate.code == "parity":
        parity = found.parity
        text = "nothing was compared" if parity is None else f"{parity.parity:.4%}, {parity.verdict}"
        return GateResult(gate=gate.text, found=text, passed=parity is not None and parity.verdict in PROVEN)
    rows = sum(finding.num_rows for finding in found.findings if finding.code == gate.code)
    return GateResult(gate=gate.text, found=counted(rows, "row"), passed=not rows)


def _at_most(found: AuditReport, gate: Gate) -> GateResult:
    """Rows left out of all rows taken, or trained tokens lost of all that there were."""
    if gate.code == "left-out":
        lost, whole, unit = found.num_left_out, found.num_taken, "rows"
    else:
        lost, whole, unit = found.trained_lost, found.num_trained + found.trained_lost, "tokens"
    amount = lost / max(whole, 1) if gate.is_share else lost
    text = f"{amount:.4%}" if gate.is_share else f"{amount:,} {unit}"
    return GateResult(gate=gate.text, found=text, passed=amount <= gate.high)
