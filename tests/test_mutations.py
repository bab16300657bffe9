"""Every requirement's test can fail: each fault below is planted where it could be made, and its witness must see it.

A mutation replaces one function by a faulty one; the witness is an ordinary test, called as it is. It passes without
the fault (the suite runs it), and here it has to raise.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sftprep.data import SpanKind
from sftprep.engines import load
from sftprep.engines.reference import ReferenceEngine
from sftprep.errors import SftprepError
from sftprep.prepare import batch, row_length
from sftprep.prepare.plans import PlanBook
from sftprep.records import text_rules
from sftprep.shards.write import ShardWriter
from sftprep.stages import encode, render
from sftprep.stages.encode_batch import Spans
from sftprep.templates import adapt, contract, exact, sandbox, template
from sftprep.templates.contract import TurnResolver
from sftprep.templates.turns import End
from tests import test_validate_row
from tests.engines import test_load
from tests.prepare import test_pack
from tests.stages import test_exact, test_policies
from tests.templates import test_contract, test_template

Plant = Callable[[pytest.MonkeyPatch], None]


def wrapped(owner: object, name: str, fault: Callable[[Any], Any]) -> Plant:
    """Replace what a function gives back by a faulty value of it."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        function = getattr(owner, name)
        patch.setattr(owner, name, lambda *args, **kwargs: fault(function(*args, **kwargs)))

    return plant


def constant(owner: object, name: str, value: Any) -> Plant:
    """Replace a function by one that always gives the same."""
    return lambda patch: patch.setattr(owner, name, lambda *_, **__: value)


def unsearched(patch: pytest.MonkeyPatch) -> None:
    """Look for control tokens neither in fields nor in the text that the template makes of them."""
    constant(render, "refuse_control_tokens", None)(patch)
    constant(render, "_refuse_typed", None)(patch)


def changed(owner: object, name: str, value: Any) -> Plant:
    """Replace a thing by another."""
    return lambda patch: patch.setattr(owner, name, value)


def relabelled(kind: SpanKind, into: SpanKind) -> Plant:
    """Tokens of one kind are taken for another."""

    def fault(labels: tuple[Any, Any]) -> tuple[Any, Any]:
        kinds, messages = labels
        hit = kinds == kind
        turns = np.where(hit, messages.max(), messages).astype(np.int32)
        return np.where(hit, np.int8(into), kinds).astype(np.int8), turns

    def replayed(proven: tuple[Any, Spans]) -> tuple[Any, Spans]:
        ok, spans = proven
        kinds, messages = fault((spans.kinds, spans.messages))
        return ok, replace(spans, kinds=kinds, messages=messages)

    slow, fast = wrapped(encode, "_labels", fault), wrapped(batch, "prove_batch", replayed)

    def plant(patch: pytest.MonkeyPatch) -> None:
        slow(patch)
        fast(patch)

    return plant


def moved(start: int = 0, stop: int = 0) -> Plant:
    """A turn begins or ends elsewhere."""

    def fault(turn: Any) -> Any:
        if turn is None:
            return None
        end = End(turn.end.stop_start + (stop if turn.end.stop_start == turn.end.stop else 0), turn.end.stop + stop)
        return replace(turn, start=turn.start + start, end=end)

    return wrapped(TurnResolver, "_as_rendered", fault)


def without_stop(end: End | None) -> End | None:
    return None if end is None else End(end.stop_start, end.stop_start)


def appended(document: Any) -> Any:
    ids, spans = document
    stop = next(span for span in spans if span.kind is SpanKind.STOP)
    return np.append(ids, ids[stop.start]), (*spans, replace(stop, start=len(ids), stop=len(ids) + 1))


def truncated(self: Any, row: Any, whole: Any) -> Any:
    max_length = self.max_length
    cut = [
        replace(
            document,
            ids=document.ids[:max_length],
            spans=[replace(s, stop=min(s.stop, max_length)) for s in document.spans if s.start < max_length],
        )
        for document in whole.documents
    ]
    return replace(whole, documents=tuple(cut)), ()


def cutting(patch: pytest.MonkeyPatch) -> None:
    """Rows that are too long are cut, be they compiled together or one by one."""
    patch.setattr(PlanBook, "serves", lambda _: False)
    patch.setattr(row_length.Fit, "fitted", truncated)


def by_message(self: Any, messages: Any, request: Any, *, prompt: bool, marks: Any = None) -> str:
    texts = [RENDER(self, [m], request, prompt=False) for m in messages]
    return "".join(texts) + ("<|im_start|>assistant\n" if prompt else "")


def always_clean(part: Any) -> Any:
    return replace(part, clean=True)


def with_bos(encoded: Any) -> Any:
    return [replace(e, ids=np.append(np.int32(0), e.ids), offsets=np.vstack([[[0, 0]], e.offsets])) for e in encoded]


def first_place(traced: Any, message: int, start: int, stop_tokens: Any) -> End | None:
    """Whoever wrote it, the first text of a stop token is taken for the end."""
    found = [(traced.text.find(stop, start), stop) for stop in stop_tokens if stop in traced.text[start:]]
    position, stop = min(found)
    return End(position, position + len(stop))


def nulls_kept(messages: Any) -> list[dict[str, Any]]:
    return [dict(message) for message in messages]


def with_texts(raw: bytes, **more: Any) -> Any:
    found = VALIDATE(raw, **more)
    messages = json.loads(json.dumps(found.conversation.messages).replace(": 1", ': "1"').replace("a", "b"))
    return replace(found, conversation=replace(found.conversation, messages=messages))


def with_nulls(raw: bytes, **more: Any) -> Any:
    found = VALIDATE(raw, **more)
    messages = [{**message, "name": message.get("name")} for message in found.conversation.messages]
    return replace(found, conversation=replace(found.conversation, messages=messages))


def adding_a_line(self: ShardWriter, name: str, content: bytes) -> None:
    ADD_FILE(self, name, content + b"\n" if name.startswith("model/") else content)


def with_its_own_clock(self: Any, now: datetime) -> None:
    INIT(self, now)
    self.globals["strftime_now"] = datetime.now().strftime


def waiving(self: TurnResolver, *args: Any) -> None:
    RESOLVER(self, *args[:-1], frozenset({"no-terminator"}))


def without_text(message: Any) -> Any:
    return {**message, "content": ""} if message.get("tool_calls") else message


def without_kwargs(sample: Any) -> Any:
    return replace(sample, template_kwargs={})


def trusting(self: TurnResolver, base: Any, message: int) -> Any:
    """Whatever the last render shows of an earlier turn is taken for what the model saw and said."""
    start = base.traced.text.find("assistant\n") + len("assistant\n")
    end = contract.find_end(base.traced, message, start, self.template.stop_tokens)
    return replace(base, message=message, start=start, end=end)


VALIDATE, ADD_FILE, INIT = test_validate_row.validate_row, ShardWriter.add_file, sandbox.MeteredEnvironment.__init__
RESOLVER, RENDER = TurnResolver.__init__, template.ChatTemplate.render
PROMPT_IDS = test_exact.test_prompt_ids_are_the_server_s_and_each_turn_is_trained_once_a1_a7_a8_b1_b2
TRAINED = test_exact.test_what_is_trained_is_what_the_model_must_write_stop_token_included_b8
TOOL_CALL = test_exact.test_a_tool_call_is_trained_and_its_result_is_not_d6_d7
REWRITTEN = test_exact.test_a_turn_whose_history_is_rewritten_gets_a_sample_of_its_own_e1_e2
NO_STOP = test_exact.test_a_template_without_a_stop_token_is_refused_unless_waived_b2_b4
KWARGS = test_exact.test_the_arguments_that_the_template_was_given_are_known_for_every_document_e6
WEIGHT_ZERO = test_exact.test_a_turn_of_weight_zero_is_context_and_a_fraction_is_carried_l1
CONTROL = test_exact.test_a_control_token_in_content_is_an_error_by_default_m4
JOINED = test_exact.test_a_control_token_that_the_template_joins_of_parts_is_an_error_m4
SAID = test_exact.test_no_answer_goes_on_behind_a_stop_token_that_it_says_a8
BORDER = test_policies.test_a_token_that_straddles_the_border_is_encoded_on_both_sides_of_it_c5
SCAFFOLD = test_policies.test_an_empty_thought_that_the_prompt_supplies_is_never_trained_e3_a8
DOUBLE_BOS = test_policies.test_a_text_that_begins_with_bos_twice_is_refused_unless_waived_c3
ARGUMENTS = test_policies.test_arguments_as_text_or_as_an_object_reach_the_model_unescaped_d1
HIDDEN = test_policies.test_calls_without_any_tool_shown_are_an_error_d4
NULLS = test_policies.test_absent_null_and_empty_content_of_a_call_give_the_same_ids_d5
SPLIT = test_policies.test_a_typed_control_token_is_plain_text_where_it_is_split_m4
PROVENANCE = test_pack.test_text_of_a_message_is_never_trained_unless_an_assistant_wrote_it
TOO_LONG = test_pack.test_rows_that_are_too_long_are_refused_whatever_max_drop_allows_b7
COPIES = test_pack.test_the_models_files_lie_beside_the_shards_byte_for_byte_c2
TYPED_STOP = test_contract.test_a_stop_token_before_all_that_the_turn_says_is_refused_because_a_server_stops_there
OPENED = test_contract.test_a_template_that_drops_tool_results_is_asked_with_a_user_instead_b3
LOST = test_contract.test_a_field_of_which_nothing_is_shown_is_lost_though_its_text_occurs_elsewhere_e4
STOP_IDS = test_load.test_stop_ids_are_generation_config_s_and_the_tokenizer_s_b2_b5
OUR_TEMPLATE = test_template.test_our_own_template_renders_as_transformers_renders_it
TWO_DAYS = test_template.test_the_same_file_on_two_days_gives_the_same_text_c6
GOOD_ROWS = test_validate_row.test_good_rows_keep_messages_exactly_as_they_came_d2_d3
FAULTS = test_validate_row.test_a_fault_has_its_code_and_its_place
EXPAND = {"history": test_exact.History.EXPAND, "trained": 2}
GIVEN = {"given": {}, "chosen": {"enable_thinking": False}}
TEXT = '{"harbour": "St \\"Ives\\""}'
AS_OBJECT = {"arguments": TEXT, "as_text": False}
ROW = {"name": "developer, name, kwargs"}


@pytest.fixture
def bench(tmp_path: Path, samples: Path) -> test_pack.Bench:
    return test_pack.Bench(tmp_path, samples / "model")


@pytest.fixture
def model_dir(samples: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(samples / "model", tmp_path / "model"))


NOTHING: dict[str, Any] = {}
MUTATIONS = [
    ("only one turn is trained", "A1", wrapped(render, "_trained_messages", lambda t: t[:1]), PROMPT_IDS, "multi"),
    ("the prompt is trained", "A2 A3", relabelled(SpanKind.USER, SpanKind.COMPLETION), PROVENANCE, NOTHING),
    ("headers are trained", "A2 A7", relabelled(SpanKind.HEADER, SpanKind.COMPLETION), PROMPT_IDS, "single"),
    ("the border is moved to where the tokens meet", "A6 C5", wrapped(encode, "_part", always_clean), BORDER, NOTHING),
    ("a turn begins one character early", "A7 A8", moved(start=-1), TRAINED, NOTHING),
    ("a turn begins one character late", "A9", moved(start=1), TRAINED, NOTHING),
    ("the separator is trained", "A10 B8", moved(stop=1), TRAINED, NOTHING),
    ("an end is found by its text", "A11", changed(contract, "find_end", first_place), TYPED_STOP, NOTHING),
    ("a scaffold is trained", "A8 E3", constant(TurnResolver, "_has_scaffold", False), SCAFFOLD, NOTHING),
    ("the stop token is masked", "B1", relabelled(SpanKind.STOP, SpanKind.SEPARATOR), PROMPT_IDS, "single"),
    ("the stop token is not found", "B2", wrapped(contract, "find_end", without_stop), TRAINED, NOTHING),
    ("the next turn's token ends no turn", "B3", constant(contract, "_opened_by", ""), OPENED, NOTHING),
    ("a turn without a stop token passes", "B4", changed(TurnResolver, "__init__", waiving), NO_STOP, NOTHING),
    (
        "stop ids of generation_config are not read",
        "B5",
        wrapped(load, "_stop_ids", lambda i: i[:1]),
        STOP_IDS,
        NOTHING,
    ),
    ("a stop token is added once more", "B6", wrapped(encode, "_assemble", appended), PROMPT_IDS, "single"),
    ("a long row is cut", "B7", cutting, TOO_LONG, NOTHING),
    (
        "JSON is escaped otherwise",
        "C1",
        wrapped(sandbox, "dumps", lambda text: text.replace("ü", "\\u00fc")),
        OUR_TEMPLATE,
        NOTHING,
    ),
    ("the template is copied with a change", "C2", changed(ShardWriter, "add_file", adding_a_line), COPIES, NOTHING),
    ("a token is put before every text", "C3", wrapped(ReferenceEngine, "encode", with_bos), PROMPT_IDS, "single"),
    ("two first tokens pass", "C3", constant(render, "_refuse_double_bos", None), DOUBLE_BOS, NOTHING),
    (
        "each message is rendered by itself",
        "C4",
        changed(template.ChatTemplate, "render", by_message),
        PROMPT_IDS,
        "tools-object",
    ),
    (
        "the clock is the machine's",
        "C6",
        changed(sandbox.MeteredEnvironment, "__init__", with_its_own_clock),
        TWO_DAYS,
        NOTHING,
    ),
    (
        "arguments go to the template as they came",
        "D1",
        constant(adapt, "_as_form", TEXT),
        ARGUMENTS,
        AS_OBJECT,
    ),
    ("numbers become texts", "D2", changed(test_validate_row, "validate_row", with_texts), GOOD_ROWS, ROW),
    ("absent keys become null", "D3", changed(test_validate_row, "validate_row", with_nulls), GOOD_ROWS, ROW),
    ("tools may be hidden", "D4", constant(render, "_refuse_lost_tools", None), HIDDEN, NOTHING),
    (
        "null is handed on",
        "D5",
        changed(template, "normalise_messages", nulls_kept),
        NULLS,
        {"value": None, "printed": True},
    ),
    ("results are trained", "D6", relabelled(SpanKind.TOOL_RESULT, SpanKind.COMPLETION), TOOL_CALL, NOTHING),
    ("text beside a call is dropped", "D7", wrapped(adapt, "_adapted", without_text), TOOL_CALL, NOTHING),
    (
        "history is not expanded",
        "E1",
        wrapped(TurnResolver, "resolve_all", lambda groups: groups[:1]),
        REWRITTEN,
        EXPAND,
    ),
    ("history is trusted", "E2", changed(TurnResolver, "_shown_in", trusting), REWRITTEN, EXPAND),
    ("what is lost is not looked for", "E4", constant(exact, "lost_field", None), LOST, NOTHING),
    ("reasoning tags are not paired", "E5", constant(text_rules, "_check_tags", ()), FAULTS, "closed only E5"),
    ("arguments of the template are not recorded", "E6", wrapped(render, "_sample", without_kwargs), KWARGS, GIVEN),
    ("weights are not read", "L1", wrapped(render, "_trained_messages", lambda t: [1, 3]), WEIGHT_ZERO, NOTHING),
    ("control tokens are not looked for", "M4", unsearched, CONTROL, NOTHING),
    ("joined control tokens are not looked for", "M4", constant(render, "_refuse_typed", None), JOINED, NOTHING),
    ("a stop token that an answer says is trained", "A8", constant(render, "_refuse_typed", None), SAID, NOTHING),
    ("typed control tokens are read as such", "M4", wrapped(render, "written_tokens", lambda _: ()), SPLIT, NOTHING),
]


def requirements() -> set[str]:
    """Those that some mutation is for."""
    return {name for mutation in MUTATIONS for name in mutation[1].split()}


def test_every_requirement_of_the_masks_has_a_mutation() -> None:
    wanted = {f"A{n}" for n in range(1, 12)} | {f"B{n}" for n in range(1, 9)} | {f"C{n}" for n in range(1, 9)}
    wanted |= {f"D{n}" for n in range(1, 8)} | {f"E{n}" for n in range(1, 7)} | {"L1", "M4"}
    # Of training, and of two sets compared: their faults are planted beside their own tests.
    assert wanted - requirements() == {"A4", "A5", "C7", "C8"}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[f"{m[1]} {m[0]}" for m in MUTATIONS])
def test_the_witness_sees_the_fault(
    mutation: tuple[str, str, Plant, Callable[..., object], Any],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    _, _, plant, witness, given = mutation
    names = inspect.signature(witness).parameters
    values = dict(given) if isinstance(given, dict) else {next(iter(names)): given}
    values |= {name: request.getfixturevalue(name) for name in names if name not in values}
    plant(monkeypatch)
    with pytest.raises((AssertionError, SftprepError, pytest.fail.Exception)):
        witness(**values)
