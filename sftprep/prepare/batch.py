"""Rows of a chunk that have a plan, compiled together: rendered by joining, encoded at once, proven by arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from sftprep.arrow import lists, numbers, texts
from sftprep.data import TOKEN_BATCH_SCHEMA, TRAINED_KINDS, span_stops
from sftprep.engines.fast import EngineChoice
from sftprep.errors import MaskError
from sftprep.prepare.batch_layout import Layouts
from sftprep.prepare.input_rows import InputRows
from sftprep.prepare.own_documents import OwnDocuments, encode_samples
from sftprep.prepare.plans import PlanBook
from sftprep.stages.encode_batch import EncodedTexts, Ints, Spans, TokenTable, flat_offsets, prove_batch
from sftprep.stages.replay import RowPlan

_TRAINED = np.array([int(kind) for kind in TRAINED_KINDS], dtype=np.int8)


class Candidate(NamedTuple):
    """A row that has a plan: its place among the rows, its source's number and its line."""

    number: int
    source: int
    line: int
    plan: RowPlan
    values: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Replayed:
    """Rows of a chunk that are exact, in their order, and their documents (TOKEN_BATCH_SCHEMA).

    `rows` and `plans`: of each row its place in the chunk, and its plan; its documents are those from `offsets[i]` to
    `offsets[i + 1]`, int64 `[rows + 1]`. `lengths` and `trained`, int64 `[documents]`, are their tokens.
    """

    rows: Sequence[int]
    plans: Sequence[RowPlan]
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
        documents = token_batch(list(_columns((), offsets)), EncodedTexts(ids, offsets), spans)
        return cls((), (), offsets, nothing, nothing, documents)


class BatchCompiler:
    """Compiles what has a plan. `choice` encodes, its reference knows what a token is; `table` has a token's bytes."""

    def __init__(self, book: PlanBook, *, choice: EngineChoice, table: TokenTable) -> None:
        self._book = book
        self.choice = choice
        self.table = table
        self._layouts = Layouts(choice.reference, table, choice.encode_batch)
        self._own_documents = OwnDocuments(choice.reference, table)

    def compile(self, rows: InputRows) -> Replayed:
        """Replay the rows that have a plan; those of which any sample cannot be proven are not among them."""
        candidates: list[Candidate] = []
        refused: dict[int, MaskError] = {}
        for number, found in enumerate(self._book.replay_all(rows)):
            if isinstance(found, MaskError):
                refused[number] = found
            elif found is not None:
                plan, values = self._own_documents.of(found[0]), found[1]
                if all(map(self._layouts.can_prove, plan.samples)):
                    candidates.append(Candidate(number, rows.sources[number], rows.lines[number], plan, values))
        return replace(self._compiled(candidates), refused=refused)

    def _compiled(self, candidates: Sequence[Candidate]) -> Replayed:
        """Encode and prove; where a sample fails, the rest is proven again without its row."""
        owners = [candidate for candidate in candidates for _ in candidate.plan.samples]
        samples = [sample for candidate in candidates for sample in candidate.plan.samples]
        pieces = [sample.take(owner.values) for owner, sample in zip(owners, samples, strict=True)]
        texts = [b"".join(own) for own in pieces]
        encoded = encode_samples(self.choice, samples, pieces, texts)
        bad: set[int] = set()
        while owners:
            ok, spans = prove_batch(self._layouts.batch(samples, pieces, texts), encoded, self.table)
            if ok.all():
                exact = [candidate for candidate in candidates if candidate.number not in bad]
                return _replayed(exact, encoded, spans)
            bad |= {owner.number for owner, is_exact in zip(owners, ok, strict=True) if not is_exact}
            kept = [number for number, owner in enumerate(owners) if owner.number not in bad]
            owners, samples = [owners[n] for n in kept], [samples[n] for n in kept]
            pieces, texts = [pieces[n] for n in kept], [texts[n] for n in kept]
            encoded = encoded.only(kept)
        return Replayed.none()


def _replayed(candidates: Sequence[Candidate], encoded: EncodedTexts, spans: Spans) -> Replayed:
    lengths = np.diff(encoded.offsets)
    stops = span_stops(spans.starts, spans.offsets, lengths)
    sizes = np.where(np.isin(spans.kinds, _TRAINED), stops - spans.starts, 0)
    plans = [candidate.plan for candidate in candidates]
    offsets = flat_offsets([len(plan.samples) for plan in plans])
    return Replayed(
        rows=[candidate.number for candidate in candidates],
        plans=plans,
        offsets=offsets,
        lengths=lengths,
        trained=np.add.reduceat(sizes, spans.offsets[:-1]),
        documents=token_batch(list(_columns(candidates, offsets)), encoded, spans),
    )


def _columns(candidates: Sequence[Candidate], offsets: Ints) -> Iterator[pa.Array]:
    counts = np.diff(offsets)
    yield numbers(np.repeat(np.array([candidate.source for candidate in candidates], np.int32), counts))
    yield numbers(np.repeat(np.array([candidate.line for candidate in candidates], np.int64), counts))
    yield numbers((np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)).astype(np.int32))
    yield texts([sample.kwargs for candidate in candidates for sample in candidate.plan.samples])


def token_batch(columns: Sequence[pa.Array], encoded: EncodedTexts, spans: Spans) -> pa.RecordBatch:
    """Of TOKEN_BATCH_SCHEMA; `columns` are those of the documents, from `doc_file` on."""
    of_spans = [lists(own, spans.offsets) for own in (spans.starts, spans.kinds, spans.messages, spans.weights)]
    ids = lists(encoded.ids, encoded.offsets)
    return pa.RecordBatch.from_arrays([ids, *of_spans, *columns], schema=TOKEN_BATCH_SCHEMA)
