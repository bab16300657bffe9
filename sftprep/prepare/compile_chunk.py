"""A chunk of rows to one token batch, whichever process does it: what has a plan together, the rest row by row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from sftprep.arrow import numbers, texts
from sftprep.config.pack import PackConfig
from sftprep.data import TOKEN_BATCH_SCHEMA, Document, Severity
from sftprep.errors import MaskError, TemplateError
from sftprep.prepare.batch import Replayed, ReplayedRow, token_batch
from sftprep.prepare.chunk import Chunk, ExactRow, InputRow, LeftOutRow
from sftprep.prepare.compile import CompiledRow, Compiler, CompileRow
from sftprep.prepare.input_rows import InputRows
from sftprep.prepare.recheck import recheck
from sftprep.prepare.row_length import Fit, Sizes, left_out
from sftprep.stages.encode_batch import EncodedTexts, Spans, flat_offsets


def compile_chunk(rows: Sequence[InputRow], *, compile_row: CompileRow, config: PackConfig) -> Chunk:
    """Compile each row, or say why it is left out.

    Raises:
        EngineDiffersError: the fast engine gave other ids than the reference for a row of the sample.
        DataError: `replay-differs`.
    """
    taken = rows if isinstance(rows, InputRows) else InputRows.of(rows)
    made = _Made(taken, Fit.of(compile_row, config))
    batch = compile_row.batch if isinstance(compile_row, Compiler) else None
    replayed = None if batch is None else batch.compile(taken)
    for number in range(len(taken)):
        known = None if replayed is None else replayed.rows.get(number)
        error = None if replayed is None else replayed.refused.get(number)
        if error is not None:
            made.refuse(taken[number], error)
        elif known is None or not made.add_replayed(number, known):
            made.add(number, compile_row)
    if batch is not None and replayed is not None:
        made.rendering["checked"] += recheck(taken, replayed, compile_row, tokens=(batch.choice, batch.table))
        made.rendering[f"engine {batch.choice.engine.name}"] += len(replayed.rows)
    return made.chunk(replayed)


@dataclass(slots=True)
class _Made:
    """What became of the rows so far."""

    rows: InputRows
    fit: Fit
    exact: list[ExactRow] = field(default_factory=list)
    left_out: list[LeftOutRow] = field(default_factory=list)
    classes: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    rendering: Counter[str] = field(default_factory=Counter)
    traced: list[tuple[InputRow, Document]] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    """Of each document: its place among the replayed ones, or, as -1 - place, among the traced ones."""
    times: list[int] = field(default_factory=list)

    def add_replayed(self, number: int, known: ReplayedRow) -> bool:
        """Take a row as it was replayed; False where it is too long, and may be shortened."""
        sizes = Sizes(known.lengths, known.trained)
        if self.fit.is_too_long(sizes):
            if self.fit.shorten is not None:
                return False
            self.left_out.append(self.fit.refusal(self.rows[number], sizes))
        else:
            self.order.extend(known.documents)
            self._count(number, sizes, (known.plan.classes, known.plan.remarks))
        self.rendering["replayed"] += 1
        return True

    def refuse(self, row: InputRow, error: MaskError) -> None:
        """Leave out a row that its plan refuses."""
        self.rendering["replayed"] += 1
        self.left_out.append(left_out(row, error))

    def add(self, number: int, compile_row: CompileRow) -> None:
        """Compile a row by itself."""
        row = self.rows[number]
        self.rendering["traced"] += 1
        whole = _compiled(row, compile_row)
        if isinstance(whole, LeftOutRow):
            self.left_out.append(whole)
            return
        result, lost = self.fit.fitted(row, whole)
        self.left_out += lost
        if result is None:
            return
        first = len(self.traced)
        self.traced.extend((row, document) for document in result.documents)
        self.order.extend(-1 - number for number in range(first, len(self.traced)))
        counts = (result.classes, result.remarks)
        self._count(number, Sizes.of(result), counts, whole=None if result is whole else Sizes.of(whole))

    def _count(
        self,
        number: int,
        sizes: Sizes,
        counts: tuple[Mapping[str, int], Mapping[str, int]],
        *,
        whole: Sizes | None = None,
    ) -> None:
        times = self.rows.times[number]
        self.times.extend([times] * len(sizes.lengths))
        self.exact.append(_exact((self.rows.sources[number], times), sizes, whole=whole))
        for counter, own in zip((self.classes, self.remarks), counts, strict=True):
            for name, count in own.items():
                counter[name] += count * times

    def chunk(self, replayed: Replayed | None) -> Chunk:
        """The chunk of all rows."""
        return Chunk(
            documents=self._documents(replayed),
            times=np.array(self.times, dtype=np.int64),
            exact=tuple(self.exact),
            left_out=tuple(self.left_out),
            classes=self.classes,
            remarks=self.remarks,
            rendering=self.rendering,
        )

    def _documents(self, replayed: Replayed | None) -> pa.RecordBatch:
        if replayed is None:
            return _batch(self.traced)
        num_replayed = replayed.documents.num_rows
        if not self.traced and len(self.order) == num_replayed:
            return replayed.documents
        order = [number if number >= 0 else num_replayed - 1 - number for number in self.order]
        both = pa.Table.from_batches([replayed.documents, _batch(self.traced)], schema=TOKEN_BATCH_SCHEMA)
        chosen = both.take(numbers(np.array(order, np.int64))).combine_chunks().to_batches()
        return chosen[0] if chosen else _batch([])


def _compiled(row: InputRow, compile_row: CompileRow) -> CompiledRow | LeftOutRow:
    if row.conversation is None:
        errors = tuple(finding for finding in row.findings if finding.severity is Severity.ERROR)
        return LeftOutRow(row.source, row.times, row.address, errors)
    try:
        compiled = compile_row(row.conversation)
    except (MaskError, TemplateError) as error:
        return left_out(row, error)
    if all(document.num_trained for document in compiled.documents) and compiled.documents:
        return compiled
    return left_out(row, MaskError("a sample has no trained token", code="nothing-trained", place="/messages"))


def _exact(row: tuple[int, int], sizes: Sizes, *, whole: Sizes | None) -> ExactRow:
    """Of a row's source and times; `whole` is of the row before it was shortened, where it was."""
    of_row = sizes if whole is None else whole
    untrained = [length - trained for length, trained in zip(sizes.lengths, sizes.trained, strict=True)]
    return ExactRow(
        source=row[0],
        times=row[1],
        num_documents=len(sizes.lengths),
        num_tokens=sum(of_row.lengths),
        longest=max(of_row.lengths),
        num_trained_whole=0 if whole is None else sum(whole.trained),
        num_repeated=sum(untrained) - max(untrained) if whole is None else 0,
    )


def _batch(documents: Sequence[tuple[InputRow, Document]]) -> pa.RecordBatch:
    """Of TOKEN_BATCH_SCHEMA, one document a row."""
    docs = [document for _, document in documents]
    spans = [span for document in docs for span in document.spans]
    ids = np.concatenate([np.empty(0, np.int32), *(document.ids for document in docs)])
    columns = [
        numbers(np.array([row.source for row, _ in documents], np.int32)),
        numbers(np.array([document.address.line for document in docs], np.int64)),
        numbers(np.array([document.sample for document in docs], np.int32)),
        texts([json.dumps(document.template_kwargs, sort_keys=True) for document in docs]),
    ]
    laid_out = Spans(
        starts=np.array([span.start for span in spans], np.int32),
        kinds=np.array([span.kind for span in spans], np.int8),
        messages=np.array([span.message for span in spans], np.int32),
        weights=np.array([span.weight for span in spans], np.float32),
        offsets=flat_offsets([len(document.spans) for document in docs]),
    )
    return token_batch(columns, EncodedTexts(ids, flat_offsets([len(document.ids) for document in docs])), laid_out)
