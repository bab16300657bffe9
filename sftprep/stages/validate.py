"""One line's bytes to a conversation, or to everything that is wrong with it. Bad data never raises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sftprep.data import Conversation, Finding, RowAddress, Severity
from sftprep.records.codes import CODES, Fault
from sftprep.records.draft import Format
from sftprep.records.json_text import parse_json
from sftprep.records.read import read_record
from sftprep.records.text_rules import may_be_broken
from sftprep.records.wire_errors import describe


@dataclass(frozen=True, slots=True)
class ValidatedRow:
    """A row's conversation, None where any finding is an error, and all its findings in a fixed order."""

    address: RowAddress
    conversation: Conversation | None
    findings: tuple[Finding, ...]


def validate_row(raw: bytes, *, address: RowAddress, format: Format, detected: bool = False) -> ValidatedRow:
    """Validate one row. `detected` says that the format was found, not named: ambiguous rows are then refused."""
    value, faults, readable = parse_json(raw)
    if readable and not isinstance(value, dict):
        faults = (*faults, Fault("not-an-object", "", f"the row is {describe(value)}, must be an object"))
    elif readable:
        reading = read_record(value, row_format=format, detected=detected, suspect=may_be_broken(raw))
        faults = (*faults, *reading.faults)
        draft = reading.draft
        if draft is not None and not (faults and _has_error(faults)):
            conversation = Conversation(
                address, draft.messages, draft.weights, draft.tools, draft.template_kwargs, draft.metadata
            )
            return ValidatedRow(address, conversation, _findings(faults, address))
    return ValidatedRow(address, None, _findings(faults, address))


def _has_error(faults: Iterable[Fault]) -> bool:
    return any(CODES[fault.code].severity is Severity.ERROR for fault in faults)


def _findings(faults: Iterable[Fault], address: RowAddress) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            code=fault.code,
            severity=CODES[fault.code].severity,
            address=address,
            pointer=fault.pointer,
            message=fault.message,
            hint=fault.hint or CODES[fault.code].hint,
        )
        for fault in faults
    )
