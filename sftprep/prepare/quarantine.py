"""Where a validation's rows go: the good, the bad with their findings, the good in one format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sftprep.config.places import is_remote
from sftprep.config.validate import ValidateConfig
from sftprep.errors import OutputError
from sftprep.prepare.check_block import CheckedBlock
from sftprep.stores.write import check_place


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

    def add(self, block: CheckedBlock) -> None:
        """Write a block's rows where they belong; it is settled."""
        if self.good is not None:
            self.good.write(block.good)
        if self.bad is not None:
            self.bad.writelines(line for line in block.bad if isinstance(line, bytes))
        if self.fixed is not None:
            self.fixed.write(block.fixed)


def check_outputs(config: ValidateConfig, inputs: Sequence[Path]) -> None:
    """OutputError where an output would replace an input, or another output, or be compressed by name only."""
    taken = {_place(path) for path in inputs}
    local = [path for path in inputs if not is_remote(path)]
    for path in (*Quarantine.paths(config), config.json_file, config.html, config.quality_json):
        if path is None:
            continue
        place = str(path)
        if _place(path) in taken or (not is_remote(path) and _is_one_of(path, local)):
            hint = "give every output a name of its own"
            raise OutputError("is an input or another output", code="output-in-use", place=place, hint=hint)
        if path.suffix in {".gz", ".zst"}:
            raise OutputError("outputs are not compressed", code="output-suffix", place=place, hint="name it .jsonl")
        if is_remote(path):
            check_place(path)
        elif path.is_dir() or not path.parent.is_dir():
            hint = "name a file in a directory that exists"
            raise OutputError("is not a place for a file", code="no-such-directory", place=place, hint=hint)
        taken.add(_place(path))


def _place(path: Path) -> str:
    return str(path if is_remote(path) else path.resolve())


def _is_one_of(path: Path, others: Sequence[Path]) -> bool:
    return path.exists() and any(other.exists() and path.samefile(other) for other in others)
