"""Rows of a chunk that have a plan, compiled together: rendered by joining, encoded at once, proven by arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from sftprep.arrow import lists, numbers, texts
from sftprep.data import TOKEN_BATCH_SCHEMA, TRAINED_KINDS, span_stops
from sftprep.engines.fast import EngineChoice
from sftprep.errors import MaskError
from sftprep.prepare.batch_layout import Layouts, SampleTexts, taken
from sftprep.prepare.input_rows import InputRows
from sftprep.prepare.own_documents import OwnDocuments, encode_samples
from sftprep.prepare.plans import Found, PlanBook
from sftprep.stages.encode_batch import EncodedTexts, Ints, Spans, TokenTable, flat_offsets, prove_batch
from sftprep.stages.replay import RowPlan

_TRAINED = np.array([int(kind) for kind in TRAINED_KINDS], dtype=np.int8)


class _Planned(NamedTuple):
    """Rows that have a plan: their places, which of the plans each has, int64 `[rows]`, and what it is made of."""

    plans: Sequence[RowPlan]
    places: Ints
    of_rows: Ints
    values: Sequence[Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class Replayed:
    """Rows of a chunk that are exact, in their order, and their documents (TOKEN_BATCH_SCHEMA).

    `rows` and `of_rows`, int64 `[rows]`: of each row its place in the chunk, and which of `plans` it has; its documents
    are those from `offsets[i]` to `offsets[i + 1]`, int64 `[rows + 1]`. `lengths` and `trained`, int64 `[documents]`,
    are their tokens.
    """

    plans: Sequence[RowPlan]
    rows: Ints
    of_rows: Ints
    offsets: Ints
    lengths: Ints
    trained: Ints
    documents: pa.RecordBatch
    refused: Mapping[int, MaskError] = field(default_factory=dict)
    """What is wrong with each row that cannot be exact, by its place."""

    @classmethod
    def none(cls) -> Replayed:
        """Of no row."""
        nothing = np.zeros(0, dtype=np.int64)
        ids, offsets = nothing.astype(np.int32), flat_offsets(())
        spans = Spans(ids, ids.astype(np.int8), ids, ids.astype(np.float32), offsets)
        columns = [numbers(ids), numbers(nothing), numbers(ids), texts(())]
        documents = token_batch(columns, EncodedTexts(ids, offsets), spans)
        return cls((), nothing, nothing, offsets, nothing, nothing, documents)

    def plan(self, number: int) -> RowPlan:
        """The plan of one of the rows."""
        return self.plans[int(self.of_rows[number])]


class BatchCompiler:
    """Compiles what has a plan. `choice` encodes, its reference knows what a token is; `table` has a token's bytes."""

    def __init__(self, book: PlanBook, *, choice: EngineChoice, table: TokenTable) -> None:
        self._book = book
        self.choice = choice
        self.table = table
        self._layouts = Layouts(choice, table)
        self._own_documents = OwnDocuments(choice.reference, table)

    def compile(self, rows: InputRows) -> Replayed:
        """Replay the rows that have a plan; those of which any sample cannot be proven are not among them."""
        found = list(self._book.replay_all(rows))
        refused = {place: error for place, error in enumerate(found) if isinstance(error, MaskError)}
        return replace(self._compiled(rows, self._planned(found)), refused=refused)

    def _planned(self, found: Sequence[Found]) -> _Planned:
        """The rows that have a plan whose turns can be proven."""
        own = [(place, *one) for place, one in enumerate(found) if isinstance(one, tuple)]
        different = {id(plan): plan for _, plan, _ in own}
        numbers: dict[int, int] = {}
        plans: list[RowPlan] = []
        for key, plan in different.items():
            made = self._own_documents.of(plan)
            if all(map(self._layouts.can_prove, made.samples)):
                numbers[key] = len(plans)
                plans.append(made)
        if len(plans) < len(different):
            own = [one for one in own if id(one[1]) in numbers]
        places = np.array([place for place, _, _ in own], dtype=np.int64)
        of_rows = np.array([numbers[id(plan)] for _, plan, _ in own], dtype=np.int64)
        return _Planned(plans, places, of_rows, [values for _, _, values in own])

    def _compiled(self, rows: InputRows, planned: _Planned) -> Replayed:
        """Encode and prove; where a sample fails, the rest is proven again without its row."""
        takes = [[sample.take for sample in plan.samples] for plan in planned.plans]
        counts, chosen = taken(np.array([len(own) for own in takes], dtype=np.int64), planned.of_rows)
        rows_of_plans = zip(planned.of_rows.tolist(), planned.values, strict=True)
        pieces = [take(values) for number, values in rows_of_plans for take in takes[number]]
        samples = SampleTexts.of([sample for plan in planned.plans for sample in plan.samples], chosen, pieces)
        encoded = encode_samples(self.choice, samples)
        owners = np.repeat(np.arange(len(planned.places)), np.diff(counts))
        while len(owners):
            ok, spans = prove_batch(self._layouts.batch(samples), encoded, self.table)
            if ok.all():
                return _replayed(rows, planned, (owners, samples.chosen), (encoded, spans))
            kept = np.flatnonzero(~np.isin(owners, owners[~ok]))
            owners, samples, encoded = owners[kept], samples.only(kept), encoded.only(kept)
        return Replayed.none()


def _replayed(
    rows: InputRows, planned: _Planned, documents: tuple[Ints, Ints], tokens: tuple[EncodedTexts, Spans]
) -> Replayed:
    """`documents`: the planned row that each is of, and which sample of the plans it is."""
    (owners, chosen), (encoded, spans) = documents, tokens
    lengths = np.diff(encoded.offsets)
    stops = span_stops(spans.starts, spans.offsets, lengths)
    sizes = np.where(np.isin(spans.kinds, _TRAINED), stops - spans.starts, 0)
    exact, first, counts = np.unique(owners, return_index=True, return_counts=True)
    places = planned.places[owners]
    kwargs = texts([sample.kwargs for plan in planned.plans for sample in plan.samples])
    columns = [
        numbers(np.array(rows.sources, dtype=np.int32)[places]),
        numbers(np.array(rows.lines, dtype=np.int64)[places]),
        numbers((np.arange(len(owners)) - np.repeat(first, counts)).astype(np.int32)),
        kwargs.take(numbers(chosen)),
    ]
    return Replayed(
        plans=planned.plans,
        rows=planned.places[exact],
        of_rows=planned.of_rows[exact],
        offsets=np.append(first, len(owners)),
        lengths=lengths,
        trained=np.add.reduceat(sizes, spans.offsets[:-1]),
        documents=token_batch(columns, encoded, spans),
    )


def token_batch(columns: Sequence[pa.Array], encoded: EncodedTexts, spans: Spans) -> pa.RecordBatch:
    """Of TOKEN_BATCH_SCHEMA; `columns` are those of the documents, from `doc_file` on."""
    of_spans = [lists(own, spans.offsets) for own in (spans.starts, spans.kinds, spans.messages, spans.weights)]
    ids = lists(encoded.ids, encoded.offsets)
    return pa.RecordBatch.from_arrays([ids, *of_spans, *columns], schema=TOKEN_BATCH_SCHEMA)
