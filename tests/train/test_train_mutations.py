"""The trainer's promises can be broken: each fault is planted, and its witness must see it.

Those of the model, the loss's memory and the export (F1–F3, N1, N2, B5, C2) are listed in `model_faults.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from sftprep.shards.manifest import Manifest
from sftprep.train import checkpoint, estimate, heldout, loop, optim, run, selftest, setup, stream
from sftprep.train.optim import ClippingAdamW
from sftprep.train.stream import Schedule
from tests import test_mutations
from tests.test_mutations import NOTHING, Plant, changed, constant, wrapped
from tests.train import (
    model_faults,
    test_estimate,
    test_expectations,
    test_loss,
    test_optim,
    test_out_of_memory,
    test_processes,
    test_stop_and_resume,
    test_stream,
    test_train_run,
    test_weighting,
)

VALIDATE, AHEAD, TOKEN_LOSS, RATE = Manifest.model_validate, loop.ahead, loop.token_loss, optim.learning_rate
BATCH_NLL, LOAD, PRUNE = heldout._batch_nll, checkpoint.load_checkpoint, checkpoint.prune_checkpoints
ACCUMULATE = loop.accumulate


def stamped(data: Any) -> Manifest:
    return VALIDATE({"mask": "assistant", **data})


def counting_nothing(position: Any, feed: Any, *, num_trained: int) -> Any:
    return replace(position, step=position.step + 1, epoch_trained=0)


def mean_of_its_own(model: Any, batch: Any, *, head: Any, normaliser: float) -> Any:
    """Each batch's mean, as if all batches weighed alike."""
    return TOKEN_LOSS(model, batch, head=head, normaliser=float(batch["weights"].sum()))


def over_zero(*arguments: Any, weight_sum: float, **options: Any) -> Any:
    """A mean over nothing, which is no number."""
    return ACCUMULATE(*arguments, weight_sum=weight_sum or math.nan, **options)


def mean_of_means(trainee: Any, batch: Any) -> float:
    return BATCH_NLL(trainee, batch) / max(1, len(batch["targets"]))


def reading_all_before(make: Any, steps: range) -> Any:
    for step in range(steps.start):
        make(step)
    return AHEAD(make, steps)


def with_repeats(schedule: Schedule, epoch: int) -> Any:
    """Drawn with replacement, as a buffer that is filled again draws."""
    return np.random.default_rng(epoch).integers(0, schedule.num_rows, schedule.num_rows)


def as_they_lie(schedule: Schedule, epoch: int) -> Any:
    return np.arange(schedule.num_rows)


def counted_from_the_epoch(schedule: Schedule, step: int) -> Any:
    """Where a resumption counts within its epoch only, the first epoch's rows come again."""
    start = (step % schedule.steps_per_epoch) * schedule.rows_per_step
    return schedule.order(0)[start : start + schedule.rows_per_step]


def without_the_last_rows(schedule: Schedule) -> int:
    return max(1, schedule.num_rows // schedule.rows_per_step)


def of_one_epoch(step: int, *, num_steps: int, config: Any) -> float:
    """The schedule ends where an epoch ends."""
    return RATE(min(step, num_steps // 2 - 1), num_steps=num_steps // 2, config=config)


def from_the_start(directory: Any, state: Any, *, wanted: Any) -> Any:
    """The weights of the checkpoint, and the rows from the first on."""
    return replace(LOAD(directory, state, wanted=wanted), step=0, epoch_trained=0)


def only_the_last(workspace: Any, *, keep_last: int, best_step: int) -> None:
    PRUNE(workspace, keep_last=keep_last, best_step=0)


def one_too_few(workspace: Any, *, keep_last: int, best_step: int) -> None:
    PRUNE(workspace, keep_last=keep_last - 1, best_step=best_step)


def averaging(patch: pytest.MonkeyPatch) -> None:
    """Processes average their gradients, as they do unless told otherwise."""
    fault = "from torch.distributed.fsdp import FSDPModule\nFSDPModule.set_gradient_divide_factor = lambda *_: None\n"
    patch.setattr(test_processes, "GRADIENTS", fault + test_processes.GRADIENTS)


def without_a_form() -> Any:
    return (text.replace("return_dict=", "padding=") for text in SOURCES())


SOURCES = test_expectations.sources
STAMP = test_train_run.test_a_set_that_does_not_say_what_its_mask_is_is_refused_a4
EPOCH = test_train_run.test_an_epoch_that_trains_another_number_of_tokens_than_the_manifest_says_is_refused_a5
TEMPLATE = test_train_run.test_a_model_with_another_template_is_refused_c8
NO_WEIGHT = test_weighting.test_a_step_without_weight_is_skipped_and_said_and_changes_nothing_g5
BATCH_WITHOUT = test_weighting.test_a_batch_without_weight_adds_nothing_to_its_step_g5
STEPS = partial(test_train_run.test_steps_are_the_manifest_s_rows_exactly_f8, epochs=2.0)
BORDER = partial(test_stream.test_a_trained_first_token_of_a_document_is_refused_f4, collate=stream.collate_packed)
BATCHES = partial(test_loss.test_gradients_do_not_depend_on_micro_batching_i1, packing=True)
ONE_BY_ONE = test_expectations.test_a_step_s_loss_is_what_transformers_own_gives_for_its_documents_one_by_one_i3
PROCESSES = partial(
    test_processes.test_how_many_processes_share_a_step_does_not_change_the_gradient_i2,
    processes=2,
    attention="segments",
    lora_rank=0,
)
HELD_OUT = test_stop_and_resume.test_the_held_out_loss_is_a_sum_over_a_sum_whatever_the_batch_i4
UNIT = partial(
    test_expectations.test_the_run_says_what_its_loss_is_a_mean_over_i5, loss="turn", unit="trained messages"
)
SETS = test_expectations.test_packed_and_unpacked_sets_of_the_same_rows_have_the_same_held_out_loss_i6
THREE_STOPS = partial(
    test_stop_and_resume.test_a_run_stopped_by_sigterm_and_resumed_ends_in_the_same_bytes_j1_j4, stops=(1, 2, 3)
)
MID_EPOCH = partial(
    test_stop_and_resume.test_a_run_stopped_by_sigterm_and_resumed_ends_in_the_same_bytes_j1_j4, stops=(4, 7)
)
ONCE = test_stream.test_an_epoch_takes_every_row_once_and_the_last_short_step_is_kept_j2_j6
NO_SKIPPING = test_expectations.test_a_resumed_run_reads_no_row_of_the_steps_before_it_j3
LENGTH = test_expectations.test_the_length_of_a_run_and_its_learning_rates_follow_from_the_manifest_alone_j5_f8
OWN_ORDER = test_stream.test_the_steps_of_the_second_epoch_take_its_own_order_j6
FORM = test_expectations.test_the_form_of_what_a_template_gives_is_asked_for_and_never_the_version_s_own_choice_n3

KEPT = test_stop_and_resume.test_the_last_checkpoints_and_the_best_are_kept
LARGEST = test_estimate.test_what_is_measured_is_the_step_with_the_longest_forward_pass
SELF_TEST = partial(
    test_out_of_memory.test_wherever_memory_ends_the_error_says_where_and_what_to_turn,
    owner=selftest,
    name="_packed",
    place="before the first step",
)
NO_SCALE = property(lambda _: None, lambda *_: None)
CLIPPED = partial(test_optim.test_a_step_is_that_of_gradients_that_were_scaled_down_before, max_norm=0.3)

MUTATIONS: list[tuple[str, str, Plant, Callable[..., object]]] = [
    ("a set may not say what its mask is", "A4", changed(Manifest, "model_validate", stamped), STAMP),
    ("nobody counts an epoch's tokens", "A5", changed(loop, "_advance", counting_nothing), EPOCH),
    ("any template will do", "C8", constant(setup, "check_fit", None), TEMPLATE),
    (
        "a border may be trained",
        "F4",
        changed(stream, "_trained_positions", lambda row: row.trained.nonzero()[0]),
        BORDER,
    ),
    ("short steps are dropped", "F8", changed(Schedule, "steps_per_epoch", property(without_the_last_rows)), STEPS),
    ("rates end with the first epoch", "F8", changed(loop, "learning_rate", of_one_epoch), LENGTH),
    ("a step without weight is a step", "G5", changed(loop, "accumulate", over_zero), NO_WEIGHT),
    ("a batch without weight has a mean", "G5", changed(loop, "token_loss", mean_of_its_own), BATCH_WITHOUT),
    ("a mean of batches' means", "I1 I3", changed(loop, "token_loss", mean_of_its_own), BATCHES),
    (
        "a loss of its own",
        "I3",
        wrapped(loop, "token_loss", lambda loss: replace(loss, nll=loss.nll * 1.01)),
        ONE_BY_ONE,
    ),
    ("held out is a mean of means", "I4", changed(heldout, "_batch_nll", mean_of_means), HELD_OUT),
    ("every loss is called the same", "I5", changed(run, "_MEANS", dict.fromkeys(run._MEANS, "tokens")), UNIT),
    ("held out is a mean over rows", "I6", changed(heldout, "_batch_nll", mean_of_means), SETS),
    ("the optimizer begins anew", "J1", constant(checkpoint, "read_optimizer", None), THREE_STOPS),
    ("the rows begin anew", "J1 J4", changed(run, "load_checkpoint", from_the_start), MID_EPOCH),
    ("an epoch's rows come again", "J4", changed(Schedule, "rows", counted_from_the_epoch), OWN_ORDER),
    ("rows are drawn with replacement", "J2", changed(Schedule, "order_of", with_repeats), ONCE),
    ("what is skipped is read", "J3", changed(loop, "ahead", reading_all_before), NO_SKIPPING),
    ("only --max-steps ends a run", "J5", changed(Schedule, "num_steps", lambda *_, **__: 20), LENGTH),
    ("rows come as they lie", "J6", changed(Schedule, "order_of", as_they_lie), OWN_ORDER),
    ("the best checkpoint goes", "best", changed(run, "prune_checkpoints", only_the_last), KEPT),
    ("one checkpoint too few is kept", "best", changed(run, "prune_checkpoints", one_too_few), KEPT),
    ("a dry run measures the first step", "dry run", constant(estimate, "_largest_step", 0), LARGEST),
    ("no memory passes for no isolation", "memory", constant(selftest, "is_out_of_memory", False), SELF_TEST),
    ("the form is the version's choice", "N3", changed(test_expectations, "sources", without_a_form), FORM),
    ("gradients are not scaled down", "clip", changed(ClippingAdamW, "grad_scale", NO_SCALE), CLIPPED),
    *model_faults.FAULTS,
]
SLOW: list[tuple[str, str, Plant, Callable[..., object]]] = [("gradients are averaged", "I2", averaging, PROCESSES)]


def test_every_requirement_of_training_has_a_mutation() -> None:
    met = {name for mutation in (*MUTATIONS, *SLOW) for name in mutation[1].split()}
    wanted = {f"F{n}" for n in (1, 2, 3, 4, 8)} | {f"I{n}" for n in range(1, 7)} | {f"J{n}" for n in range(1, 7)}
    wanted |= {"N1", "N2", "N3", "A4", "A5", "B5", "C2", "G5"}
    assert wanted - met == set()


@pytest.mark.parametrize(
    "mutation",
    [*MUTATIONS, *(pytest.param(mutation, marks=pytest.mark.slow) for mutation in SLOW)],
    ids=[f"{m[1]} {m[0]}" for m in (*MUTATIONS, *SLOW)],
)
def test_the_witness_sees_the_fault(
    mutation: tuple[str, str, Plant, Callable[..., object]],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    name, requirement, plant, witness = mutation
    given = witness.keywords if isinstance(witness, partial) else NOTHING
    called = witness.func if isinstance(witness, partial) else witness
    test_mutations.test_the_witness_sees_the_fault((name, requirement, plant, called, given), monkeypatch, request)
