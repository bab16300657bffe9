"""One line's bytes to a conversation, or to everything that is wrong with it. Bad data never raises."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sftprep.data import Conversation, Finding, RowAddress, Severity
from sftprep.records.codes import CODES, Fault
from sftprep.records.draft import Format
from sftprep.records.json_text import parse_json
from sftprep.records.plain import is_suspect
from sftprep.records.read import read_record
from sftprep.records.wire_errors import describe


@dataclass(frozen=True, slots=True)
class ValidatedRow:
    """A row's conversation, None where any finding is an error, and all its findings in a fixed order.

    `format` is the one that the row was read in; None where it could not be told. `places` has for each message a
    pointer to what it was made from, where that is not `/messages/<index>`.
    """

    address: RowAddress
    conversation: Conversation | None
    findings: tuple[Finding, ...]
    format: Format | None = None
    places: Sequence[str] | None = None


def validate_row(raw: bytes, *, address: RowAddress, format: Format | None) -> ValidatedRow:
    """Validate one row, in the format named, or, with None, in the one whose keys it has."""
    suspect = is_suspect(raw)
    value, faults, readable = parse_json(raw, countable=not suspect)
    if not readable:
        return ValidatedRow(address, None, _findings(faults, address))
    if not isinstance(value, dict):
        fault = Fault("not-an-object", "", f"the row is {describe(value)}, must be an object")
        return ValidatedRow(address, None, _findings((*faults, fault), address))
    record = read_record(value, named=format, suspect=suspect)
    draft, faults = record.draft, (*faults, *record.faults)
    if draft is None or (faults and _has_error(faults)):
        return ValidatedRow(address, None, _findings(faults, address), record.format)
    conversation = Conversation(
        address, draft.messages, draft.weights, draft.tools, draft.template_kwargs, draft.metadata
    )
    return ValidatedRow(address, conversation, _findings(faults, address), record.format, draft.places)


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
