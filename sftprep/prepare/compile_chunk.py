"""A chunk of rows to one token batch, whichever process does it: what has a plan together, the rest row by row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.arrow import numbers, texts
from sftprep.config.pack import PackConfig
from sftprep.data import Document, Severity
from sftprep.errors import MaskError, TemplateError
from sftprep.prepare.batch import Replayed, token_batch
from sftprep.prepare.chunk import EXACT_ROWS, Chunk, InputRow, LeftOutRow
from sftprep.prepare.compile import CompiledRow, Compiler, CompileRow
from sftprep.prepare.input_rows import InputRows
from sftprep.prepare.recheck import recheck
from sftprep.prepare.row_length import Fit, Sizes, left_out
from sftprep.stages.encode_batch import EncodedTexts, Ints, Spans, flat_offsets


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
    for number in made.to_trace():
        made.add(number, compile_row)
    if batch is not None:
        made.rendering["checked"] += recheck(taken, replayed, compile_row, tokens=(batch.choice, batch.table))
        made.rendering[f"engine {batch.choice.engine.name}"] += len(replayed.rows)
    return made.chunk()


class _Made:
    """What became of the rows so far: at first those that were replayed, in columns, then one by one the others."""

    def __init__(self, rows: InputRows, fit: Fit, replayed: Replayed) -> None:
        self.rows = rows
        self.fit = fit
        self.rendering: Counter[str] = Counter()
        self._replayed = replayed
        self._numbers = replayed.rows
        self._sizes = _Sizes.of(replayed)
        self._fits = ~fit.are_too_long(self._sizes.longest)
        self._exact: list[tuple[int, ...]] = []
        self._left_out: list[tuple[int, LeftOutRow]] = []
        """These two with the number of the row before."""
        self._counts = (Counter[str](), Counter[str]())
        """Classes, and remarks."""
        self._traced: list[tuple[InputRow, Document]] = []
        self._traced_numbers: list[int] = []
        """Of each document that of its row."""

    def to_trace(self) -> list[int]:
        """The numbers of the rows that no plan decides; those that plans refuse, or made too long, are left out."""
        open_rows = np.ones(len(self.rows), dtype=np.bool_)
        open_rows[self._numbers if self.fit.shorten is None else self._numbers[self._fits]] = False
        for number, error in self._replayed.refused.items():
            open_rows[number] = False
            self._left_out.append((number, left_out(self.rows[number], error)))
        for place in np.flatnonzero(~self._fits).tolist() if self.fit.shorten is None else ():
            number, documents = int(self._numbers[place]), slice(*self._replayed.offsets[place : place + 2].tolist())
            sizes = Sizes(self._replayed.lengths[documents].tolist(), self._replayed.trained[documents].tolist())
            self._left_out.append((number, self.fit.refusal(self.rows[number], sizes)))
        numbers: list[int] = np.flatnonzero(open_rows).tolist()
        if len(numbers) < len(open_rows):
            self.rendering["replayed"] = len(open_rows) - len(numbers)
        return numbers

    def add(self, number: int, compile_row: CompileRow) -> None:
        """Compile a row by itself."""
        row = self.rows[number]
        self.rendering["traced"] += 1
        whole = _compiled(row, compile_row)
        if isinstance(whole, LeftOutRow):
            self._left_out.append((number, whole))
            return
        result, lost = self.fit.fitted(row, whole)
        self._left_out += [(number, left) for left in lost]
        if result is None:
            return
        self._traced.extend((row, document) for document in result.documents)
        self._traced_numbers += [number] * len(result.documents)
        self._exact.append((number, *_exact(row, Sizes.of(result), whole=None if result is whole else Sizes.of(whole))))
        self._count((result.classes, result.remarks), row.times)

    def _count(self, counts: tuple[Mapping[str, int], Mapping[str, int]], times: int) -> None:
        for counter, own in zip(self._counts, counts, strict=True):
            for name, count in own.items():
                counter[name] += count * times

    def chunk(self) -> Chunk:
        """The chunk of all rows."""
        times = np.array(self.rows.times, dtype=np.int64)
        of_plans = np.zeros(len(self._replayed.plans), dtype=np.int64)
        np.add.at(of_plans, self._replayed.of_rows[self._fits], times[self._numbers[self._fits]])
        for plan, count in zip(self._replayed.plans, of_plans.tolist(), strict=True):
            if count:
                self._count((plan.classes, plan.remarks), count)
        documents, numbers_of_documents = self._documents()
        return Chunk(
            documents=documents,
            times=times[numbers_of_documents],
            exact_rows=self._exact_rows(),
            left_out=tuple(row for _, row in sorted(self._left_out, key=itemgetter(0))),
            classes=self._counts[0],
            remarks=self._counts[1],
            rendering=self.rendering,
        )

    def _exact_rows(self) -> pa.RecordBatch:
        sizes, kept = self._sizes, self._numbers[self._fits]
        own = [np.array(column, dtype=np.int64)[kept] for column in (self.rows.sources, self.rows.times)]
        own += [column[self._fits] for column in (sizes.documents, sizes.tokens, sizes.longest, sizes.repeated)]
        replayed = np.stack([kept, *own, np.zeros(len(kept), dtype=np.int64)], axis=1)
        traced = np.array(self._exact, dtype=np.int64).reshape(-1, replayed.shape[1])
        both = np.concatenate([replayed, traced])
        columns = both[np.argsort(both[:, 0], kind="stable")].T[1:]
        return pa.RecordBatch.from_arrays([numbers(column) for column in columns], schema=EXACT_ROWS)

    def _documents(self) -> tuple[pa.RecordBatch, Ints]:
        """The documents of rows that fit, in the rows' order, and of each the number of its row."""
        replayed = self._replayed.documents
        fits = np.repeat(self._fits, self._sizes.documents)
        of_rows = np.concatenate(
            [np.repeat(self._numbers, self._sizes.documents)[fits], np.array(self._traced_numbers, dtype=np.int64)]
        )
        if not self._traced and fits.all():
            return replayed, of_rows
        order = np.argsort(of_rows, kind="stable")
        places = np.concatenate([np.flatnonzero(fits), np.arange(len(self._traced))])[order]
        are_traced = order >= np.count_nonzero(fits)
        traced = _batch(self._traced) if self._traced else replayed.slice(0, 0)
        return _in_runs((replayed, traced), are_traced, places), of_rows[order]


class _Sizes(NamedTuple):
    """Of each replayed row, int64 `[rows]`: documents, tokens, those of the longest document, and repeated ones."""

    documents: Ints
    tokens: Ints
    longest: Ints
    repeated: Ints

    @classmethod
    def of(cls, replayed: Replayed) -> _Sizes:
        """As EXACT_ROWS says."""
        first, counts = replayed.offsets[:-1], np.diff(replayed.offsets)
        if not len(first):
            return cls(counts, counts, counts, counts)
        tokens, untrained = replayed.lengths, replayed.lengths - replayed.trained
        repeated = np.add.reduceat(untrained, first) - np.maximum.reduceat(untrained, first)
        return cls(counts, np.add.reduceat(tokens, first), np.maximum.reduceat(tokens, first), repeated)


def _in_runs(
    batches: tuple[pa.RecordBatch, pa.RecordBatch], are_second: npt.NDArray[np.bool_], places: Ints
) -> pa.RecordBatch:
    """The documents at these places of the first batch or the second; neighbours are copied together, as they lie."""
    begins = np.flatnonzero((np.diff(places, prepend=-2) != 1) | np.diff(are_second, prepend=False))
    runs = zip(are_second[begins].tolist(), places[begins].tolist(), np.diff(begins, append=len(places)), strict=True)
    chosen = [batches[second].slice(first, count) for second, first, count in runs]
    # A run that is alone would stay where it lies, among what is left out.
    (joined,) = pa.Table.from_batches([batches[0].slice(0, 0), *chosen]).combine_chunks().to_batches() or [_batch([])]
    return joined


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


def _exact(row: InputRow, sizes: Sizes, *, whole: Sizes | None) -> tuple[int, ...]:
    """A row of EXACT_ROWS; `whole` is of the row before it was shortened, where it was."""
    of_row = sizes if whole is None else whole
    untrained = [length - trained for length, trained in zip(sizes.lengths, sizes.trained, strict=True)]
    repeated = sum(untrained) - max(untrained) if whole is None else 0
    trained_whole = 0 if whole is None else sum(whole.trained)
    counts = (len(sizes.lengths), sum(of_row.lengths), max(of_row.lengths), repeated, trained_whole)
    return row.source, row.times, *counts


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
