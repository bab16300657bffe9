"""`sftprep pack --dry-run`: all rows are read, a seeded sample of them is compiled, and nothing is written.

from sftprep.config.pack import PackConfig
from sftprep.prepare.dry_run import dry_run

dry_run(PackConfig(files=("chats.jsonl",), model="path/to/model", out="shards", max_length=4096)).num_tokens
"""

from __future__ import annotations

import heapq
import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sftprep.arrow import flat
from sftprep.config.pack import PackConfig
from sftprep.data import TOKEN_BATCH_SCHEMA, TRAINED_KINDS
from sftprep.engines.load import load_model
from sftprep.prepare.chunk import Chunk
from sftprep.prepare.chunk_work import compiled_here
from sftprep.prepare.inputs import InputChunk, input_chunks, input_files
from sftprep.reports.dry_run import DryRunReport
from sftprep.shards.gather import BATCH_TOKENS, gather, needs_weights, shard_size
from sftprep.shards.part import parquet_writer
from sftprep.shards.schema import shard_schema
from sftprep.sources.blocks import SourceRow
from sftprep.sources.compressed import OnBytes
from sftprep.stages.estimate import Estimate, RowSample
from sftprep.stages.pack import plan

SAMPLE_ROWS: Final = 2000
"""Rows that are compiled; all where there are no more."""

_LARGEST: Final = 10
"""One in so many rows of the sample is not drawn: they are the largest of all."""

_SLICE_ROWS: Final = 200
"""Rows that are compiled and timed together."""

_PLANNED: Final = 1 << 17
"""Documents that are drawn from the sample and planned, to see how full rows are."""

_TRAINED: Final = [int(kind) for kind in TRAINED_KINDS]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A row of the sample: the lowest keys of all rows are drawn, and the largest rows are in it whatever their key."""

    key: float
    source: int
    name: str
    row: SourceRow
    times: int
    is_certain: bool = False

    @property
    def size(self) -> int:
        """Bytes of it that are packed, with repetition."""
        return len(self.row.raw) * self.times


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of one source that were drawn from its blocks."""

    drawn: tuple[SourceRow, ...]

    @property
    def first(self) -> int:
        """The first of them."""
        return self.drawn[0].address.line

    def rows(self, name: str) -> Iterator[SourceRow]:
        """Each row."""
        yield from self.drawn


@dataclass(slots=True)
class _Population:
    """All rows that are taken at least once."""

    num_rows: int = 0
    num_taken: int = 0
    """With repetition."""
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Compiled:
    """What became of the sample. Arrays float64 `[rows]`, with repetition; documents once each."""

    documents: pa.Table
    times: Array
    tokens: Array
    trained: Array
    num_documents: Array
    codes: tuple[str, ...]
    """Why a row is left out, empty where it is not, `[rows]`."""
    seconds: Array
    """CPU seconds of each slice of rows."""


def dry_run(config: PackConfig, *, on_bytes: OnBytes | None = None, num_sampled: int = SAMPLE_ROWS) -> DryRunReport:
    """What `pack` of the same would publish, estimated from `num_sampled` rows.

    Raises:
        UsageError, SourceError, TemplateError: as `pack` does. Rows that it would refuse the run for are counted.
    """
    model = load_model(config.model, keep_open=True)
    sample, population = _sample(config, on_bytes=on_bytes, size=num_sampled)
    slices = _slices(sample)
    one_process = config.model_copy(update={"workers": 1, "runner": "local"})
    made = compiled_here(map(_chunk, slices), model=model, config=one_process)
    compiled = _compiled((chunk for _, chunk in made), sample)
    certain = np.array([row.is_certain for row in sample], bool)
    sizes = np.array([row.size for row in sample], np.float64)
    times = np.array([row.times for row in sample], np.float64)
    about = RowSample(sizes, population.num_rows, population.size, certain)
    by_row = RowSample(times, population.num_rows, population.num_taken, certain)
    tokens, documents = about.total(compiled.tokens), by_row.total(compiled.num_documents)
    written = _write(compiled, config)
    left_out = about.count(np.array([code != "" for code in compiled.codes]))
    timed = RowSample(
        np.array([sum(row.size for row in rows) for rows in slices], np.float64),
        round(len(slices) * population.num_rows / max(1, len(sample))),
        population.size,
    )
    seconds = timed.total(compiled.seconds) + tokens.scaled(written.seconds)
    return DryRunReport(
        num_input_rows=population.num_rows,
        num_sampled=len(sample),
        num_tokens=tokens,
        num_trained=about.total(compiled.trained),
        num_documents=documents,
        num_rows=_rows(tokens.scaled(1 / written.filled), documents, config),
        num_shards=_shards(tokens, config),
        num_bytes=tokens.scaled(written.bytes),
        cpu_seconds=seconds,
        wall_seconds=seconds.scaled(1 / (config.workers or 1)),
        num_left_out=left_out,
        left_out_by_code=dict(Counter(code for code in compiled.codes if code).most_common()),
        may_be_refused=not config.may_drop(round(left_out.high), num_rows=population.num_rows),
    )


def _sample(config: PackConfig, *, on_bytes: OnBytes | None, size: int) -> tuple[list[_Drawn], _Population]:
    """`size` of the rows in the order of the files: the largest, and others of which each is as likely as any."""
    rng = np.random.default_rng([config.seed, 2])
    drawn: list[_Drawn] = []
    largest: list[tuple[int, int, _Drawn]] = []
    population, highest = _Population(), 1.0
    for chunk in input_chunks(input_files(config), config, on_bytes=on_bytes):
        for number, row in enumerate(chunk.block.rows(chunk.name)):
            times = chunk.times if isinstance(chunk.times, int) else chunk.times[number]
            found = _Drawn(float(rng.random()), chunk.source, chunk.name, row, times)
            if not times:
                continue
            population.num_rows += 1
            population.num_taken += times
            population.size += found.size
            if found.key < highest:
                drawn.append(found)
            _keep_largest(largest, (found.size, -population.num_rows, found), size // _LARGEST)
        if len(drawn) > 2 * size:
            drawn = sorted(drawn, key=lambda row: row.key)[:size]
            highest = drawn[-1].key
    certain = {row.key: replace(row, is_certain=True) for _, _, row in largest}
    kept = [row for row in sorted(drawn, key=lambda row: row.key) if row.key not in certain]
    sample = [*certain.values(), *kept[: size - len(certain)]]
    return sorted(sample, key=lambda row: (row.source, row.row.address.line)), population


def _keep_largest(heap: list[tuple[int, int, _Drawn]], item: tuple[int, int, _Drawn], count: int) -> None:
    if len(heap) < count:
        heapq.heappush(heap, item)
    elif heap and item > heap[0]:
        heapq.heapreplace(heap, item)


def _slices(sample: Sequence[_Drawn]) -> list[list[_Drawn]]:
    """Runs of rows of one source, about as many as a chunk of a pack has: rows cost less together."""
    slices: list[list[_Drawn]] = []
    for _, rows in groupby(sample, key=lambda row: row.source):
        of_source = list(rows)
        slices += [of_source[first : first + _SLICE_ROWS] for first in range(0, len(of_source), _SLICE_ROWS)]
    return slices


def _chunk(rows: Sequence[_Drawn]) -> InputChunk:
    block = _Block(tuple(row.row for row in rows))
    return InputChunk(rows[0].source, rows[0].name, block, tuple(row.times for row in rows))


def _compiled(chunks: Iterator[Chunk], sample: Sequence[_Drawn]) -> _Compiled:
    """What became of each row, told by the addresses of documents and of rows left out."""
    number_of = {(row.source, row.row.address.line): number for number, row in enumerate(sample)}
    values, codes = np.zeros((3, len(sample))), [""] * len(sample)
    batches, times, seconds = [], [], []
    start = time.process_time()
    for chunk in chunks:
        seconds.append(time.process_time() - start)
        lines = zip(chunk.documents["doc_file"].to_pylist(), chunk.documents["doc_line"].to_pylist(), strict=True)
        rows = [number_of[line] for line in lines]
        lengths, trained = _lengths(chunk.documents)
        for column, amount in zip(values, (lengths, trained, np.ones(len(rows))), strict=True):
            np.add.at(column, rows, amount * chunk.times)
        for left_out in chunk.left_out:
            if not left_out.is_partial:
                codes[number_of[left_out.source, left_out.address.line]] = left_out.code
        batches.append(chunk.documents)
        times.append(chunk.times)
        start = time.process_time()
    return _Compiled(
        documents=pa.Table.from_batches(batches, schema=TOKEN_BATCH_SCHEMA),
        times=np.concatenate([np.empty(0, np.int64), *times]),
        tokens=values[0],
        trained=values[1],
        num_documents=values[2],
        codes=tuple(codes),
        seconds=np.array(seconds),
    )


def _lengths(documents: pa.RecordBatch) -> tuple[Array, Array]:
    """Tokens and trained tokens of each document."""
    lengths = np.diff(flat(documents["input_ids"].offsets))
    spans = zip(documents["span_starts"].to_pylist(), documents["span_kinds"].to_pylist(), strict=True)
    trained = []
    for (starts, kinds), length in zip(spans, lengths.tolist(), strict=True):
        sizes = np.diff(starts, append=length)
        trained.append(int(sizes[np.isin(kinds, _TRAINED)].sum()))
    return lengths, np.array(trained, np.int64)


@dataclass(frozen=True, slots=True)
class _Written:
    """What the sample's documents came to as shards, each a token: bytes, CPU seconds; and tokens a row holds."""

    bytes: float
    seconds: float
    filled: float


def _write(compiled: _Compiled, config: PackConfig) -> _Written:
    """Plan the sample's documents, drawn again until there are many, and write them to memory once."""
    lengths = flat(pc.list_value_length(compiled.documents["input_ids"])).astype(np.int64)
    if not len(lengths):
        return _Written(0.0, 0.0, 1.0)
    taken = np.repeat(lengths, compiled.times)
    capacity = config.max_length or int(lengths.max())
    many = np.random.default_rng([config.seed, 3]).choice(taken, max(len(taken), _PLANNED))
    filled = float(many.sum()) / plan(many, capacity=capacity, seed=config.seed).num_packs
    start = time.process_time()
    has_weights = needs_weights(compiled.documents)
    schema = shard_schema(weights=has_weights)
    sink = io.BytesIO()
    with parquet_writer(sink, schema) as writer:
        packs = plan(lengths, capacity=capacity, seed=config.seed)
        for batch in gather(compiled.documents, packs, weights=has_weights):
            writer.write_batch(batch, row_group_size=len(batch))
    num_tokens = int(lengths.sum())
    return _Written(sink.tell() / num_tokens, (time.process_time() - start) / num_tokens, filled)


def _rows(rows: Estimate, documents: Estimate, config: PackConfig) -> Estimate:
    """Rows of the set: as many as documents without packing, as are asked for, or a multiple of what is."""
    if config.num_rows is not None:
        return Estimate.exact(config.num_rows)
    found = rows if config.packing else documents
    each = config.rows_multiple_of
    return Estimate(*(float(-(-round(value) // each) * each) for value in (found.value, found.low, found.high)))


def _shards(tokens: Estimate, config: PackConfig) -> Estimate:
    """A file is closed behind the batch with which it has its tokens."""
    found = [_num_shards(round(value), config) for value in (tokens.value, tokens.low, tokens.high)]
    return Estimate(float(found[0]), float(min(found)), float(max(found)))


def _num_shards(num_tokens: int, config: PackConfig) -> int:
    each = -(-(config.shard_tokens or shard_size(num_tokens)) // BATCH_TOKENS) * BATCH_TOKENS
    return max(1, -(-num_tokens // each))
