"""One row of a file to all that is to be said of it: its findings, its row for `--fix-to`, its length."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from sftprep.config.validate import ValidateConfig
from sftprep.data import Conversation, Finding, Json, Severity
from sftprep.errors import UsageError
from sftprep.prepare.row_fit import FitRow, RowFit
from sftprep.records.codes import CODES
from sftprep.records.draft import Format, moved
from sftprep.records.plain_lines import plain_line
from sftprep.sources.blocks import SourceRow
from sftprep.stages.validate import ValidatedRow, validate_row

ONCE_A_FILE: Final = frozenset({"unknown-row-key", "null-as-absent"})
"""The codes of what is said once a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRow:
    """What became of a row. `normal` is its line for `--fix-to`."""

    good: bool
    format: Format | None
    findings: tuple[Finding, ...]
    normal: bytes | None = None
    fit: RowFit | None = None


CheckRow = Callable[[SourceRow], CheckedRow]


@dataclass(slots=True)
class SaidOnce:
    """What is said once a file, for each file that was read."""

    said: set[tuple[str, str, str]] = field(default_factory=set)

    def first(self, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
        """The findings without those that an earlier row of the file had."""
        return tuple(finding for finding in findings if finding.code not in ONCE_A_FILE or self._is_new(finding))

    def _is_new(self, finding: Finding) -> bool:
        key = (finding.address.file, finding.code, finding.pointer if finding.code == "unknown-row-key" else "")
        is_new = key not in self.said
        self.said.add(key)
        return is_new


def checker(config: ValidateConfig) -> CheckRow:
    """How each row of a run is checked.

    Raises:
        UsageError: no format has that name, or the model cannot be used.
        TemplateError: `template-syntax`.
    """
    named = named_format(config.format)
    fit_row = None if config.model is None else _fitter(config.model, config.max_length)
    fixes = config.fix_to is not None
    # Where a row's findings are all that is asked for, nothing is made of a plain chat, which has none.
    takes_lines = fit_row is None and not fixes and named in (None, Format.OPENAI)
    fine = {kind: CheckedRow(good=True, format=kind, findings=()) for kind in (None, *Format)}

    def fitted(row: ValidatedRow, conversation: Conversation) -> tuple[RowFit | None, tuple[Finding, ...]]:
        if fit_row is None:
            return None, ()
        fit, found = fit_row(conversation)
        return fit, tuple(replace(finding, pointer=moved(finding.pointer, row.places)) for finding in found)

    def check(source: SourceRow) -> CheckedRow:
        if takes_lines and not source.dropped_null and plain_line(source.raw) is not None:
            return fine[Format.OPENAI]
        row = validated(source, named)
        findings = row.findings
        if row.conversation is None:
            return CheckedRow(good=False, format=row.format, findings=findings)
        fit, more = fitted(row, row.conversation)
        findings = (*findings, *more)
        if has_error(more):
            return CheckedRow(good=False, format=row.format, findings=findings, fit=fit)
        is_normal = row.format is Format.OPENAI
        normal = (source.raw if is_normal else normal_row(row.conversation)) if fixes else None
        if not findings and normal is None and fit is None:
            return fine[row.format]  # One object for most rows.
        return CheckedRow(good=True, format=row.format, findings=findings, normal=normal, fit=fit)

    return check


def _fitter(model: str, max_length: int | None) -> FitRow:
    # Tokenizers and the hub's client take 0.3 s to import, more than all else that a run without a model needs.
    from sftprep.prepare.fit import fitter

    return fitter(model, max_length=max_length)


def validated(source: SourceRow, named: Format | None) -> ValidatedRow:
    """A row as the stage sees it, with what only its source can know."""
    row = validate_row(source.raw, address=source.address, format=named)
    if not source.dropped_null:
        return row
    code = "null-as-absent"
    what = "the value is null, and was read as absent"
    note = Finding(code, CODES[code].severity, source.address, source.dropped_null, what, CODES[code].hint)
    return replace(row, findings=(*row.findings, note))


def named_format(name: str | None) -> Format | None:
    """The format of that name. UsageError where there is none."""
    if name is None:
        return None
    if name not in list(Format):
        raise UsageError(f"no format is called {name!r}", code="no-such-format", hint=f"one of: {', '.join(Format)}")
    return Format(name)


def has_error(findings: Iterable[Finding]) -> bool:
    """Whether any of them makes a row bad."""
    return any(finding.severity is Severity.ERROR for finding in findings)


def normal_row(conversation: Conversation) -> bytes:
    """A conversation as a line of the format openai: what was absent stays absent, keys keep their order."""
    messages = [
        message if weight == 1.0 else {**message, "weight": weight}
        for message, weight in zip(conversation.messages, conversation.weights, strict=True)
    ]
    row: dict[str, Json] = {"messages": messages}
    if conversation.tools is not None:
        row["tools"] = conversation.tools
    if conversation.template_kwargs:
        row["chat_template_kwargs"] = conversation.template_kwargs
    return json.dumps(row | dict(conversation.metadata), ensure_ascii=False).encode("utf-8")
