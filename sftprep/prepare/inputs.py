"""The input files of a pack: known by their bytes, cut into chunks; a chunk is read where it is compiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sftprep.config.pack import PackConfig, SourceSpec
from sftprep.data import Severity
from sftprep.errors import SourceError
from sftprep.prepare.check import ONCE_A_FILE, SaidOnce, named_format, validated
from sftprep.prepare.chunk import InputRow, RowsRead
from sftprep.prepare.mix import row_times
from sftprep.sources.blocks import Block
from sftprep.sources.compressed import OnBytes
from sftprep.sources.lines import file_sha256, read_blocks, read_rows


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


@dataclass(frozen=True, slots=True)
class InputChunk:
    """Unread rows of source number `source`; `times` is how often each is taken, 0 where a fraction leaves it."""

    source: int
    name: str
    block: Block
    times: int | tuple[int, ...]


def input_chunks(
    files: Sequence[InputFile], config: PackConfig, *, on_bytes: OnBytes | None = None
) -> Iterator[InputChunk]:
    """Every row of every file in order, a few hundred a chunk; the files' bytes alone decide where a chunk ends."""
    for number, file in enumerate(files):
        spec = file.spec
        name = str(spec.path)
        drawn = None if spec.epochs.is_integer() else _drawn(spec, seed=config.seed)
        for block in read_blocks(spec.path, name=name, on_bytes=on_bytes):
            times = int(spec.epochs) if drawn is None else tuple(next(drawn) for _ in block.rows(name))
            yield InputChunk(number, name, block, times)


def read_chunk(chunk: InputChunk, *, format: str | None) -> tuple[list[InputRow], RowsRead]:
    """Validate a chunk's rows; what must be counted of them. SourceError where a table's values are damaged."""
    named, once = named_format(format), SaidOnce()
    rows = [validated(row, named) for row in chunk.block.rows(chunk.name)]
    times = [chunk.times] * len(rows) if isinstance(chunk.times, int) else chunk.times
    warnings: Counter[str] = Counter()
    for row in rows:
        warnings.update(found.code for found in once.first(row.findings) if found.severity is Severity.WARNING)
    said = tuple(sorted(once.said))
    read = RowsRead(
        source=chunk.source,
        num_rows=len(rows),
        num_taken=sum(times),
        num_taken_rows=sum(count > 0 for count in times),
        warnings=Counter({code: count for code, count in warnings.items() if code not in ONCE_A_FILE}),
        said_once=said,
    )
    return [
        InputRow(chunk.source, count, row.address, row.conversation, tuple(row.findings))
        for count, row in zip(times, rows, strict=True)
    ], read


def _drawn(spec: SourceSpec, *, seed: int) -> Iterator[int]:
    """How often each row of a source is taken that a fraction is taken of: it has to know how many there are."""
    num_rows = sum(1 for _ in read_rows(spec.path, name=spec.name))
    return iter(row_times(num_rows, epochs=spec.epochs, seed=seed, name=spec.name).tolist())
