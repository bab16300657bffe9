"""A pack that is there already: found by its fingerprint, or at once where no file of it was touched.

A run notes the state (size, times, inode) of every file that it read, in the user's cache and not in the set: a set is
the same bytes wherever and whenever it is made. The next run of the same call compares states and reads nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sftprep.config.pack import PackConfig
from sftprep.config.places import is_remote
from sftprep.engines.model import text_files
from sftprep.errors import SftprepError, ShardError
from sftprep.prepare.fingerprint import NOT_IN_BYTES, versions
from sftprep.prepare.left_out import LEFT_OUT_NAME
from sftprep.prepare.pack_report import REPORT_NAME, PackReport
from sftprep.prepare.refusal import OnLeftOut, by_code, tell, too_many
from sftprep.shards.manifest import Manifest, PartRecord
from sftprep.shards.read import ShardSet, open_shard_set
from sftprep.shards.schema import FORMAT_VERSION, MANIFEST_NAME
from sftprep.sources.compressed import STDIN
from sftprep.sources.paths import expand
from sftprep.sources.state import FileState


@dataclass(frozen=True, slots=True)
class PackResult:
    """A published shard set and its report; `unchanged` where it was there already and nothing was done."""

    shards: ShardSet
    report: PackReport
    unchanged: bool
    rendering: Mapping[str, int] = field(default_factory=dict)
    """How the rows of this run were rendered and encoded: see `Chunk.rendering`."""
    engine_differed: str = ""
    """The row for which the fast engine gave other ids, so that the reference did all of them again."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A call, and the states of all files that it reads, when it began."""

    call: str
    """Hex sha256 of what decides the bytes beside the files' own: options, versions, names."""
    states: Mapping[str, FileState]
    """By absolute path."""
    taken_ns: int

    @classmethod
    def of(cls, config: PackConfig) -> Snapshot | None:
        """None where a file has no state: standard input, URLs, a model of the hub, what is not there."""
        inputs = [(spec, [*expand([spec.path])]) for spec in config.inputs]
        model = Path(config.model)
        paths = [path for _, found in inputs for path in found]
        if is_remote(config.out) or not model.is_dir() or any(is_remote(path) or path == STDIN for path in paths):
            return None
        paths += [model / name for name in text_files(model)]
        taken_ns = time.time_ns()
        call = {
            "format_version": FORMAT_VERSION,
            "versions": versions(),
            "sources": [(spec.name, spec.epochs, [str(path.absolute()) for path in found]) for spec, found in inputs],
            "model": str(model.absolute()),
            "append": config.append,
            "config": config.model_dump(mode="json", exclude=set(NOT_IN_BYTES)),
        }
        try:
            states = {str(path.absolute()): FileState.of(path) for path in paths}
        except OSError:
            return None
        digest = hashlib.sha256(json.dumps(call).encode("ascii")).hexdigest()
        return cls(digest, states, taken_ns)

    @property
    def is_settled(self) -> bool:
        """Whether any write to a file since would have changed its state."""
        return all(state.is_settled(self.taken_ns) for state in self.states.values())

    def is_same(self, other: Snapshot | None) -> bool:
        """Whether the other is of the same call, and no file was touched between them."""
        return other is not None and (self.call, self.states) == (other.call, other.states)


def snapshot(config: PackConfig) -> Snapshot | None:
    """What to `remember` when the run has ended, taken before it reads anything."""
    with suppress(SftprepError):  # the run itself will meet it, and say so at its place
        return Snapshot.of(config)
    return None


def remember(config: PackConfig, before: Snapshot | None, *, fingerprint: str) -> None:
    """Note that the files as they were `before` made the set of this fingerprint, if they still are the same.

    Where the cache cannot be written nothing is noted, and the next run reads its files again.
    """
    if before is None or not before.is_settled or not before.is_same(snapshot(config)):
        return
    note = {
        "call": before.call,
        "fingerprint": fingerprint,
        "states": {path: asdict(state) for path, state in before.states.items()},
    }
    place = _note_of(config.out)
    partial = place.with_name(f"{place.name}.{os.getpid()}")
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(note), encoding="ascii")
        partial.replace(place)


def find_unchanged(config: PackConfig, *, on_left_out: OnLeftOut | None = None) -> PackResult | None:
    """The set at the output, where its call and all files that it was made of are known to be the same as then.

    None where that is not known, or with `--rehash`. DataError where it leaves out more rows than this run allows,
    ShardError where it is damaged.
    """
    noted = None if config.rehash else _noted(config.out)
    if noted is None or not noted[1].is_same(snapshot(config)):
        return None
    there = whole_set(config, noted[0])
    return None if there is None else unchanged(there, config, on_left_out)


def _note_of(out: Path) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    name = hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:32]
    return Path(home).expanduser() / "sftprep" / "packed" / f"{name}.json"


def _noted(out: Path) -> tuple[str, Snapshot] | None:
    """The fingerprint and the files of the last run that is known of an output; None where the note is not readable."""
    try:
        note: dict[str, Any] = json.loads(_note_of(out).read_bytes())
        states = {path: FileState(**state) for path, state in note["states"].items()}
        return note["fingerprint"], Snapshot(note["call"], states, taken_ns=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None


def parts_of(manifest: Manifest) -> list[PartRecord]:
    """What a set was made of, one after another."""
    return manifest.parts or [
        PartRecord(
            fingerprint=manifest.fingerprint,
            versions=manifest.versions,
            num_sources=len(manifest.sources),
            num_shards=len(manifest.shards),
        )
    ]


def whole_set(config: PackConfig, key: str) -> ShardSet | None:
    """The set of this fingerprint at the output, or one that it was appended to, if it is there.

    A damaged one is an error unless it is replaced.
    """
    if not (config.out / MANIFEST_NAME).is_file():
        return None
    try:
        there = open_shard_set(config.out)
        known = [part.fingerprint for part in parts_of(there.manifest)]
        if key not in known or (len(known) > 1 and not config.append):
            return None
        there.verify(checksums=False)
    except ShardError:
        if config.overwrite:
            return None
        raise
    return there


def unchanged(there: ShardSet, config: PackConfig, on_left_out: OnLeftOut | None) -> PackResult:
    """Nothing to do, unless the set leaves out more rows than this run allows: that decides no byte."""
    num_rows = sum(min(source.num_rows, source.num_taken) for source in there.manifest.sources)
    left_out = there.manifest.left_out
    if not config.may_drop(left_out.num_rows, num_rows=num_rows):
        with (there.directory / LEFT_OUT_NAME).open("rb") as lines:
            tell(lines, on_left_out)
        raise too_many(left_out.num_rows, config, num_rows=num_rows, hint=by_code(left_out.by_code, hints={}))
    report = PackReport.model_validate_json((there.directory / REPORT_NAME).read_bytes())
    return PackResult(shards=there, report=report, unchanged=True)
