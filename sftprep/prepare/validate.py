"""Validate files row by row: `validate_files` is `sftprep validate`, `read_conversations` is what `pack` reads.

from pathlib import Path
from sftprep.config.validate import ValidateConfig
from sftprep.prepare.validate import validate_files

report = validate_files(ValidateConfig(files=(Path("chats.jsonl"),)))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from sftprep.config.validate import ValidateConfig
from sftprep.data import Finding, RowAddress, Severity
from sftprep.errors import SourceError, UsageError
from sftprep.prepare.check import CheckedRow, SaidOnce, checker, named_format, validated
from sftprep.prepare.check_workers import Chunk, check_chunks
from sftprep.prepare.quarantine import Quarantine, check_outputs
from sftprep.prepare.row_fit import FIT_CODES
from sftprep.prepare.tally import FileTally, Tally
from sftprep.records.codes import CODES
from sftprep.reports.findings import ValidationReport, publishing
from sftprep.reports.quality_json import QUALITY_CODES
from sftprep.sources.blocks import SourceRow
from sftprep.sources.compressed import STDIN, OnBytes
from sftprep.sources.lines import read_rows, require_file
from sftprep.sources.paths import expand
from sftprep.stages.validate import ValidatedRow

__all__ = ["ValidationReport", "read_conversations", "validate_files"]

_CHUNK_ROWS: Final = 256
_CHUNK_BYTES: Final = 1 << 20
"""What a chunk holds at most, but for its last row: enough to hide what a process costs, few enough to stay small."""

FILE_CODES: Final = frozenset({"bad-archive", "bad-array", "damaged-table", "empty-file", "not-jsonl", "read-failed"})
"""What can be wrong with a file; the finding is at the row that was reached."""

OnProgress = Callable[[int], None]
"""Told how many more bytes of the files, as stored, have been read."""


def read_conversations(
    path: Path, *, name: str, format: str | None = None, on_bytes: OnBytes | None = None
) -> Iterator[ValidatedRow]:
    """One ValidatedRow for each row that is not blank, in file order; `conversation` is None where it has an error.

    UsageError where the file cannot be opened or no format has that name; SourceError where the file is empty,
    damaged or cut off.
    """
    named = named_format(format)
    once = SaidOnce()
    for source in read_rows(path, name=name, on_bytes=on_bytes):
        row = validated(source, named)
        yield replace(row, findings=once.first(row.findings)) if row.findings else row


def validate_files(config: ValidateConfig, *, on_progress: OnProgress | None = None) -> ValidationReport:
    """Check every row of every file; write the quarantine if it is asked for. Only a wrong call raises.

    UsageError where a file or the model cannot be used, OutputError where the quarantine cannot be written. A file
    that cannot be read to its end is a finding, the rows before that place are counted, and no quarantine is
    published.
    """
    files = expand(config.files)
    for path in files:
        if path != STDIN:
            require_file(path)
    _check_fail_on(config)
    read = (*files, *expand(config.against), *(path for path in (config.quality_config,) if path is not None))
    check_outputs(config, read)
    checker(config)  # What is wrong with the format or the model is found before anything is read.
    tally = Tally(config)
    paths = Quarantine.paths(config)
    with publishing(paths) as publication:
        outputs = Quarantine.of(config, publication.files)
        for chunk, rows in check_chunks(_chunks(files, on_progress), config=config):
            _add(chunk, rows, tally, outputs)
        publication.wanted = all(file.complete for file in tally.files)
    whole = publication.wanted
    return tally.report(published=whole and bool(paths), withheld=not whole and bool(paths))


def _chunks(files: Sequence[Path], on_progress: OnProgress | None) -> Iterator[Chunk]:
    """The rows of all files in order; each file has at least one chunk, and the last says what is wrong with it."""
    for path in files:
        yield from _file_chunks(path, on_progress)


def _file_chunks(path: Path, on_progress: OnProgress | None) -> Iterator[Chunk]:
    rows: list[SourceRow] = []
    num_bytes, is_first, error = 0, True, None
    try:
        for row in read_rows(path, name=str(path), on_bytes=on_progress):
            rows.append(row)
            num_bytes += len(row.raw)
            if len(rows) >= _CHUNK_ROWS or num_bytes >= _CHUNK_BYTES:
                yield Chunk(str(path), rows, is_first=is_first)
                rows, num_bytes, is_first = [], 0, False
    except SourceError as caught:
        error = caught
    yield Chunk(str(path), rows, is_first=is_first, error=error)


def _add(chunk: Chunk, rows: Sequence[CheckedRow], tally: Tally, outputs: Quarantine) -> None:
    if chunk.is_first:
        tally.files.append(FileTally(chunk.file))
    for source, row in zip(chunk.rows, rows, strict=True):
        tally.add(row, source.raw)
        outputs.add(source, row)
    if chunk.error is not None:
        tally.files[-1].complete = False
        tally.add_finding(_file_finding(chunk.error, name=chunk.file), b"")


def _file_finding(error: SourceError, *, name: str) -> Finding:
    """A file's own fault as a finding at the row that was reached."""
    line = error.place.removeprefix(name).removeprefix(":")
    address = RowAddress(name, int(line) if line.isdigit() else 1)
    return Finding(error.code, Severity.ERROR, address, "", error.message, error.hint)


def _check_fail_on(config: ValidateConfig) -> None:
    known = {*CODES, *FILE_CODES, *FIT_CODES, *QUALITY_CODES, "error", "warning"}
    for name in config.fail_on:
        if name not in known:
            hint = "error, warning, or a code of README's list of findings"
            raise UsageError(f"no finding has the code {name!r}", code="no-such-code", place="--fail-on", hint=hint)
        if name in QUALITY_CODES and not config.measures_quality:
            hint = "add --quality"
            raise UsageError(f"{name} is not looked for", code="no-such-code", place="--fail-on", hint=hint)
