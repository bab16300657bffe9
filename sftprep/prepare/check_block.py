"""A block of rows to what is counted, listed and written of it: made where the rows are read, and small to send.

What is said once a file cannot be decided here, where one block is known: `settled` decides it, in the files' order.
"""

from __future__ import annotations

import base64
import json
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from sftprep.config.validate import ValidateConfig
from sftprep.data import Finding, Json, Severity
from sftprep.errors import SourceError
from sftprep.prepare.check import ONCE_A_FILE, CheckedRow, SaidOnce, checker
from sftprep.prepare.row_fit import RowFit
from sftprep.records.json_text import parse_json
from sftprep.sources.blocks import Block, SourceRow

_EXCERPT: Final = 400
"""Characters of a row that a report shows."""


class Listed(NamedTuple):
    """A finding for the report, and what it points to, if a page will show that."""

    finding: Finding
    excerpt: str


class HeldRow(NamedTuple):
    """A bad row whose line waits for a decision: what of its findings an earlier row of the file has said."""

    source: SourceRow
    findings: tuple[Finding, ...]


class Kind(NamedTuple):
    """What findings are counted by."""

    code: str
    severity: Severity


@dataclass(slots=True)
class FitCounts:
    """Of the rows that are exact: the tokens of each one's longest document, and sums."""

    lengths: array[int] = field(default_factory=lambda: array("q"))
    num_trained: int = 0
    num_over_length: int = 0
    num_trained_lost: int = 0

    def add(self, fit: RowFit, *, max_length: int | None) -> None:
        """One row."""
        self.lengths.append(fit.longest)
        self.num_trained += fit.num_trained
        if max_length is not None and fit.longest > max_length:
            self.num_over_length += 1
            self.num_trained_lost += fit.num_trained

    def update(self, other: FitCounts) -> None:
        """Those of another."""
        self.lengths.extend(other.lengths)
        self.num_trained += other.num_trained
        self.num_over_length += other.num_over_length
        self.num_trained_lost += other.num_trained_lost


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedBlock:
    """What became of a block's rows. `damage` is what is wrong with the file after them.

    `said` are the first findings of each thing that is said once a file: they are listed, and not counted.
    `good`, `bad` and `fixed` are whole lines of the files that were asked for, without those of held rows.
    """

    rows_in: int
    num_good: int
    formats: Counter[str]
    counts: Counter[Kind]
    fit: FitCounts
    listed: Sequence[Listed]
    said: Sequence[Finding] = ()
    good: bytes = b""
    bad: Sequence[bytes | HeldRow] = ()
    fixed: bytes = b""
    damage: SourceError | None = None


CheckBlock = Callable[[Block, str], CheckedBlock]
"""A block and the name of its file, in the order of the files, to what became of it."""


def block_checker(config: ValidateConfig) -> CheckBlock:
    """How each block of a run is checked. A file's blocks come in their order, with or without some of them between.

    Raises:
        UsageError: no format has that name, or the model cannot be used.
        TemplateError: `template-syntax`.
    """
    check = checker(config)
    room = _Room(config.max_errors)

    def check_block(block: Block, file: str) -> CheckedBlock:
        room.enter(file)
        gathered = _Gathered(config, room)
        damage = None
        try:
            for source in block.rows(file):
                gathered.add(source, check(source))
        except SourceError as error:
            damage = error
        return gathered.checked(damage)

    return check_block


def settled(block: CheckedBlock, once: SaidOnce) -> CheckedBlock:
    """The block with what is said once a file counted, listed and written where no earlier block has said it."""
    if not block.said:
        return block
    new = frozenset(once.first(tuple(block.said)))

    def stays(finding: Finding) -> bool:
        return finding.code not in ONCE_A_FILE or finding in new

    return replace(
        block,
        counts=block.counts + Counter(Kind(finding.code, finding.severity) for finding in new),
        listed=[listed for listed in block.listed if stays(listed.finding)],
        said=(),
        bad=[
            bad_line(row.source, tuple(filter(stays, row.findings))) if isinstance(row, HeldRow) else row
            for row in block.bad
        ],
    )


class _Room:
    """How many more findings of a file can be listed. Those of other blocks only take of it, so none is missed."""

    def __init__(self, max_errors: int) -> None:
        self._max_errors = max_errors
        self._file: str | None = None
        self._listed: Counter[Severity] = Counter()

    def enter(self, file: str) -> None:
        """The next findings are of that file."""
        if file != self._file:
            self._file = file
            self._listed.clear()

    def take(self, severity: Severity) -> bool:
        """Whether there is room for one more."""
        self._listed[severity] += 1
        return not self._max_errors or self._listed[severity] <= self._max_errors


class _Gathered:
    """What the rows of a block have come to so far."""

    def __init__(self, config: ValidateConfig, room: _Room) -> None:
        self._config = config
        self._room = room
        self._once = SaidOnce()
        self._rows_in = self._num_good = 0
        self._formats: Counter[str] = Counter()
        self._counts: Counter[Kind] = Counter()
        self._fit = FitCounts()
        self._listed: list[Listed] = []
        self._said: list[Finding] = []
        self._good: list[bytes] = []
        self._bad: list[bytes | HeldRow] = []
        self._fixed: list[bytes] = []

    def add(self, source: SourceRow, row: CheckedRow) -> None:
        """The next row."""
        self._rows_in += 1
        self._num_good += row.good
        if row.format is not None:
            self._formats[row.format] += 1
        if row.fit is not None:
            self._fit.add(row.fit, max_length=self._config.max_length)
        findings = self._once.first(row.findings) if row.findings else ()
        for finding in findings:
            self._add_finding(finding, source.raw)
        if row.good and self._config.good is not None:
            self._good.append(_line(source.raw))
        if not row.good and self._config.bad is not None:
            waits = any(finding.code in ONCE_A_FILE for finding in findings)
            self._bad.append(HeldRow(source, findings) if waits else bad_line(source, findings))
        if row.normal is not None:
            self._fixed.append(_line(row.normal))

    def _add_finding(self, finding: Finding, raw: bytes) -> None:
        if finding.code in ONCE_A_FILE:
            self._said.append(finding)
        else:
            self._counts[Kind(finding.code, finding.severity)] += 1
            if not self._room.take(finding.severity):
                return
        shown = excerpt(raw, finding.pointer) if self._config.html is not None else ""
        self._listed.append(Listed(finding, shown))

    def checked(self, damage: SourceError | None) -> CheckedBlock:
        """All of it."""
        return CheckedBlock(
            rows_in=self._rows_in,
            num_good=self._num_good,
            formats=self._formats,
            counts=self._counts,
            fit=self._fit,
            listed=self._listed,
            said=self._said,
            good=b"".join(self._good),
            bad=self._bad if self._said else [b"".join(line for line in self._bad if isinstance(line, bytes))],
            fixed=b"".join(self._fixed),
            damage=damage,
        )


def _line(row: bytes) -> bytes:
    """A good row as one line: what is laid out over several, in an array, has line ends between values only."""
    return row.replace(b"\n", b" ") + b"\n"


def bad_line(source: SourceRow, findings: Sequence[Finding]) -> bytes:
    """A bad row and its findings as one line of JSON; `raw_base64` holds what is not UTF-8."""
    keys = ("code", "severity", "pointer", "message", "hint")
    told = [{key: getattr(finding, key) for key in keys} for finding in findings]
    entry: dict[str, Json] = {"file": source.address.file, "line": source.address.line, "findings": told}
    try:
        entry["raw"] = source.raw.decode("utf-8")
    except UnicodeDecodeError:
        entry["raw_base64"] = base64.b64encode(source.raw).decode("ascii")
    return json.dumps(entry).encode("ascii") + b"\n"


def excerpt(raw: bytes, pointer: str) -> str:
    """The value that a pointer names, or the row's start where it names none, cut short."""
    parsed = parse_json(raw)
    value: Json = parsed.value
    for step in pointer.split("/")[1:] if parsed.readable else ():
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            break
    text = json.dumps(value, ensure_ascii=False) if parsed.readable else raw.decode("utf-8", "backslashreplace")
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…"
