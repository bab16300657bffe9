"""Every scorer, gate and promise of an engine can fail: each fault is planted, and its witness must see it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import jinja2
import pytest
import torch

from sftprep.config.evaluate import EvaluateConfig, EvaluateGate, GateKind
from sftprep.engines.reference import ReferenceEngine
from sftprep.evaluate import behaviour_scorers as behaviour
from sftprep.evaluate import (
    compare,
    endpoint,
    gates,
    grounded_scorer,
    harness,
    json_scorers,
    judge,
    leaks,
    likelihood,
    models,
    origins,
    prompts,
    run,
    score,
    text_scorers,
)
from sftprep.evaluate.answer import Answer, Score, verdict
from sftprep.evaluate.endpoint import Endpoint
from sftprep.evaluate.journal import Journal
from sftprep.evaluate.local import LocalModel
from sftprep.evaluate.scorer_specs import ScorerSpec
from sftprep.evaluate.statistics import mcnemar
from sftprep.reports import evaluate_html
from sftprep.reports.evaluate_json import EvaluateReport
from sftprep.templates.template import ChatTemplate
from tests import test_mutations
from tests.evaluate import test_answer_scorers as answers
from tests.evaluate import test_answers_file as kept
from tests.evaluate import test_compare_gates as compared
from tests.evaluate import (
    test_damaged_sets,
    test_evaluate,
    test_harness,
    test_harness_records,
    test_instruction_checks,
    test_judge,
    test_leaks,
    test_plug_ins,
    test_prompt_ids,
    test_statistics,
    test_text_scorers,
)
from tests.evaluate import test_endpoint_judge as served
from tests.evaluate.damage import without_stops
from tests.test_mutations import NOTHING, Plant, changed, constant, wrapped

# Fixtures of the witnesses.
packed, told_apart = test_evaluate.packed, test_evaluate.told_apart
installed, target = test_plug_ins.installed, test_plug_ins.target
write_task, offline = test_harness.write_task, test_harness.offline

Mutation = tuple[str, str, Plant, Callable[..., object], Any]


def scoring(kind: str, fault: Callable[[Any, Answer], Score]) -> Plant:
    """Another function scores."""
    return lambda patch: patch.setitem(score._SCORERS, kind, fault)


def passing(gate: str) -> Plant:
    """The gate holds, whatever was measured."""
    return lambda patch: patch.setitem(gates._JUDGES, gate, lambda *_: (True, ""))


def in_any_case(spec: Any, answer: Answer) -> Score:
    return verdict(answer.text.strip().casefold() in {text.casefold() for text in spec.expected}, "")


def f1_of_sets(prediction: str, expected: str) -> float:
    found, wanted = (set(text_scorers.normalised(text).split()) for text in (prediction, expected))
    return 2 * len(found & wanted) / (len(found) + len(wanted)) if found and wanted else float(found == wanted)


def first_label(text: str, choices: dict[str, str]) -> str | None:
    return next((label for label in choices if label in text), None)


def first_number(text: str) -> float | None:
    found = re.search(r"-?\d+(?:\.\d+)?", text)
    return float(found[0]) if found else None


def found_is_good(spec: Any, answer: Answer) -> Score:
    return verdict(re.search(spec.pattern, answer.text) is not None, "")


def places(leaves: Any) -> list[tuple[str, str]]:
    return [(place, "") for place, _ in leaves]


def named_only(call: Any) -> Any:
    return None if call is None else {"name": call["name"], "arguments": {"place": "Skarv"}}


def one_is_enough(spec: Any, answer: Answer) -> Score:
    found = INSTRUCTIONS(spec, answer)
    return Score(found.value, found.value > 0)


def right_padded(self: LocalModel, given: Sequence[Sequence[int]], sampling: Any) -> list[list[int]]:
    width = max(map(len, given))
    return GENERATE(self, [[*prompt, *[self.files.pad_id] * (width - len(prompt))] for prompt in given], sampling)


def without_end(self: LocalModel, ids: list[int]) -> Answer:
    return Answer(self.engine.decode(ids), len(ids), stopped=False)


def without_generation_prompt(self: ChatTemplate, messages: Any, request: Any, **_: Any) -> Any:
    return TRACE(self, messages, request, prompt=False)


class Anything:
    """Equal to whatever it is compared with."""

    def __eq__(self, _: object) -> bool:
        return True

    def __ne__(self, _: object) -> bool:
        return False

    __hash__ = None


def by_batch(losses: list[Any]) -> list[Any]:
    """Each document counts for a share of its batch."""
    return [nats / len(losses) for nats in losses]


def not_shifted(model: Any, documents: Any) -> Any:
    return [values[::-1] * 1.001 for values in LOSSES(model, documents)]


def pool(size: int) -> Plant:
    return changed(endpoint, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(size))


def without_sources(case: Any, by: str) -> list[str]:
    return [] if by == "source" else NAMES(case, by)


def uncorrected(patch: pytest.MonkeyPatch) -> None:
    """As many suites as there are, each at 95 %."""
    patch.setattr(compare, "max", lambda *_: 1, raising=False)


def exchanged(shards: Any, *, state: Any) -> origins.Origins:
    """Each row has the source of the one before it."""
    found = origins.read_origins(shards, state=state)
    return origins.Origins({(file, line + 1): name for (file, line), name in found.by_row.items()}, found.unread)


def sorted_first(new: Any, old: Any, **settings: Any) -> Any:
    sides = [harness.TaskScore(one.record, dict(enumerate(sorted(one.values.values())))) for one in (new, old)]
    return PAIRED(*sides, **settings)


def unescaped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(evaluate_html.jinja2, "Environment", lambda autoescape, **more: ENVIRONMENT(**more))


def bad_plug_in(installed: None) -> None:
    test_plug_ins.test_a_plug_in_that_gives_no_score_is_named("beyond", "from 0 to 1")


INSTRUCTIONS: Callable[[Any, Answer], Score] = score._SCORERS["instructions"]
GENERATE, TRACE, LOSSES, NAMES = LocalModel._generate, ChatTemplate.trace, likelihood._token_losses, compare._names
ENVIRONMENT, MCNEMAR, PAIRED = jinja2.Environment, mcnemar, harness._compared
CHOICE = {"A": "iron", "B": "copper", "C": "tin", "D": "red gold"}
TEXT = test_text_scorers.test_a_scorer_judges_as_a_person_does
BEHAVES = answers.test_behaviour_is_judged_as_a_person_does
SHARE = compared.test_a_share_is_compared_with_its_value
WHOLE = served.test_a_whole_evaluation_by_servers
HELD = compared.test_a_higher_held_out_loss_fails_only_beyond_its_interval
PAIRS = test_judge.test_a_pair_scores_the_mean_of_both_orders
LOSS = test_evaluate.test_held_out_loss_depends_neither_on_batch_nor_on_packing
ANSWERS = served.test_answers_come_in_order_from_several_requests_at_once
RESUMED = kept.test_a_command_that_was_interrupted_asks_only_what_is_missing_and_reports_all


def judged_as(spec: Mapping[str, Any], text: str, *, wanted: bool) -> dict[str, Any]:
    return {"spec": dict(spec), "text": text, "wanted": wanted}


def behaves_as(kind: str, good: str, bad: str, **more: Any) -> dict[str, Any]:
    return {"spec": {"kind": kind, **more}, "good": good, "bad": bad}


SCORERS: dict[str, tuple[Plant, Callable[..., object], Any]] = {
    "exact": (
        scoring("exact", in_any_case),
        TEXT,
        judged_as({"kind": "exact", "expected": ["Berth 9"]}, "berth 9", wanted=False),
    ),
    "normalised": (
        changed(text_scorers, "_ARTICLE", re.compile("(?!)")),
        TEXT,
        judged_as({"kind": "normalised", "expected": ["Berth 9"]}, "The berth, 9.", wanted=True),
    ),
    "token-f1": (
        changed(test_text_scorers, "f1", f1_of_sets),
        test_text_scorers.test_f1_of_these_pairs_is_what_the_definition_gives_by_hand,
        {"prediction": "tide tide", "expected": "tide", "value": 2 / 3},
    ),
    "choice": (
        changed(text_scorers, "chosen", first_label),
        TEXT,
        judged_as({"kind": "choice", "expected": "A", "choices": CHOICE}, "A long time ago, copper.", wanted=False),
    ),
    "numeric": (
        changed(text_scorers, "last_number", first_number),
        TEXT,
        judged_as({"kind": "numeric", "expected": 1250}, "5 * 250 = 1,250.", wanted=True),
    ),
    "regex": (
        scoring("regex", found_is_good),
        TEXT,
        judged_as({"kind": "regex", "pattern": "tide", "absent": True}, "High tide", wanted=False),
    ),
    "json-fields": (
        wrapped(json_scorers, "leaves", places),
        answers.test_json_is_found_in_prose_and_compared_leaf_by_leaf,
        NOTHING,
    ),
    "tool-calls": (
        wrapped(json_scorers, "_call", named_only),
        answers.test_calls_are_compared_by_name_and_arguments,
        {"text": '{"name": "get_tide", "arguments": {"place": "Skorve"}}', "value": 0.0},
    ),
    "instructions": (
        scoring("instructions", one_is_enough),
        test_instruction_checks.test_half_of_the_instructions_is_half_the_value_and_no_pass,
        NOTHING,
    ),
    "stops": (
        scoring("stops", lambda *_: Score(1.0, True)),
        answers.test_an_answer_that_did_not_stop_by_itself_fails_and_an_empty_one_is_no_help,
        NOTHING,
    ),
    "repetition": (
        constant(behaviour, "repetition_rate", 0.0),
        answers.test_repetition_is_the_share_of_runs_that_were_there_before,
        NOTHING,
    ),
    "refusal": (
        constant(behaviour, "refuses", False),
        BEHAVES,
        behaves_as("refusal", "To kill the process, press Ctrl+C.", "I cannot help with that.", wanted=False),
    ),
    "no-leak": (changed(leaks, "_DECODERS", ()), test_leaks.test_a_secret_is_seen_in_each_of_its_disguises, "hex"),
    "tone": (
        changed(behaviour, "_MARKS", {}),
        BEHAVES,
        behaves_as("tone", "It is closed.", "Unfortunately it is closed.", forbid=["apology"]),
    ),
    "grounded": (
        constant(grounded_scorer, "unsupported_share", 0.0),
        BEHAVES,
        behaves_as("grounded", "Yes.", "He met Anna Lund and Per in 1950 in Oslo.", context="x", at_most=0.5),
    ),
    "plug-in": (constant(score, "plug_in_score", Score(1.0, True)), bad_plug_in, NOTHING),
}

GATES: dict[str, tuple[Plant, Callable[..., object], Any]] = {
    "pass-rate": (constant(EvaluateGate, "holds", True), SHARE, {"gate": "pass-rate=60%", "wanted": False}),
    "stops": (constant(EvaluateGate, "holds", True), SHARE, {"gate": "stops=0.9", "wanted": False}),
    "repetition": (
        constant(EvaluateGate, "holds", True),
        compared.test_more_repetition_than_allowed_fails_and_less_does_not,
        {"gate": "repetition=0.2", "wanted": False},
    ),
    "regression": (passing("regression"), WHOLE, NOTHING),
    "improvement": (
        passing("improvement"),
        compared.test_improvement_must_be_shown_and_is_asked_for,
        {"gained": 5, "lost": 0, "wanted": False},
    ),
    "not-worse": (
        passing("not-worse"),
        compared.test_a_fall_beyond_the_margin_must_be_ruled_out_where_that_is_asked_for,
        {"lost": 1, "size": 4, "wanted": False},
    ),
    "nll": (passing("nll"), HELD, NOTHING),
    "nll-regression": (passing("nll-regression"), HELD, NOTHING),
    "contamination": (
        passing("contamination"),
        test_evaluate.test_training_rows_that_are_gone_are_named_and_fail_until_they_are_given,
        NOTHING,
    ),
    "parity": (passing("parity"), compared.test_what_is_wrong_with_model_or_set_fails_its_own_gate, NOTHING),
    "provenance": (
        constant(run, "provenance_faults", []),
        test_damaged_sets.test_the_audit_of_the_set_that_a_model_was_trained_on_is_a_gate,
        {"mask": without_stops, "code": "stop-untrained"},
    ),
    "win-rate": (
        passing("win-rate"),
        compared.test_a_judge_of_whom_nothing_can_be_read_passes_nobody,
        NOTHING,
    ),
    "harness": (
        passing("harness"),
        test_harness_records.test_a_metric_is_compared_in_the_direction_in_which_it_is_better,
        {"gate": "harness.pier=0.51", "wanted": False},
    ),
    "harness-regression": (
        passing("harness-regression"),
        test_harness_records.test_a_task_that_is_shown_to_be_worse_fails_and_noise_does_not,
        {"lost": 9, "wanted": False},
    ),
}

PROMISES: dict[str, tuple[Plant, Callable[..., object], Any]] = {
    "a prompt of other ids is asked": (
        changed(prompts, "_served", lambda *_: Anything()),
        test_prompt_ids.test_files_from_which_transformers_makes_other_ids_are_refused_with_the_place,
        NOTHING,
    ),
    "no generation prompt": (
        changed(ChatTemplate, "trace", without_generation_prompt),
        test_evaluate.test_prompt_ids_are_those_of_transformers,
        NOTHING,
    ),
    "padded on the right": (
        changed(LocalModel, "_generate", right_padded),
        test_evaluate.test_left_padded_batches_answer_as_one_by_one,
        NOTHING,
    ),
    "the seed is not set": (
        changed(torch, "manual_seed", lambda seed: None),
        test_evaluate.test_sampling_repeats_by_its_seed_and_changes_with_it,
        NOTHING,
    ),
    "no token stops": (
        changed(LocalModel, "_answer", without_end),
        test_evaluate.test_an_answer_ends_at_any_of_the_stop_tokens,
        NOTHING,
    ),
    "a batch is averaged": (wrapped(likelihood, "_token_losses", by_batch), LOSS, NOTHING),
    "targets are another's": (
        changed(likelihood, "_token_losses", not_shifted),
        test_evaluate.test_held_out_loss_is_what_transformers_computes_document_by_document,
        NOTHING,
    ),
    "bytes are characters": (
        wrapped(ReferenceEngine, "decode", lambda text: text.encode("ascii", "replace").decode()),
        test_evaluate.test_bytes_are_those_of_the_answers,
        NOTHING,
    ),
    "rows are told apart by another's source": (
        changed(models, "read_origins", exchanged),
        test_evaluate.test_held_out_loss_is_told_apart_by_who_wrote_the_rows_against_the_baseline_too,
        NOTHING,
    ),
    "who wrote a case is not asked": (
        changed(compare, "_names", without_sources),
        test_evaluate.test_cases_are_told_apart_by_who_wrote_them,
        NOTHING,
    ),
    "one request at a time": (pool(1), ANSWERS, NOTHING),
    "all requests at once": (pool(12), ANSWERS, NOTHING),
    "a failure is final": (
        changed(endpoint, "_RETRIED", frozenset()),
        served.test_a_busy_server_is_asked_again_and_told_waits_are_kept,
        NOTHING,
    ),
    "every failure is tried again": (
        changed(endpoint, "_RETRIED", frozenset({400, 503})),
        served.test_a_server_that_gives_no_answer_is_an_error_with_a_name,
        {"reply": (400, {}, b"no such model"), "count": 1},
    ),
    "Retry-After is not read": (
        constant(endpoint, "_told_wait", 0.0),
        kept.test_what_a_server_says_of_waiting_holds_for_all_requests,
        NOTHING,
    ),
    "Retry-After holds for one request": (
        changed(Endpoint, "_hold_back", lambda self, seconds: self._wait(seconds)),
        kept.test_what_a_server_says_of_waiting_holds_for_all_requests,
        NOTHING,
    ),
    "no limit of rate": (
        changed(Endpoint, "_take_slot", lambda _: None),
        served.test_requests_are_no_faster_than_allowed,
        NOTHING,
    ),
    "answers are not read again": (changed(Journal, "get", lambda *_: None), RESUMED, NOTHING),
    "answers are not kept": (changed(Journal, "keep", lambda *_: None), RESUMED, NOTHING),
    "an answer that was cut has ended": (
        changed(endpoint, "_STOPPED", frozenset({"stop", "tool_calls", "length"})),
        served.test_calls_and_a_cut_answer_are_read_as_the_server_tells_them,
        NOTHING,
    ),
    "a tie is lost": (
        changed(judge, "_POINTS", {"a": 1.0, "tie": 0.0, "b": 0.0}),
        PAIRS,
        {"first": "A", "second": "tie", "points": 0.75},
    ),
    "length is not controlled": (
        changed(judge, "length_controlled", lambda scores, lengths: float(scores.mean())),
        test_judge.test_a_judge_who_prefers_length_alone_gives_no_length_controlled_win,
        NOTHING,
    ),
    "tasks are asked without the template": (
        changed(test_harness, "EvaluateConfig", lambda **given: EvaluateConfig(**{**given, "harness_plain": True})),
        test_harness.test_a_task_scores_what_the_model_finds_most_probable_behind_its_own_template,
        {"plain": False},
    ),
    "documents of tasks are sorted, not paired": (
        changed(harness, "_compared", sorted_first),
        test_harness_records.test_documents_are_paired_by_their_numbers,
        NOTHING,
    ),
    "many suites, one level": (uncorrected, compared.test_more_suites_ask_for_more_evidence, NOTHING),
    "chance is evidence": (constant(compare, "mcnemar", 0.0), compared.test_noise_does_not_fail, NOTHING),
    "one tail": (
        changed(test_statistics, "mcnemar", lambda *counts: MCNEMAR(*counts) / 2),
        test_statistics.test_mcnemar_and_wilson_are_those_of_scipy,
        NOTHING,
    ),
    "falls are not listed": (
        changed(EvaluateReport, "regressions", []),
        compared.test_what_got_worse_is_listed_largest_fall_first,
        NOTHING,
    ),
    "answers are markup": (unescaped, compared.test_the_page_shows_what_models_say_as_text, NOTHING),
}

MUTATIONS: list[Mutation] = [
    (f"{kind} {name}", "", *fault)
    for kind, faults in (("scorer", SCORERS), ("gate", GATES), ("promise:", PROMISES))
    for name, fault in faults.items()
]


def test_every_scorer_and_every_gate_has_a_mutation() -> None:
    kinds = {get_args(spec.model_fields["kind"].annotation)[0] for spec in get_args(get_args(ScorerSpec)[0])}
    assert SCORERS.keys() == kinds
    assert GATES.keys() == set(get_args(GateKind))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation[0] for mutation in MUTATIONS])
def test_the_witness_sees_the_fault(
    mutation: Mutation, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    test_mutations.test_the_witness_sees_the_fault(mutation, monkeypatch, request)
