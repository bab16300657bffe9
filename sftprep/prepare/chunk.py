"""A chunk of rows to one token batch: the unit of work, whichever process does it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.config.pack import OverLength, PackConfig
from sftprep.data import TOKEN_BATCH_SCHEMA, Conversation, Document, Finding, RowAddress, Severity
from sftprep.errors import DataError, MaskError, TemplateError
from sftprep.prepare.compile import CompiledRow, CompileRow
from sftprep.prepare.over_length import Shortened, Shortener

OVER_LENGTH: Final = "over-length"
"""The code of a row with a document longer than --max-length."""

TURNS_LEFT_OUT: Final = "turns-left-out"
"""The code of a row of which some turns are packed, and others fit no row."""


@dataclass(frozen=True, slots=True)
class InputRow:
    """A row that is taken `times` times from source number `source`; no conversation where validation found errors."""

    source: int
    times: int
    address: RowAddress
    conversation: Conversation | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class LeftOutRow:
    """A row of which nothing is packed, and why; counts of tokens are 0 where it has no exact ones."""

    source: int
    times: int
    address: RowAddress
    findings: tuple[Finding, ...]
    num_tokens: int = 0
    longest: int = 0
    num_trained: int = 0
    """Trained tokens that are lost with it."""
    is_partial: bool = False
    """Only turns of it are left out; the rest is packed."""

    @property
    def code(self) -> str:
        """Of the first error, under which the row is counted."""
        return self.findings[0].code


@dataclass(frozen=True, slots=True)
class ExactRow:
    """A row whose documents are packed, or were exact and too long; counts are of one time."""

    source: int
    times: int
    num_documents: int
    num_tokens: int
    longest: int
    num_repeated: int
    """Untrained tokens beyond those of the row's longest document: what rewritten history repeats. 0 for pieces."""
    num_trained_whole: int = 0
    """Trained tokens that a row has which is too long and packed in part or in pieces; its tokens are the row's."""


@dataclass(frozen=True, slots=True)
class RowsRead:
    """What was read of a source to make a chunk, and what validation warned of."""

    source: int = 0
    num_rows: int = 0
    num_taken: int = 0
    """With repetition."""
    num_taken_rows: int = 0
    """Rows taken at least once, each counted once."""
    warnings: Counter[str] = field(default_factory=Counter)
    said_once: tuple[tuple[str, str, str], ...] = ()
    """File, code and pointer of the warnings that count once a file."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What became of a run of rows: documents once each, and how often each is taken, int64 `[documents]`."""

    documents: pa.RecordBatch
    times: npt.NDArray[np.int64]
    exact: tuple[ExactRow, ...]
    left_out: tuple[LeftOutRow, ...]
    classes: Counter[str]
    """Trained turns by class, with repetition."""
    remarks: Counter[str]
    """What is exact and worth knowing, with repetition."""
    read: RowsRead = field(default_factory=RowsRead)


def compile_chunk(rows: Sequence[InputRow], *, compile_row: CompileRow, config: PackConfig) -> Chunk:
    """Compile each row, or say why it is left out."""
    fit = _Fit.of(compile_row, config)
    documents: list[tuple[InputRow, Document]] = []
    exact: list[ExactRow] = []
    left_out: list[LeftOutRow] = []
    classes: Counter[str] = Counter()
    remarks: Counter[str] = Counter()
    for row in rows:
        if not row.times:
            continue
        whole = _compiled(row, compile_row)
        if isinstance(whole, LeftOutRow):
            left_out.append(whole)
            continue
        result, lost = fit.fitted(row, whole)
        left_out += lost
        if result is None:
            continue
        documents.extend((row, document) for document in result.documents)
        exact.append(_exact(row, result, whole=whole))
        classes.update({name: count * row.times for name, count in result.classes.items()})
        remarks.update({name: count * row.times for name, count in result.remarks.items()})
    return Chunk(
        documents=_batch(documents),
        times=np.array([row.times for row, _ in documents], dtype=np.int64),
        exact=tuple(exact),
        left_out=tuple(left_out),
        classes=classes,
        remarks=remarks,
    )


def _compiled(row: InputRow, compile_row: CompileRow) -> CompiledRow | LeftOutRow:
    if row.conversation is None:
        errors = tuple(finding for finding in row.findings if finding.severity is Severity.ERROR)
        return LeftOutRow(row.source, row.times, row.address, errors)
    try:
        compiled = compile_row(row.conversation)
    except (MaskError, TemplateError) as error:
        return _left_out(row, error)
    if all(document.num_trained for document in compiled.documents) and compiled.documents:
        return compiled
    return _left_out(row, MaskError("a sample has no trained token", code="nothing-trained", place="/messages"))


@dataclass(frozen=True, slots=True)
class _Fit:
    """What becomes of rows that are exact: most fit, for the others there is `shorten`, or nothing."""

    max_length: int | None
    shorten: Shortener | None

    @classmethod
    def of(cls, compile_row: CompileRow, config: PackConfig) -> _Fit:
        shortens = config.over_length in (OverLength.SPLIT_AT_TURN, OverLength.TRUNCATE_AT_TURN)
        if config.max_length is None or not shortens:
            return cls(config.max_length, None)
        return cls(config.max_length, Shortener(compile_row, max_length=config.max_length, policy=config.over_length))

    def fitted(self, row: InputRow, whole: CompiledRow) -> tuple[CompiledRow | None, Sequence[LeftOutRow]]:
        """What is packed of a row, if anything is, and what is left out of it."""
        longest = max(len(document.ids) for document in whole.documents)
        if self.max_length is None or longest <= self.max_length:
            return whole, ()
        if self.shorten is None or row.conversation is None:
            return None, (_too_long(row, whole, self.max_length),)
        try:
            shortened = self.shorten(row.conversation, whole)
        except MaskError as error:
            return None, (_counted(_left_out(row, error), whole),)
        if not shortened.compiled.documents:
            return None, (_too_long(row, whole, self.max_length),)
        return shortened.compiled, tuple(_turns_left_out(row, shortened, self.max_length))


def _too_long(row: InputRow, whole: CompiledRow, max_length: int) -> LeftOutRow:
    error = MaskError(
        f"the conversation has {max(len(document.ids) for document in whole.documents):,} tokens "
        f"and a row holds {max_length:,}",
        code=OVER_LENGTH,
        place="/messages",
        hint="raise --max-length; --over-length split-at-turn or truncate-at-turn keeps turns, drop leaves it out",
    )
    return _counted(_left_out(row, error), whole)


def _counted(left_out: LeftOutRow, whole: CompiledRow) -> LeftOutRow:
    """With the tokens of a row that is exact and not packed."""
    lengths = [len(document.ids) for document in whole.documents]
    num_trained = sum(document.num_trained for document in whole.documents)
    return replace(left_out, num_tokens=sum(lengths), longest=max(lengths), num_trained=num_trained)


def _turns_left_out(row: InputRow, shortened: Shortened, max_length: int) -> Iterator[LeftOutRow]:
    """The turns of a row that are not packed, one finding each; nothing where all are."""
    findings = tuple(
        Finding(
            TURNS_LEFT_OUT,
            Severity.ERROR,
            row.address,
            f"/messages/{message}",
            f"the turn is not trained: what --over-length keeps before it does not fit into {max_length:,} tokens",
            "raise --max-length",
        )
        for message in shortened.lost
    )
    if findings:
        yield LeftOutRow(
            row.source, row.times, row.address, findings, num_trained=shortened.num_trained_lost, is_partial=True
        )


def _left_out(row: InputRow, error: DataError) -> LeftOutRow:
    finding = Finding(error.code, Severity.ERROR, row.address, error.place, error.message, error.hint)
    return LeftOutRow(row.source, row.times, row.address, (finding,))


def _exact(row: InputRow, compiled: CompiledRow, *, whole: CompiledRow) -> ExactRow:
    lengths = [len(document.ids) for document in whole.documents]
    untrained = [len(document.ids) - document.num_trained for document in compiled.documents]
    return ExactRow(
        source=row.source,
        times=row.times,
        num_documents=len(compiled.documents),
        num_tokens=sum(lengths),
        longest=max(lengths),
        num_trained_whole=0 if compiled is whole else sum(document.num_trained for document in whole.documents),
        num_repeated=sum(untrained) - max(untrained) if compiled is whole else 0,
    )


def _batch(documents: Sequence[tuple[InputRow, Document]]) -> pa.RecordBatch:
    """Of TOKEN_BATCH_SCHEMA, one document a row."""
    docs = [document for _, document in documents]
    spans = [span for document in docs for span in document.spans]
    offsets = _offsets([len(document.ids) for document in docs])
    span_offsets = _offsets([len(document.spans) for document in docs])
    ids = np.concatenate([document.ids for document in docs]) if docs else np.empty(0, np.int32)
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(ids, pa.int32())),
        pa.ListArray.from_arrays(span_offsets, pa.array([span.start for span in spans], pa.int32())),
        pa.ListArray.from_arrays(span_offsets, pa.array([int(span.kind) for span in spans], pa.int8())),
        pa.ListArray.from_arrays(span_offsets, pa.array([span.message for span in spans], pa.int32())),
        pa.ListArray.from_arrays(span_offsets, pa.array([span.weight for span in spans], pa.float32())),
        pa.array([row.source for row, _ in documents], pa.int32()),
        pa.array([document.address.line for document in docs], pa.int64()),
        pa.array([document.sample for document in docs], pa.int32()),
        pa.array([json.dumps(document.template_kwargs, sort_keys=True) for document in docs], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=TOKEN_BATCH_SCHEMA)


def _offsets(counts: Sequence[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int32))
