"""Why a pack publishes nothing: rows that cannot be exact and may not be left out, or masks that fail their audit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from sftprep.config.pack import OverLength, PackConfig
from sftprep.errors import DataError, ShardError
from sftprep.prepare.chunk import OVER_LENGTH
from sftprep.prepare.ledger import Ledger
from sftprep.prepare.left_out import left_out_lines
from sftprep.reports.mask_json import AuditReport
from sftprep.reports.wording import counted

OnLeftOut = Callable[[str], None]
"""Told each finding of a left-out row, in words, where the run is refused because of them."""


def refusal(ledger: Ledger, config: PackConfig) -> DataError | None:
    """Why nothing may be published, if so."""
    account, num_rows = ledger.left_out, ledger.num_taken_rows
    hint = by_code(account.by_code, hints=account.hints)
    if account.num_over_length and config.over_length is OverLength.REFUSE:
        return DataError(
            f"{account.num_over_length:,} of {counted(num_rows, 'row')} longer than --max-length "
            f"{config.max_length:,}, the longest of {counted(account.longest, 'token')}: nothing was published",
            code=OVER_LENGTH,
            hint=hint,
        )
    if not config.may_drop(account.num_rows, num_rows=num_rows):
        return too_many(account.num_rows, config, num_rows=num_rows, hint=hint)
    if not ledger.num_conversations:
        return DataError("no row is left to pack: nothing was published", code="nothing-to-pack", hint=hint)
    return None


def too_many(num_left_out: int, config: PackConfig, *, num_rows: int, hint: str) -> DataError:
    """The error of more rows that cannot be packed than may be left out."""
    return DataError(
        f"{num_left_out:,} of {counted(num_rows, 'row')} cannot be packed and --max-drop allows {config.max_drop}: "
        "nothing was published",
        code="rows-left-out",
        hint=hint,
    )


def by_code(by_code: Mapping[str, int], *, hints: Mapping[str, str]) -> str:
    """`control-token 12: what to do`, the most frequent code first."""
    ranked = sorted(by_code.items(), key=lambda item: (-item[1], item[0]))
    return "\n        ".join(f"{code} {count:,}: {hints.get(code) or 'see its rows'}" for code, count in ranked)


def tell(left_out: Iterable[bytes], on_left_out: OnLeftOut | None) -> None:
    """Every finding of the lines of `left_out.jsonl`, in words."""
    if on_left_out is not None:
        for line in left_out_lines(left_out):
            on_left_out(line)


def refuse_failed(audit: AuditReport, config: PackConfig) -> None:
    """A set that breaks what a shard set promises is a fault of sftprep's own; it is never published.

    The template's own tags promise nothing of stop tokens: the audit says so, and whoever asked for them has them.
    """
    expected = {"stop-untrained"} if config.mask == "generation-tags" else set()
    findings = [finding for finding in audit.findings if finding.code not in expected]
    if not audit.passed and (findings or not expected):
        found = ", ".join(f"{finding.code} in {counted(finding.num_rows, 'row')}" for finding in findings)
        raise ShardError(f"the written shards fail their audit: {found}: nothing was published", code="audit-failed")
