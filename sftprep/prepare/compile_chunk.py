"""A chunk of rows to one token batch, whichever process does it: what has a plan together, the rest row by row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from sftprep.arrow import numbers, texts
from sftprep.config.pack import PackConfig
from sftprep.data import TOKEN_BATCH_SCHEMA, Document, Severity
from sftprep.errors import MaskError, TemplateError
from sftprep.prepare.batch import Replayed, token_batch
from sftprep.prepare.chunk import Chunk, ExactRow, InputRow, LeftOutRow
from sftprep.prepare.compile import CompiledRow, Compiler, CompileRow
from sftprep.prepare.input_rows import InputRows
from sftprep.prepare.recheck import recheck
from sftprep.prepare.row_length import Fit, Sizes, left_out
from sftprep.stages.encode_batch import EncodedTexts, Spans, flat_offsets
from sftprep.stages.replay import RowPlan


def compile_chunk(rows: Sequence[InputRow], *, compile_row: CompileRow, config: PackConfig) -> Chunk:
    """Compile each row, or say why it is left out.

    Raises:
        EngineDiffersError: the fast engine gave other ids than the reference for a row of the sample.
        DataError: `replay-differs`.
    """
    taken = rows if isinstance(rows, InputRows) else InputRows.of(rows)
    batch = compile_row.batch if isinstance(compile_row, Compiler) else None
    replayed = Replayed.none() if batch is None else batch.compile(taken)
    made = _Made(taken, Fit.of(compile_row, config), replayed)
    places = {number: place for place, number in enumerate(replayed.rows)}
    for number in range(len(taken)):
        place = places.get(number)
        if number in replayed.refused:
            made.refuse(taken[number], replayed.refused[number])
        elif place is None or not made.add_replayed(number, place):
            made.add(number, compile_row)
    if batch is not None:
        made.rendering["checked"] += recheck(taken, replayed, compile_row, tokens=(batch.choice, batch.table))
        made.rendering[f"engine {batch.choice.engine.name}"] += len(replayed.rows)
    return made.chunk()


class _Made:
    """What became of the rows so far."""

    def __init__(self, rows: InputRows, fit: Fit, replayed: Replayed) -> None:
        self.rows = rows
        self.fit = fit
        self.rendering: Counter[str] = Counter()
        self._replayed = replayed
        self._sizes = _sizes_of_rows(replayed)
        self._exact: list[ExactRow] = []
        self._left_out: list[LeftOutRow] = []
        self._counts = (Counter[str](), Counter[str]())
        """Classes, and remarks."""
        self._plans: dict[int, RowPlan] = {}
        self._times_of_plans: Counter[int] = Counter()
        self._traced: list[tuple[InputRow, Document]] = []
        self._order: list[int] = []
        """Of each document: its place among the replayed ones, or, as -1 - place, among the traced ones."""
        self._times: list[int] = []

    def add_replayed(self, number: int, place: int) -> bool:
        """Take a row as it was replayed, `place` among those; False where it is too long, and may be shortened."""
        first, stop, num_tokens, longest, repeated = self._sizes[place]
        if self.fit.is_too_long(longest):
            if self.fit.shorten is not None:
                return False
            sizes = Sizes(self._replayed.lengths[first:stop].tolist(), self._replayed.trained[first:stop].tolist())
            self._left_out.append(self.fit.refusal(self.rows[number], sizes))
        else:
            times, plan = self.rows.times[number], self._replayed.plans[place]
            self._order.extend(range(first, stop))
            self._times.extend([times] * (stop - first))
            self._exact.append(ExactRow(self.rows.sources[number], times, stop - first, num_tokens, longest, repeated))
            self._plans[id(plan)] = plan
            self._times_of_plans[id(plan)] += times
        self.rendering["replayed"] += 1
        return True

    def refuse(self, row: InputRow, error: MaskError) -> None:
        """Leave out a row that its plan refuses."""
        self.rendering["replayed"] += 1
        self._left_out.append(left_out(row, error))

    def add(self, number: int, compile_row: CompileRow) -> None:
        """Compile a row by itself."""
        row = self.rows[number]
        self.rendering["traced"] += 1
        whole = _compiled(row, compile_row)
        if isinstance(whole, LeftOutRow):
            self._left_out.append(whole)
            return
        result, lost = self.fit.fitted(row, whole)
        self._left_out += lost
        if result is None:
            return
        first = len(self._traced)
        self._traced.extend((row, document) for document in result.documents)
        self._order.extend(-1 - number for number in range(first, len(self._traced)))
        times = self.rows.times[number]
        self._times.extend([times] * len(result.documents))
        self._exact.append(_exact(row, Sizes.of(result), whole=None if result is whole else Sizes.of(whole)))
        self._count((result.classes, result.remarks), times)

    def _count(self, counts: tuple[Mapping[str, int], Mapping[str, int]], times: int) -> None:
        for counter, own in zip(self._counts, counts, strict=True):
            for name, count in own.items():
                counter[name] += count * times

    def chunk(self) -> Chunk:
        """The chunk of all rows."""
        for key, plan in self._plans.items():
            self._count((plan.classes, plan.remarks), self._times_of_plans[key])
        classes, remarks = self._counts
        return Chunk(
            documents=self._documents(),
            times=np.array(self._times, dtype=np.int64),
            exact=tuple(self._exact),
            left_out=tuple(self._left_out),
            classes=classes,
            remarks=remarks,
            rendering=self.rendering,
        )

    def _documents(self) -> pa.RecordBatch:
        replayed = self._replayed.documents
        if not self._traced and len(self._order) == replayed.num_rows:
            return replayed
        order = [number if number >= 0 else replayed.num_rows - 1 - number for number in self._order]
        both = pa.Table.from_batches([replayed, _batch(self._traced)], schema=TOKEN_BATCH_SCHEMA)
        chosen = both.take(numbers(np.array(order, np.int64))).combine_chunks().to_batches()
        return chosen[0] if chosen else _batch([])


def _sizes_of_rows(replayed: Replayed) -> list[tuple[int, int, int, int, int]]:
    """Of each replayed row: its first document and that of the next, its tokens, its longest document's, its repeated.

    Repeated are the untrained tokens beyond those of the document that has most of them.
    """
    first, stop = replayed.offsets[:-1], replayed.offsets[1:]
    if not len(first):
        return []
    tokens, untrained = replayed.lengths, replayed.lengths - replayed.trained
    repeated = np.add.reduceat(untrained, first) - np.maximum.reduceat(untrained, first)
    columns = (first, stop, np.add.reduceat(tokens, first), np.maximum.reduceat(tokens, first), repeated)
    return list(zip(*(column.tolist() for column in columns), strict=True))


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


def _exact(row: InputRow, sizes: Sizes, *, whole: Sizes | None) -> ExactRow:
    """`whole` is of the row before it was shortened, where it was."""
    of_row = sizes if whole is None else whole
    untrained = [length - trained for length, trained in zip(sizes.lengths, sizes.trained, strict=True)]
    return ExactRow(
        source=row.source,
        times=row.times,
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
