"""What packing can fail to: each fault is planted, and its witness must see it (F4–F7, F9, F10, G1–G4, H1–H7).

F3, F8 and G5 are of training: `tests/train` has their witnesses and plants their faults.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sftprep.config import pack as options
from sftprep.data import PackPlan
from sftprep.engines.load import load_model
from sftprep.engines.model import ModelFiles
from sftprep.prepare import fingerprint, pack, pack_report, workers
from sftprep.prepare.chunk_account import LeftOutSums
from sftprep.prepare.ledger import Ledger
from sftprep.prepare.plans import PlanBook
from sftprep.prepare.spool import Spool
from sftprep.shards import gather, part
from sftprep.sources.state import FileState
from sftprep.stages import pack as planner
from sftprep.stages import render
from tests import test_mutations
from tests.prepare import (
    test_fingerprint,
    test_mix,
    test_over_length,
    test_pack,
    test_pack_demands,
    test_pack_workers,
    test_unchanged,
)
from tests.stages import test_pack_plan
from tests.test_mutations import NOTHING, Plant, changed, constant, cutting, wrapped


def in_one_row_more(packs: PackPlan) -> PackPlan:
    """Two rows are joined, whatever they hold."""
    return replace(packs, offsets=np.delete(packs.offsets, 1)) if packs.num_packs > 1 else packs


def one_is_lost(packs: PackPlan) -> PackPlan:
    order = packs.order.copy()
    order[0] = order[-1]
    return replace(packs, order=order)


def one_a_row(lengths: Any, *, capacity: int, seed: int) -> PackPlan:
    return planner.plan_single(lengths, seed=seed)


def by_their_size(order: Any, *, sizes: Any, seed: int) -> PackPlan:
    """Rows in the order in which they were begun: the longest documents first."""
    return PackPlan(order=order, offsets=np.concatenate([[0], np.cumsum(sizes)]))


def as_they_come(times: Any, *, seed: int) -> Any:
    return np.repeat(np.arange(len(times)), times)


def with_borders_trained(batch: pa.RecordBatch) -> pa.RecordBatch:
    masks = batch["assistant_masks"].values.to_numpy().copy()
    masks[batch["assistant_masks"].offsets.to_numpy()[:-1]] = 1
    lists = pa.ListArray.from_arrays(batch["assistant_masks"].offsets, pa.array(masks))
    return batch.set_column(1, batch.schema.field(1), lists)


def with_short_masks(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Each row's mask ends one token early."""
    rows = [mask[:-1] for mask in batch["assistant_masks"].to_pylist()]
    return batch.set_column(1, batch.schema.field(1), pa.array(rows, batch.schema.field(1).type))


class Bounded(options.PackConfig):
    """A length that nobody has named."""

    max_length: int | None = 1024


class Dropping(options.PackConfig):
    """What is too long goes without a word."""

    max_drop: str = "100%"


def kept_in_memory(self: Ledger, chunk: Any) -> None:
    """Chunks are held until all are known."""
    self.__dict__.setdefault("kept", []).append(chunk)
    ADD(self, chunk)


def first_of(lines: Iterator[bytes]) -> Iterator[bytes]:
    return (line for line in list(lines)[:1])


def uncounted(self: LeftOutSums, row: Any) -> None:
    ADD_LEFT_OUT(self, replace(row, num_trained=0))


class Dealt:
    """Two workers that each have every second chunk, whatever the other does."""

    def __init__(self, pools: list[Any]) -> None:
        self.pools = pools
        self.count = 0

    def submit(self, *work: Any) -> Any:
        self.count += 1
        return self.pools[self.count % 2].submit(*work)

    def shutdown(self, **how: Any) -> None:
        for pool in self.pools:
            pool.shutdown(**how)


def dealt_out(self: Any) -> Dealt:
    self.num_workers = 1
    pools = [NEW_POOL(self), NEW_POOL(self)]
    self.num_workers = 2
    return Dealt(pools)


def first_again(self: Any) -> None:
    """Whatever a dead child had is answered with the first chunk that waits."""
    self._pool.shutdown(wait=True, cancel_futures=True)
    self._pool = self._new_pool()
    for waiting in self._waiting:
        if waiting.future is not None and not workers._is_done(waiting.future):
            waiting.future = self._pool.submit(self._call, self._waiting[0].given)


def uncompressed(sink: Any, schema: pa.Schema) -> Any:
    return part.pq.ParquetWriter(sink, schema, compression="none")


def untimed(cls: type[FileState], path: Any) -> FileState:
    """Times that anybody can set are all that is looked at."""
    return replace(STATE_OF(path), changed_ns=0)


def foretold_wrong(drops: Any) -> Any:
    return [replace(drop, num_conversations=drop.num_conversations + 1) for drop in drops]


def with_what_encodes(patch: pytest.MonkeyPatch) -> None:
    """Whatever a process is started for, it imports what encodes too."""
    run = subprocess.run

    def importing(words: list[str], **options: Any) -> Any:
        return run([*words[:2], f"import sftprep.stages.encode\n{words[2]}"], **options)

    patch.setattr(subprocess, "run", importing)


@pytest.fixture
def bench(tmp_path: Path, samples: Path) -> test_pack.Bench:
    return test_pack.Bench(tmp_path, samples / "model")


@pytest.fixture
def model(samples: Path) -> ModelFiles:
    return load_model(str(samples / "model"))


job = test_pack_workers.job


@pytest.fixture
def call(tmp_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return test_unchanged.settled_call(tmp_path, samples, monkeypatch)


ADD, ADD_LEFT_OUT, NEW_POOL, STATE_OF = Ledger.add, LeftOutSums.add, workers.Crew._new_pool, FileState.of
TRUNCATE = options.OverLength.TRUNCATE_AT_TURN
PLAN = test_pack_plan.test_every_document_is_in_one_row_and_no_row_overflows_f5
LENGTH = test_pack_plan.test_row_order_does_not_follow_length_f7
SOURCES = test_mix.test_the_planning_order_mixes_sources
BORDER = test_pack.test_the_first_token_of_every_document_is_not_a_target
GAIN = test_pack.test_packing_is_done_and_its_gain_is_told
LISTED = test_pack.test_every_conversation_is_packed_exactly_once_or_listed_with_a_reason
TOLD = test_pack.test_rows_beyond_max_drop_are_all_told_and_nothing_is_published
PIECES = test_over_length.test_each_piece_is_what_the_model_s_own_template_makes_of_its_turns_f5_g3
LOST = test_over_length.test_trained_tokens_in_are_trained_tokens_packed_and_lost_f5_g4
COLUMNS = test_pack_demands.test_all_columns_of_a_row_have_its_length_f9
HELD = test_pack_demands.test_no_chunk_is_held_once_it_is_counted_f10_h2
NAMED = test_pack_demands.test_nothing_is_cut_or_dropped_by_a_length_that_nobody_named_g1
ONCE = test_pack_demands.test_a_shape_is_rendered_once_and_not_once_a_row_h1
FREE = test_pack_demands.test_a_slow_chunk_holds_up_one_worker_and_no_other_h1
NO_ENCODING = test_pack_demands.test_training_has_nothing_to_tokenise_or_render_with_h3
SMALL = test_pack_demands.test_ids_are_small_and_compressed_and_nothing_is_stored_that_lengths_tell_h7
DEAD = test_pack_workers.test_chunks_of_a_child_that_dies_are_compiled_by_another
NEUTRAL = test_fingerprint.test_options_that_decide_no_byte_do_not
OPTION = test_fingerprint.test_an_option_that_may_decide_bytes_changes_it_h6
FILES = test_fingerprint.test_bytes_order_number_and_epochs_of_files_change_it_h6
REHASH = test_unchanged.test_rehash_reads_everything_and_finds_the_same
TOUCHED = test_unchanged.test_an_input_that_was_touched_is_read_again
TOO_NEW = test_unchanged.test_times_that_are_too_new_are_not_believed
IN_BYTES = fingerprint.NOT_IN_BYTES

MUTATIONS: list[tuple[str, str, Plant, Callable[..., object], Any]] = [
    ("a border is a target", "F4", wrapped(gather, "_batch", with_borders_trained), BORDER, NOTHING),
    ("two rows are joined", "F5", wrapped(planner, "_shuffle_rows", in_one_row_more), PLAN, NOTHING),
    ("one is planned twice, another never", "F5", wrapped(planner, "_shuffle_rows", one_is_lost), PLAN, NOTHING),
    ("packing is not done", "F6", changed(pack, "plan", one_a_row), GAIN, NOTHING),
    ("rows follow length", "F7", changed(planner, "_shuffle_rows", by_their_size), LENGTH, NOTHING),
    ("sources follow each other", "F7", changed(test_mix, "planning_order", as_they_come), SOURCES, NOTHING),
    ("masks end early", "F9", wrapped(gather, "_batch", with_short_masks), COLUMNS, NOTHING),
    ("chunks are held", "F10 H2", changed(Ledger, "add", kept_in_memory), HELD, NOTHING),
    ("a length by default", "G1", changed(options, "PackConfig", Bounded), NAMED, NOTHING),
    ("rows are dropped by default", "G1", changed(options, "PackConfig", Dropping), NAMED, NOTHING),
    ("what lengths drop is told wrong", "G1", wrapped(pack_report, "drops", foretold_wrong), GAIN, NOTHING),
    (
        "rows without a target are packed",
        "G2",
        wrapped(render, "_trained_messages", lambda t: t or [1]),
        LISTED,
        NOTHING,
    ),
    ("--max-drop is not asked", "G2", constant(options.PackConfig, "may_drop", True), TOLD, NOTHING),
    ("a cut anywhere", "G3", cutting, PIECES, {"policy": TRUNCATE, "seed": 0}),
    ("only the first is listed", "G4", wrapped(Spool, "left_out", first_of), TOLD, NOTHING),
    ("what is lost is not counted", "G4", changed(LeftOutSums, "add", uncounted), LOST, {"policy": TRUNCATE}),
    ("every row is rendered", "H1", constant(PlanBook, "serves", False), ONCE, NOTHING),
    (
        "workers are in the fingerprint",
        "H5",
        changed(fingerprint, "NOT_IN_BYTES", IN_BYTES - {"workers"}),
        NEUTRAL,
        NOTHING,
    ),
    ("nothing is known of a run before", "H5", constant(pack, "find_unchanged", None), REHASH, NOTHING),
    ("any time is believed", "H6", constant(FileState, "is_settled", True), TOO_NEW, NOTHING),
    (
        "only times that can be set count",
        "H6",
        changed(FileState, "of", classmethod(untimed)),
        TOUCHED,
        {"change": test_unchanged.overwritten},
    ),
    ("an option is forgotten", "H6", changed(fingerprint, "NOT_IN_BYTES", IN_BYTES | {"now"}), OPTION, {"name": "now"}),
    ("inputs are forgotten", "H6", constant(fingerprint, "_source", {}), FILES, NOTHING),
    ("nothing is compressed", "H7", changed(part, "parquet_writer", uncompressed), SMALL, NOTHING),
]
SLOW: list[tuple[str, str, Plant, Callable[..., object], Any]] = [
    ("training can encode", "H3", with_what_encodes, NO_ENCODING, NOTHING),
    ("chunks are dealt out", "H1", changed(workers.Crew, "_new_pool", dealt_out), FREE, NOTHING),
    ("a dead child's rows are others", "H4", changed(workers.Crew, "_begin_again", first_again), DEAD, NOTHING),
]
OF_TRAINING = {"F3", "F8", "G5"}


def named(mutation: tuple[str, str, Plant, Callable[..., object], Any]) -> str:
    return f"{mutation[1]} {mutation[0]}"


def test_every_requirement_of_packing_has_a_mutation() -> None:
    met = {name for mutation in [*MUTATIONS, *SLOW] for name in mutation[1].split()}
    wanted = {f"F{n}" for n in range(3, 11)} | {f"G{n}" for n in range(1, 6)} | {f"H{n}" for n in range(1, 8)}
    assert wanted - met == OF_TRAINING
    assert met <= wanted


@pytest.mark.parametrize("mutation", MUTATIONS, ids=named)
def test_the_witness_sees_the_fault(
    mutation: tuple[str, str, Plant, Callable[..., object], Any],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    test_mutations.test_the_witness_sees_the_fault(mutation, monkeypatch, request)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", SLOW, ids=named)
def test_the_slow_witness_sees_the_fault(
    mutation: tuple[str, str, Plant, Callable[..., object], Any],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    test_mutations.test_the_witness_sees_the_fault(mutation, monkeypatch, request)
