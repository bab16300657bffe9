"""Validate files row by row: `validate_files` is `sftprep validate`, `read_conversations` is what `pack` reads.

from pathlib import Path
from sftprep.config.validate import ValidateConfig
from sftprep.prepare.validate import validate_files

report = validate_files(ValidateConfig(files=(Path("chats.jsonl"),)))
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Final

from sftprep.config.validate import ValidateConfig
from sftprep.data import Finding, Json, RowAddress, Severity
from sftprep.errors import OutputError, SourceError, UsageError
from sftprep.records.detect import detect_format
from sftprep.records.draft import Format
from sftprep.records.json_text import parse_json
from sftprep.reports.findings import FileCounts, ValidationReport, publishing
from sftprep.sources.lines import OnBytes, SourceRow, read_rows, require_file
from sftprep.stages.validate import ValidatedRow, validate_row

__all__ = ["ValidationReport", "read_conversations", "validate_files"]

_ONCE_A_FILE: Final = "unknown-row-key"

OnProgress = Callable[[int], None]
"""Told how many more bytes of the files, as stored, have been read."""


def read_conversations(
    path: Path, *, name: str, format: str | None = None, on_bytes: OnBytes | None = None
) -> Iterator[ValidatedRow]:
    """One ValidatedRow for each row that is not blank, in file order; `conversation` is None where it has an error.

    UsageError where the file cannot be opened or no format has that name; SourceError where the format is not certain
    (`ambiguous-format`, `unknown-format`) or the file is empty, damaged or cut off.
    """
    named = _named_format(format)
    found = _format_of(path, name=name, named=named)
    for _, row in _checked_rows(_Reading(path, name, found, detected=named is None), on_bytes=on_bytes):
        yield row


def validate_files(config: ValidateConfig, *, on_progress: OnProgress | None = None) -> ValidationReport:
    """Check every row of every file; write the quarantine if it is asked for. Only a wrong call raises.

    UsageError where a file cannot be opened, OutputError where the quarantine cannot be written. A file that cannot
    be read to its end is a finding, the rows before that place are counted, and no quarantine is published.
    """
    for path in config.files:
        require_file(path)
    _named_format(config.format)
    _check_outputs(config)
    tally = _Tally(limit=config.max_errors)
    paths = [path for path in (config.good, config.bad) if path is not None]
    with publishing(paths) as publication:
        outputs = _Quarantine.of(config, publication.files)
        counts = [_validate_file(path, config, _Run(tally, outputs, on_progress)) for path in config.files]
        publication.wanted = all(file.complete for file in counts)
    return _report(config, tally, counts, published=publication.wanted and bool(paths))


@dataclass(slots=True)
class _Tally:
    """Counts of everything, and the first findings of each severity."""

    limit: int
    by_severity: Counter[Severity] = field(default_factory=Counter)
    by_code: Counter[str] = field(default_factory=Counter)
    listed: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        self.by_code[finding.code] += 1
        self.by_severity[finding.severity] += 1
        if not self.limit or self.by_severity[finding.severity] <= self.limit:
            self.listed.append(finding)


@dataclass(frozen=True, slots=True)
class _Quarantine:
    """Where good and bad rows go; None: nowhere."""

    good: BinaryIO | None
    bad: BinaryIO | None

    @classmethod
    def of(cls, config: ValidateConfig, files: list[BinaryIO]) -> _Quarantine:
        remaining = iter(files)
        good = next(remaining) if config.good is not None else None
        return cls(good=good, bad=next(remaining) if config.bad is not None else None)

    def add(self, source: SourceRow, row: ValidatedRow) -> None:
        if row.conversation is not None and self.good is not None:
            self.good.write(source.raw + b"\n")
        elif row.conversation is None and self.bad is not None:
            self.bad.write(_bad_line(source, row))


def _bad_line(source: SourceRow, row: ValidatedRow) -> bytes:
    """A bad row and its findings as one line of JSON; `raw_base64` holds what is not UTF-8."""
    keys = ("code", "severity", "pointer", "message", "hint")
    findings = [{key: getattr(finding, key) for key in keys} for finding in row.findings]
    entry: dict[str, Json] = {"file": source.address.file, "line": source.address.line, "findings": findings}
    try:
        entry["raw"] = source.raw.decode("utf-8")
    except UnicodeDecodeError:
        entry["raw_base64"] = base64.b64encode(source.raw).decode("ascii")
    return json.dumps(entry).encode("ascii") + b"\n"


@dataclass(frozen=True, slots=True)
class _Run:
    tally: _Tally
    outputs: _Quarantine
    on_progress: OnProgress | None


@dataclass(slots=True)
class _FileState:
    """What is known of a file while it is read."""

    format: Format | None = None
    rows_in: int = 0
    good: int = 0
    by_code: Counter[str] = field(default_factory=Counter)


def _validate_file(path: Path, config: ValidateConfig, run: _Run) -> FileCounts:
    state = _FileState()
    complete = True
    try:
        for finding in _checked_file(path, config, run, state):
            state.by_code[finding.code] += 1
            run.tally.add(finding)
    except SourceError as error:
        complete = False
        finding = _file_finding(error, name=str(path))
        state.by_code[finding.code] += 1
        run.tally.add(finding)
    return FileCounts(
        file=str(path),
        format=state.format,
        complete=complete,
        rows_in=state.rows_in,
        good=state.good,
        bad=state.rows_in - state.good,
        by_code=dict(sorted(state.by_code.items())),
    )


def _checked_file(path: Path, config: ValidateConfig, run: _Run, state: _FileState) -> Iterator[Finding]:
    """All findings of a file's rows, while rows are counted and quarantined."""
    state.format = _format_of(path, name=str(path), named=_named_format(config.format))
    reading = _Reading(path, str(path), state.format, detected=config.format is None)
    for source, row in _checked_rows(reading, on_bytes=run.on_progress):
        state.rows_in += 1
        state.good += row.conversation is not None
        run.outputs.add(source, row)
        yield from row.findings


def _file_finding(error: SourceError, *, name: str) -> Finding:
    """A file's own fault as a finding at the line that was reached."""
    line = error.place.removeprefix(name).removeprefix(":")
    address = RowAddress(name, int(line) if line.isdigit() else 1)
    return Finding(error.code, Severity.ERROR, address, "", error.message, error.hint)


@dataclass(frozen=True, slots=True)
class _Reading:
    path: Path
    name: str
    format: Format
    detected: bool


def _checked_rows(reading: _Reading, *, on_bytes: OnBytes | None) -> Iterator[tuple[SourceRow, ValidatedRow]]:
    said: set[str] = set()
    for source in read_rows(reading.path, name=reading.name, on_bytes=on_bytes):
        row = validate_row(source.raw, address=source.address, format=reading.format, detected=reading.detected)
        yield source, (_said_once(row, said) if row.findings else row)


def _said_once(row: ValidatedRow, said: set[str]) -> ValidatedRow:
    """The row without the notes on unknown keys that were given for an earlier row."""
    findings = []
    for finding in row.findings:
        if finding.code != _ONCE_A_FILE:
            findings.append(finding)
        elif finding.pointer not in said:
            said.add(finding.pointer)
            findings.append(finding)
    return replace(row, findings=tuple(findings))


def _named_format(name: str | None) -> Format | None:
    if name is None:
        return None
    if name not in list(Format):
        raise UsageError(f"no format is called {name!r}", code="no-such-format", hint=f"one of: {', '.join(Format)}")
    return Format(name)


def _format_of(path: Path, *, name: str, named: Format | None) -> Format:
    """The named format, else the detected one; where no line holds an object any will do, as every row is bad."""
    return named or detect_format(_objects(path, name=name), place=name) or Format.OPENAI


def _objects(path: Path, *, name: str) -> Iterator[Mapping[str, Json]]:
    for source in read_rows(path, name=name):
        value = parse_json(source.raw).value
        if isinstance(value, dict):
            yield value


def _check_outputs(config: ValidateConfig) -> None:
    """OutputError where an output would replace an input, or another output, or be compressed by name only."""
    taken = {path.resolve() for path in config.files}
    for path in (config.good, config.bad, config.json_file):
        if path is None:
            continue
        place = str(path)
        if path.resolve() in taken or any(path.exists() and path.samefile(other) for other in config.files):
            hint = "give every output a name of its own"
            raise OutputError("is an input or another output", code="output-in-use", place=place, hint=hint)
        if path.suffix in {".gz", ".zst"}:
            raise OutputError("outputs are not compressed", code="output-suffix", place=place, hint="name it .jsonl")
        if path.is_dir() or not path.parent.is_dir():
            hint = "name a file in a directory that exists"
            raise OutputError("is not a place for a file", code="no-such-directory", place=place, hint=hint)
        taken.add(path.resolve())


def _report(config: ValidateConfig, tally: _Tally, files: list[FileCounts], *, published: bool) -> ValidationReport:
    errors, warnings = tally.by_severity[Severity.ERROR], tally.by_severity[Severity.WARNING]
    return ValidationReport(
        passed=not errors and not (warnings and config.fail_on == "warning"),
        fail_on=config.fail_on,
        rows_in=sum(file.rows_in for file in files),
        good=sum(file.good for file in files),
        bad=sum(file.bad for file in files),
        num_errors=errors,
        num_warnings=warnings,
        by_code=dict(sorted(tally.by_code.items())),
        files=files,
        findings=tally.listed,
        num_unlisted=errors + warnings - len(tally.listed),
        quarantine_published=published,
    )
