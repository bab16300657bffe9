"""Plans of shapes that begin alike share what is found of the beginning, and every question that it asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sftprep.data import Conversation
from sftprep.engines.load import load_model
from sftprep.prepare.compile import Compiler, batch_compiler
from sftprep.templates import symbolic_beginnings
from sftprep.templates.contract import TurnResolver
from sftprep.templates.guarded import Guarded
from tests.prepare.test_plans import both, config, conversation, rows_of, same
from tests.prepare.test_plans_ahead import _MESSAGE, _STOP, chat
from tests.prepare.test_plans_passes import compiler_of, rows

_LAST_QUESTION = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
)
_REWRITTEN = (
    "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n"
)
TEMPLATES = {
    "rewrites": chat(_REWRITTEN, before=_LAST_QUESTION),
    "asks the last question": chat(
        "{% if loop.index0 == ns.last and 'no' in m.content %}!{% endif %}" + _REWRITTEN, before=_LAST_QUESTION
    ),
    "asks the first one where there are more": chat(
        _REWRITTEN,
        before=_LAST_QUESTION + "{% if messages | length > 2 and 'no' in messages[0].content %}!{% endif %}",
    ),
    "asks the answer before": chat(
        "{% if loop.last and loop.index0 and 'no' in messages[loop.index0 - 1].content %}!{% endif %}" + _REWRITTEN,
        before=_LAST_QUESTION,
    ),
    "strips what is old": chat(
        "<|im_start|>{{ m.role }}\n{{ m.content.strip() if loop.index0 < ns.last else m.content }}" + _STOP,
        before=_LAST_QUESTION,
    ),
    "prints tools": chat(
        _REWRITTEN, before=_LAST_QUESTION + "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    ),
    "counts": chat(
        "{% set ns.n = ns.n + 1 %}{% if ns.n > 4 %}{{ ns.n }}{% endif %}" + _MESSAGE + _STOP,
        before="{% set ns = namespace(n=0) %}",
    ),
}


def replayed(compile_rows: Compiler, given: Sequence[Conversation], folder: Path) -> int:
    """How many rows have a plan; all are as the template makes them."""
    fast, slow = both(compile_rows, rows_of(given), config(folder / "model"))
    assert same(fast, slow)
    return fast.rendering["replayed"]


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("name", list(TEMPLATES))
def test_rows_that_begin_alike_are_as_the_template_makes_them(
    name: str, is_full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_full:
        monkeypatch.setattr(symbolic_beginnings, "_MAX_SIZE", 100)
        monkeypatch.setattr(symbolic_beginnings, "_MAX_WAYS", 1)
    assert replayed(compiler_of(TEMPLATES[name], tmp_path), rows(), tmp_path) > 4


def test_a_turn_is_resolved_once_for_all_shapes_that_begin_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved: list[int] = []
    resolve = TurnResolver.resolve
    monkeypatch.setattr(
        TurnResolver, "resolve", lambda self, message: (resolved.append(message), resolve(self, message))[1]
    )
    compile_rows = compiler_of(TEMPLATES["rewrites"], tmp_path)
    assert compile_rows.batch is not None
    for size in (8, 2, 12, 6, 10, 4):
        assert compile_rows.batch._book.replay(conversation(size, [f"text {n} of {size}" for n in range(size)]))
    assert sorted(resolved) == [1, 3, 5, 7, 9, 11]


def test_only_what_answers_alike_is_shared(tmp_path: Path) -> None:
    compile_rows = compiler_of(TEMPLATES["asks the last question"], tmp_path)
    assert compile_rows.batch is not None
    book = compile_rows.batch._book
    for number, texts in enumerate((["yes", "a"], ["no", "b"], ["no", "c", "yes", "d"], ["yes", "e", "no", "f"])):
        found = book.replay(conversation(number, texts))
        assert isinstance(found, tuple)
        written = [b"".join(sample.take(found[1])).decode() for sample in found[0].samples]
        assert [text.count("!") for text in written] == [int(text == "no") for text in texts[::2]]


def test_what_only_a_beginning_asked_is_asked_of_longer_conversations(tmp_path: Path) -> None:
    compile_rows = compiler_of(TEMPLATES["asks the last question"], tmp_path)
    texts = [["yes", "a"], ["yes", "b", "well", "c"], ["no", "d", "well", "e"], ["no, no", "f"]]
    assert replayed(compile_rows, [conversation(n + 1, own) for n, own in enumerate(texts)], tmp_path) == 4


def test_what_a_longer_conversation_asked_is_asked_of_what_it_began_with(tmp_path: Path) -> None:
    compile_rows = compiler_of(TEMPLATES["asks the last question"], tmp_path)
    texts = [["yes", "b", "well", "c"], ["yes", "a"], ["no", "d"]]
    assert replayed(compile_rows, [conversation(n + 1, own) for n, own in enumerate(texts)], tmp_path) == 3


def test_a_row_that_answers_what_nobody_asked_before_has_a_plan_of_its_own(tmp_path: Path) -> None:
    compile_rows = compiler_of(TEMPLATES["asks the first one where there are more"], tmp_path)
    texts = [["no", "a"], ["yes", "b", "c", "d"], ["no", "e", "f", "g"], ["yes", "h"], ["yes", *"ijklm"]]
    assert replayed(compile_rows, [conversation(n + 1, own) for n, own in enumerate(texts)], tmp_path) == 5


def test_a_turn_that_was_trained_for_no_other_row_is_asked_all_that_it_has_to_be(tmp_path: Path) -> None:
    compile_rows = compiler_of(TEMPLATES["rewrites"], tmp_path)
    untrained, trained = (conversation(n, ["a", "b", "c", "d"]) for n in (1, 2))
    untrained.weights[1] = 0.0
    assert replayed(compile_rows, [untrained, trained], tmp_path) == 2
    assert compile_rows.batch is not None
    plans = [plan for known in compile_rows.batch._book._known.values() for plan in known.plans]
    assert [_begins(plan.guarded) for plan in plans] == [set(), {1}]


def _begins(guarded: Guarded) -> set[int]:
    """The messages of which it is asked whether they begin as words of the template do."""
    asked = [pair for group in guarded.asked for pair in group.asked]
    return {guarded.fields[number].message for number, own in asked for one in own if one.question == "begins"}


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_sample_has_the_weights_of_its_own_row(weight: float, tmp_path: Path) -> None:
    compiler_of(TEMPLATES["rewrites"], tmp_path)
    options = config(tmp_path / "model", history="last-turn")
    given = [conversation(n, ["a", "b", "c", "d"]) for n in (1, 2, 3)]
    given[1].weights[1], given[2].weights[3] = weight, weight or 2.0
    fast, slow = both(batch_compiler(load_model(options.model), options), rows_of(given), options)
    assert same(fast, slow)
    assert fast.rendering["replayed"] == 3


def test_a_turn_that_one_request_does_not_show_is_shown_by_another(tmp_path: Path) -> None:
    kept = TEMPLATES["rewrites"].replace("loop.index0 > ns.last", "(keep is defined or loop.index0 > ns.last)")
    compile_rows = compiler_of(kept, tmp_path)
    given = [conversation(n, ["a", "b", "c", "d"]) for n in (1, 2, 3)]
    given[1] = replace(given[1], template_kwargs={"keep": True})
    assert replayed(compile_rows, given, tmp_path) == 3
    assert compile_rows.batch is not None
    plans = [plan for known in compile_rows.batch._book._known.values() for plan in known.plans]
    assert [len(plan.samples) for plan in plans] == [2, 1]


def test_tools_of_another_row_are_not_those_of_a_row_that_begins_alike(tmp_path: Path) -> None:
    compile_rows = compiler_of(TEMPLATES["prints tools"], tmp_path)
    given = [conversation(n, ["a", "b", "c", "d"][: 2 * (1 + n % 2)]) for n in range(1, 7)]
    for n, row in enumerate(given[:4]):
        given[n] = replace(row, tools=[{"type": "function", "function": {"name": f"tool_{n}"}}])
    assert replayed(compile_rows, given, tmp_path) == 6
