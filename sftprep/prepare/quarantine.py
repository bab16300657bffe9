"""Where a validation's rows go: the good, the bad with their findings, the good in one format."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sftprep.config.validate import ValidateConfig
from sftprep.data import Json
from sftprep.errors import OutputError
from sftprep.prepare.check import CheckedRow
from sftprep.sources.blocks import SourceRow


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Open files; None: not asked for."""

    good: BinaryIO | None
    bad: BinaryIO | None
    fixed: BinaryIO | None

    @staticmethod
    def paths(config: ValidateConfig) -> list[Path]:
        """The files that a run writes row by row."""
        return [path for path in (config.good, config.bad, config.fix_to) if path is not None]

    @classmethod
    def of(cls, config: ValidateConfig, files: Sequence[BinaryIO]) -> Quarantine:
        """`files` are those of `paths`, in that order."""
        remaining = iter(files)
        good, bad, fixed = (
            next(remaining) if path is not None else None for path in (config.good, config.bad, config.fix_to)
        )
        return cls(good, bad, fixed)

    def add(self, source: SourceRow, row: CheckedRow) -> None:
        """Write a row where it belongs."""
        if row.good and self.good is not None:
            self.good.write(_line(source.raw))
        if not row.good and self.bad is not None:
            self.bad.write(_bad_line(source, row))
        if row.normal is not None and self.fixed is not None:
            self.fixed.write(_line(row.normal))


def _line(row: bytes) -> bytes:
    """A good row as one line: what is laid out over several, in an array, has line ends between values only."""
    return row.replace(b"\n", b" ") + b"\n"


def check_outputs(config: ValidateConfig, inputs: Sequence[Path]) -> None:
    """OutputError where an output would replace an input, or another output, or be compressed by name only."""
    taken = {path.resolve() for path in inputs}
    for path in (*Quarantine.paths(config), config.json_file, config.html, config.quality_json):
        if path is None:
            continue
        place = str(path)
        if path.resolve() in taken or (
            path.exists() and any(other.exists() and path.samefile(other) for other in inputs)
        ):
            hint = "give every output a name of its own"
            raise OutputError("is an input or another output", code="output-in-use", place=place, hint=hint)
        if path.suffix in {".gz", ".zst"}:
            raise OutputError("outputs are not compressed", code="output-suffix", place=place, hint="name it .jsonl")
        if path.is_dir() or not path.parent.is_dir():
            hint = "name a file in a directory that exists"
            raise OutputError("is not a place for a file", code="no-such-directory", place=place, hint=hint)
        taken.add(path.resolve())


def _bad_line(source: SourceRow, row: CheckedRow) -> bytes:
    """A bad row and its findings as one line of JSON; `raw_base64` holds what is not UTF-8."""
    keys = ("code", "severity", "pointer", "message", "hint")
    findings = [{key: getattr(finding, key) for key in keys} for finding in row.findings]
    entry: dict[str, Json] = {"file": source.address.file, "line": source.address.line, "findings": findings}
    try:
        entry["raw"] = source.raw.decode("utf-8")
    except UnicodeDecodeError:
        entry["raw_base64"] = base64.b64encode(source.raw).decode("ascii")
    return json.dumps(entry).encode("ascii") + b"\n"
