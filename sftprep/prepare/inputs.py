"""The input files of a pack: known by their bytes, cut into chunks; a chunk is read where it is compiled."""

from __future__ import annotations

import atexit
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkstemp

from sftprep.config.pack import PackConfig, SourceSpec
from sftprep.config.places import is_remote, shown
from sftprep.data import RowAddress, Severity
from sftprep.errors import SourceError, UsageError
from sftprep.prepare.check import ONCE_A_FILE, SaidOnce, named_format, validated
from sftprep.prepare.chunk import InputRow, RowsRead
from sftprep.prepare.input_rows import InputRows
from sftprep.prepare.mix import row_times
from sftprep.records.draft import Format
from sftprep.records.plain_lines import plain_lines, plain_row
from sftprep.sources.blocks import Block, LineBlock, SourceRow
from sftprep.sources.compressed import STDIN, OnBytes, standard_input
from sftprep.sources.lines import file_sha256, read_blocks, read_rows, require_file
from sftprep.sources.paths import expand
from sftprep.sources.state import FileState
from sftprep.sources.stored import StoredLines, shared_blocks
from sftprep.stores.read import Identity, identity


@dataclass(frozen=True, slots=True)
class InputFile:
    """A source and the bytes that it had when the run began: by their sha256, or by the name that a store has for them.

    `path` is where they are read: standard input is copied first, as what names a set has to be known before it is
    read. `identity` is empty but for files of an object store, and `sha256` is empty there.
    """

    spec: SourceSpec
    path: Path
    sha256: str
    num_bytes: int
    state: FileState | None = None
    """Before the first byte was read; None of an object store's."""
    identity: str = ""

    @property
    def known(self) -> Identity | None:
        """The bytes that are meant, of a file of an object store."""
        return (self.identity, self.num_bytes) if self.identity else None

    @classmethod
    def of(cls, spec: SourceSpec) -> InputFile:
        """UsageError where the file cannot be read, SourceError `source-changed` where it changes meanwhile."""
        if is_remote(spec.path):
            name, size = identity(spec.path)
            return cls(spec=spec, path=spec.path, sha256="", num_bytes=size, identity=name)
        path = _stdin_copy() if spec.path == STDIN else spec.path
        require_file(path)
        state = FileState.of(path)
        file = cls(spec=spec, path=path, sha256=file_sha256(path), num_bytes=state.num_bytes, state=state)
        file.refuse_changed()
        return file

    def refuse_changed(self) -> None:
        """SourceError where the file is not the one whose sha256 is in the manifest; its reader sees to a store's."""
        if self.state is None:
            return
        try:
            is_same = self.state.is_same_content(FileState.of(self.path))
        except OSError:
            is_same = False
        if not is_same:
            raise SourceError(
                "the file changed while it was read",
                code="source-changed",
                place=str(self.spec.path),
                hint="run again when nothing writes to it",
            )


def input_files(config: PackConfig) -> tuple[InputFile, ...]:
    """The files of a run, patterns and directories written out; a source of several files has its name on each.

    Raises:
        UsageError: `missing-file`, `repeated-file` and whatever else says that a file cannot be used. SourceError.
    """
    plain = [SourceSpec(name=shown(path), path=path) for path in expand(config.files)]
    named = [spec.model_copy(update={"path": path}) for spec in config.sources for path in expand([spec.path])]
    counts = Counter(spec.name for spec in (*plain, *config.sources))
    for name, count in counts.items():
        if count > 1:
            hint = "--source NAME=FILE:2 takes a file twice"
            raise UsageError("the file is named twice", code="repeated-file", place=name, hint=hint)
    return tuple(InputFile.of(spec) for spec in (*plain, *named))


def _stdin_copy() -> Path:
    """Standard input as a file, which is gone when the process ends."""
    given = standard_input()
    handle, name = mkstemp(prefix="sftprep-stdin-")
    atexit.register(Path(name).unlink, missing_ok=True)
    with open(handle, "wb") as file:
        shutil.copyfileobj(given, file, 1 << 20)
    return Path(name)


@dataclass(frozen=True, slots=True)
class InputChunk:
    """Unread rows of source number `source`; `times` is how often each is taken, 0 where a fraction leaves it."""

    source: int
    name: str
    block: Block
    times: int | tuple[int, ...]


def input_chunks(
    files: Sequence[InputFile], config: PackConfig, *, on_bytes: OnBytes | None = None, shared: bool = False
) -> Iterator[InputChunk]:
    """Every row of every file in order, a few hundred a chunk; the files' bytes alone decide where a chunk ends.

    `shared`: other processes of this machine will read them, and read a plain file themselves.
    """
    drawn = {
        spec.name: _drawn([file for file in files if file.spec.name == spec.name], spec, seed=config.seed)
        for spec in config.sources
        if not spec.epochs.is_integer()
    }
    for number, file in enumerate(files):
        spec, name = file.spec, shown(file.spec.path)
        share = drawn.get(spec.name)
        for block in (shared_blocks if shared else read_blocks)(
            file.path, name=name, on_bytes=on_bytes, known=file.known
        ):
            times = int(spec.epochs) if share is None else tuple(next(share) for _ in block.rows(name))
            yield InputChunk(number, name, block, times)


def read_chunk(chunk: InputChunk, *, format: str | None) -> tuple[InputRows, RowsRead]:
    """Validate a chunk's rows; what must be counted of them.

    SourceError where a table's values are damaged, and `read-failed` where a file does not have the lines any more.
    """
    read = _Reading(chunk, named_format(format))
    block = chunk.block.loaded(chunk.name) if isinstance(chunk.block, StoredLines) else chunk.block
    if isinstance(block, LineBlock):
        read.lines(block)
    else:
        for row in block.rows(chunk.name):
            read.row(row)
    return read.rows, read.counts()


class _Reading:
    """The rows of a chunk that were read so far, and what is counted of them."""

    def __init__(self, chunk: InputChunk, named: Format | None) -> None:
        self.rows = InputRows(chunk.name)
        self._chunk = chunk
        self._named = named
        self._once = SaidOnce()
        self._warnings: Counter[str] = Counter()
        self._times: list[int] = []
        self._said_of: set[frozenset[str]] = set()
        """The keys beside a chat of which all is said."""

    def lines(self, block: LineBlock) -> None:
        """Take the lines of a block, at once those that are plain chats, which have no findings."""
        name = self._chunk.name
        numbers, raws, offsets = block.lines()
        is_chat = self._named in (None, Format.OPENAI)
        chats = plain_lines(raws) if is_chat else [None] * len(raws)
        times = self._next_times(len(raws))
        places = self.rows.extend(self._chunk.source, numbers, times, chats)
        for number in [number for number, chat in enumerate(chats) if chat is None]:
            source_row = SourceRow(RowAddress(name, numbers[number]), raws[number], offsets[number])
            self._other(source_row, times[number], place=places[number], is_chat=is_chat)

    def _other(self, source_row: SourceRow, times: int, *, place: int, is_chat: bool) -> None:
        """Take a line that is not only a chat; in full, unless one was before of which the same is to be said."""
        plain = plain_row(source_row.raw) if is_chat else None
        if plain is not None and plain[0] in self._said_of:
            if times:
                self.rows.set_chat(place, plain[1], read=partial(self._validated, source_row, times))
            return
        row = self._validated(source_row, times)
        self._tell(row)
        if plain is not None and all(finding.code in ONCE_A_FILE for finding in row.findings):
            self._said_of.add(plain[0])
        if times:
            self.rows.set(place, row)

    def row(self, source_row: SourceRow) -> None:
        """Take one row."""
        row = self._validated(source_row, self._next_times(1)[0])
        self._tell(row)
        self.rows.add(row)

    def _validated(self, source_row: SourceRow, times: int) -> InputRow:
        row = validated(source_row, self._named)
        return InputRow(self._chunk.source, times, row.address, row.conversation, tuple(row.findings))

    def _tell(self, row: InputRow) -> None:
        found = self._once.first(row.findings)
        self._warnings.update(finding.code for finding in found if finding.severity is Severity.WARNING)

    def _next_times(self, count: int) -> Sequence[int]:
        times, first = self._chunk.times, len(self._times)
        new = [times] * count if isinstance(times, int) else times[first : first + count]
        self._times.extend(new)
        return new

    def counts(self) -> RowsRead:
        """What must be counted of all rows, those among them that are not taken."""
        return RowsRead(
            source=self._chunk.source,
            num_rows=len(self._times),
            num_taken=sum(self._times),
            num_taken_rows=len(self.rows),
            warnings=Counter({code: count for code, count in self._warnings.items() if code not in ONCE_A_FILE}),
            said_once=tuple(sorted(self._once.said)),
        )


def _drawn(files: Sequence[InputFile], spec: SourceSpec, *, seed: int) -> Iterator[int]:
    """How often each row of a source is taken that a fraction is taken of: it has to know how many there are."""
    num_rows = sum(1 for file in files for _ in read_rows(file.path, name=shown(file.spec.path)))
    return iter(row_times(num_rows, epochs=spec.epochs, seed=seed, name=spec.name).tolist())
