"""The input files of a pack: known by their bytes, read row by row, each row with how often it is taken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Final

from sftprep.config.pack import PackConfig, SourceSpec
from sftprep.errors import SourceError
from sftprep.prepare.chunk import InputRow
from sftprep.prepare.mix import row_times
from sftprep.prepare.validate import read_conversations
from sftprep.sources.compressed import OnBytes
from sftprep.sources.lines import file_sha256, read_rows

CHUNK_ROWS: Final = 256
"""Rows of a chunk: enough to hide what a process costs, few enough to stay small."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A source and the bytes that it had when the run began."""

    spec: SourceSpec
    sha256: str
    num_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, spec: SourceSpec) -> InputFile:
        """SourceError or UsageError where the file cannot be read."""
        sha256 = file_sha256(spec.path)
        status = spec.path.stat()
        return cls(spec=spec, sha256=sha256, num_bytes=status.st_size, modified_ns=status.st_mtime_ns)

    def refuse_changed(self) -> None:
        """SourceError where the file is not the one whose sha256 is in the manifest."""
        status = self.spec.path.stat()
        if (status.st_size, status.st_mtime_ns) != (self.num_bytes, self.modified_ns):
            raise SourceError(
                "the file changed while it was read",
                code="source-changed",
                place=str(self.spec.path),
                hint="run again when nothing writes to it",
            )


def input_rows(
    files: Sequence[InputFile], config: PackConfig, *, on_bytes: OnBytes | None = None
) -> Iterator[InputRow]:
    """Every row of every file in order, with how often it is taken (0 for a row that a fraction leaves)."""
    for number, file in enumerate(files):
        spec = file.spec
        times = _times(spec, seed=config.seed)
        rows = read_conversations(spec.path, name=str(spec.path), format=config.format, on_bytes=on_bytes)
        for count, row in zip(times, rows, strict=False):
            yield InputRow(number, count, row.address, row.conversation, tuple(row.findings))


def chunks(rows: Iterator[InputRow]) -> Iterator[list[InputRow]]:
    """Runs of at most CHUNK_ROWS rows."""
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _times(spec: SourceSpec, *, seed: int) -> Iterator[int]:
    """How often each row of a source is taken; only a fraction has to know how many rows there are."""
    if spec.epochs == math.floor(spec.epochs):
        return repeat(math.floor(spec.epochs))
    num_rows = sum(1 for _ in read_rows(spec.path, name=spec.name))
    return iter(row_times(num_rows, epochs=spec.epochs, seed=seed, name=spec.name).tolist())
