"""One shard: its rows are gathered from the spool, written, and audited as they are on the disk, whoever does it.

Which documents a shard holds is known before any is written, so that shards do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from sftprep.prepare.audit_tally import Tally, tally_shard
from sftprep.prepare.child_process import refuse_stopped
from sftprep.prepare.document_files import MappedDocuments, SpooledDocuments
from sftprep.shards.gather import Documents, ShardRows
from sftprep.shards.manifest import ShardRecord
from sftprep.shards.part import read_shard, write_shard
from sftprep.shards.place import named_failures
from sftprep.stages.mask_audit import AuditFacts


@dataclass(frozen=True, slots=True)
class ShardJob:
    """What all shards of a set have in common."""

    out: Path
    """What errors call the place."""
    directory: Path
    """Where the set is made."""
    documents: SpooledDocuments
    kwargs: tuple[str, ...]
    first_source: int
    """The number of the first source: behind those of the set that is added to."""
    weights: bool
    facts: AuditFacts


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard that is to be made, or, without rows, one that is there and is audited again."""

    job: ShardJob
    number: int
    rows: ShardRows | None = None
    record: ShardRecord | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the shard."""
        return 0 if self.rows is None else self.rows.num_tokens

    @property
    def name(self) -> str:
        """What an error calls it."""
        return f"{self.job.out}, shard {self.number}"


@dataclass(frozen=True, slots=True)
class MadeShard:
    """What the manifest says of a shard, and what its audit counted, its rows numbered from 0."""

    record: ShardRecord
    tally: Tally
    is_new: bool


def make_shard(task: ShardTask) -> MadeShard:
    """Write the shard, if it is to be written, and audit it.

    Raises:
        OutputError: `disk-full`, `output-not-writable`. ShardError: what is on the disk cannot be read.
        ValueError: a trained span weighs other than 1 in a set without weights.
    """
    job, record = task.job, task.record
    if record is None:
        record = _written(task)
    batches = _unless_stopped(read_shard(job.directory / record.file, weights=job.weights))
    return MadeShard(record, tally_shard(batches, facts=job.facts, shard=record), is_new=task.record is None)


def _written(task: ShardTask) -> ShardRecord:
    job = task.job
    if task.rows is None:
        raise ValueError("a shard that is not there has rows")
    batches = _unless_stopped(_Spooled.of(job).rows(task.rows, weights=job.weights))
    with named_failures(job.out):
        return write_shard(job.directory, batches, number=task.number, weights=job.weights)


def _unless_stopped(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        refuse_stopped()
        yield batch


class _Spooled:
    """The documents that this process gathers from: what it knows of them is made once for all its shards."""

    job: ClassVar[ShardJob | None] = None
    documents: ClassVar[Documents]

    @classmethod
    def of(cls, job: ShardJob) -> Documents:
        if cls.job != job:
            mapped = MappedDocuments(job.documents)
            cls.documents = Documents.of(mapped.table, job.kwargs, first_source=job.first_source, file=mapped)
            cls.job = job
        return cls.documents


def forget_documents() -> None:
    """Let go of the spool that this process has gathered from, if it has."""
    if _Spooled.job is not None:
        _Spooled.job = None
        del _Spooled.documents
