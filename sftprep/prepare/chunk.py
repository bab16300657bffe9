"""A chunk of rows to one token batch: the unit of work, whichever process does it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.data import TOKEN_BATCH_SCHEMA, Conversation, Document, Finding, RowAddress, Severity
from sftprep.errors import DataError, MaskError, TemplateError
from sftprep.prepare.compile import CompiledRow, CompileRow

OVER_LENGTH: Final = "over-length"
"""The code of a row with a document longer than --max-length."""


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
    """Untrained tokens beyond those of the row's longest document: what rewritten history repeats."""


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


def compile_chunk(rows: Sequence[InputRow], *, compile_row: CompileRow, max_length: int | None) -> Chunk:
    """Compile each row, or say why it is left out."""
    documents: list[tuple[InputRow, Document]] = []
    exact: list[ExactRow] = []
    left_out: list[LeftOutRow] = []
    classes: Counter[str] = Counter()
    remarks: Counter[str] = Counter()
    for row in rows:
        if not row.times:
            continue
        result = _compiled(row, compile_row)
        if isinstance(result, CompiledRow):
            result = _too_long(row, result, max_length)
        if isinstance(result, LeftOutRow):
            left_out.append(result)
            continue
        documents.extend((row, document) for document in result.documents)
        exact.append(_exact(row, result))
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


def _too_long(row: InputRow, compiled: CompiledRow, max_length: int | None) -> CompiledRow | LeftOutRow:
    lengths = [len(document.ids) for document in compiled.documents]
    if max_length is None or max(lengths) <= max_length:
        return compiled
    error = MaskError(
        f"the conversation has {max(lengths):,} tokens and a row holds {max_length:,}",
        code=OVER_LENGTH,
        place="/messages",
        hint="raise --max-length, or leave such rows out with --over-length drop and --max-drop",
    )
    return replace(_left_out(row, error), num_tokens=sum(lengths), longest=max(lengths))


def _left_out(row: InputRow, error: DataError) -> LeftOutRow:
    finding = Finding(error.code, Severity.ERROR, row.address, error.place, error.message, error.hint)
    return LeftOutRow(row.source, row.times, row.address, (finding,))


def _exact(row: InputRow, compiled: CompiledRow) -> ExactRow:
    lengths = [len(document.ids) for document in compiled.documents]
    untrained = [len(document.ids) - document.num_trained for document in compiled.documents]
    return ExactRow(
        source=row.source,
        times=row.times,
        num_documents=len(lengths),
        num_tokens=sum(lengths),
        longest=max(lengths),
        num_repeated=sum(untrained) - max(untrained),
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
