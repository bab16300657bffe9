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
from sftprep.errors import SourceError, UsageError
from sftprep.prepare.check import SaidOnce, checker, named_format, validated
from sftprep.prepare.check_block import CheckedBlock
from sftprep.prepare.check_workers import Chunk, check_chunks
from sftprep.prepare.quarantine import Quarantine, check_outputs
from sftprep.prepare.row_fit import FIT_CODES
from sftprep.prepare.tally import FileTally, Tally
from sftprep.records.codes import CODES
from sftprep.reports.findings import ValidationReport
from sftprep.reports.publication import publishing
from sftprep.reports.quality_json import QUALITY_CODES
from sftprep.sources.compressed import STDIN, OnBytes
from sftprep.sources.lines import read_blocks, read_rows, require_source
from sftprep.sources.paths import expand
from sftprep.sources.stored import shared_blocks
from sftprep.stages.validate import ValidatedRow

__all__ = ["ValidationReport", "read_conversations", "validate_files"]

FILE_CODES: Final = frozenset(
    {"bad-archive", "bad-array", "damaged-table", "empty-file", "not-jsonl", "read-failed", "source-changed"}
)
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
            require_source(path)
    _check_fail_on(config)
    read = (*files, *expand(config.against), *(path for path in (config.quality_config,) if path is not None))
    check_outputs(config, read)
    checker(config)  # What is wrong with the format or the model is found before anything is read.
    tally = Tally(config)
    paths = Quarantine.paths(config)
    with publishing(paths) as publication:
        outputs = Quarantine.of(config, publication.files)
        chunks = _chunks(files, on_progress, shared=config.workers > 1)
        for chunk, block in check_chunks(chunks, config=config):
            _add(chunk, block, tally, outputs)
        publication.wanted = all(file.complete for file in tally.files)
    whole = publication.wanted
    return tally.report(published=whole and bool(paths), withheld=not whole and bool(paths))


def _chunks(files: Sequence[Path], on_progress: OnProgress | None, *, shared: bool) -> Iterator[Chunk]:
    """The blocks of all files in order; before those of a file a chunk that begins it, and after them what is wrong.

    `shared`: other processes will read the blocks' rows.
    """
    for path in files:
        name = str(path)
        yield Chunk(name)
        try:
            # Children read a plain file themselves: what is sent to them is copied four times on its way.
            for block in (shared_blocks if shared else read_blocks)(path, name=name, on_bytes=on_progress):
                yield Chunk(name, block)
        except SourceError as error:
            yield Chunk(name, error=error)


def _add(chunk: Chunk, block: CheckedBlock | None, tally: Tally, outputs: Quarantine) -> None:
    if block is None and chunk.error is None:
        tally.files.append(FileTally(chunk.file))
    elif tally.files[-1].complete:  # Else a row's values were found damaged when more of the file had been cut.
        if block is not None:
            tally.add(block)
            outputs.add(block)
        error = chunk.error if block is None else block.damage
        if error is not None:
            tally.end_file(error)


def _check_fail_on(config: ValidateConfig) -> None:
    known = {*CODES, *FILE_CODES, *FIT_CODES, *QUALITY_CODES, "error", "warning"}
    for name in config.fail_on:
        if name not in known:
            hint = "error, warning, or a code of README's list of findings"
            raise UsageError(f"no finding has the code {name!r}", code="no-such-code", place="--fail-on", hint=hint)
        if name in QUALITY_CODES and not config.measures_quality:
            hint = "add --quality"
            raise UsageError(f"{name} is not looked for", code="no-such-code", place="--fail-on", hint=hint)
