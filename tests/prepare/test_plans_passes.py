"""A conversation is put together from passes only where each says the same wherever it stands."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from sftprep.data import Conversation, RowAddress
from sftprep.engines.load import load_model
from sftprep.prepare.compile import Compiler, batch_compiler
from sftprep.templates.contract import TurnResolver
from sftprep.templates.symbolic_passes import PassBook
from sftprep.templates.symbolic_template import SymbolicTemplate
from tests.prepare.test_plans import SAMPLES, both, config, conversation, rows_of, same
from tests.prepare.test_plans_ahead import _MESSAGE, _STOP, chat

_STOPPED = "<|im_end|>{% if add_generation_prompt %}{{ '\n' }}<|im_start|>assistant\n{% endif %}"
HANDED_ON = {
    "a counter": chat("{% set ns.n = ns.n + 1 %}{{ ns.n }}" + _MESSAGE + _STOP, before="{% set ns = namespace(n=0) %}"),
    "what was said before": chat(
        "{% if ns.no %}!{% endif %}{% if 'no' in m.content %}{% set ns.no = true %}{% endif %}" + _MESSAGE + _STOP,
        before="{% set ns = namespace(no=false) %}",
    ),
    "a joiner": chat("{{ sep() }}" + _MESSAGE + _STOP, before="{% set sep = joiner('--') %}"),
    "a cycler": chat("{{ turn.next() }}" + _MESSAGE + _STOP, before="{% set turn = cycler('a', 'b') %}"),
    "what is used up": chat("{{ it | first }}" + _MESSAGE + _STOP, before="{% set it = 'abcdefgh' | map('upper') %}"),
    "the item before": chat("{% if loop.previtem and 'no' in loop.previtem.content %}!{% endif %}" + _MESSAGE + _STOP),
    "a cycle": chat("{{ loop.cycle('a', 'b', 'c') }}" + _MESSAGE + _STOP),
    "a change": chat("{% if loop.changed('no' in m.content) %}!{% endif %}" + _MESSAGE + _STOP),
    "the loop by another name": chat("{% set l = loop %}{{ l.index }}" + _MESSAGE + _STOP),
    "a loop that is asked by index": chat("{{ loop['index'] }}" + _MESSAGE + _STOP),
}
OF_ITS_OWN = {
    "plain": chat(_MESSAGE + _STOP),
    "its own words": chat("{% if 'no' in m.content %}!{% endif %}" + _MESSAGE + _STOP),
    "stripped": chat("<|im_start|>{{ m.role }}\n{{ m.content.strip() }}" + _STOP),
    "whether it is the first": chat("{% if loop.first %}>{% endif %}" + _MESSAGE + _STOP),
    "its number": chat("{{ loop.index }}" + _MESSAGE + _STOP),
    "an even number": chat("{% if loop.index0 % 4 == 2 %}+{% endif %}" + _MESSAGE + _STOP),
    "the role before": chat(
        "{% if loop.index0 and messages[loop.index0 - 1].content == 'no' %}!{% endif %}" + _MESSAGE + _STOP
    ),
    "the words before": chat(
        "{% if loop.index0 and 'no' in messages[loop.index0 - 1].content %}!{% endif %}" + _MESSAGE + _STOP
    ),
    "the first one's words": chat("{% if 'no' in messages[0].content %}!{% endif %}" + _MESSAGE + _STOP),
    "the second one's words": chat("{% if 'no' in messages[1].content %}!{% endif %}" + _MESSAGE + _STOP),
    "what was set before": chat(
        "{% if wary %}!{% endif %}" + _MESSAGE + _STOP, before="{% set wary = 'no' in messages[0].content %}"
    ),
    "what a pass sets": chat("{% if x is defined %}+{% endif %}{% set x = 1 %}" + _MESSAGE + _STOP),
    "a macro": chat(
        "{{ say(m) }}",
        before="{% macro say(m) %}" + _MESSAGE + "{% if 'no' in m.content %}!{% endif %}" + _STOP + "{% endmacro %}",
    ),
    "no more": chat("{% if 'no' in m.content and not loop.first %}{% break %}{% endif %}" + _MESSAGE + _STOP),
    "not this one": chat("{% if 'so' in m.content %}{% continue %}{% endif %}" + _MESSAGE + _STOP),
    "all but the first": chat(_MESSAGE + _STOP, over="messages[1:]", before="{{ messages[0].content }}"),
    "an end of its own": chat(_MESSAGE + _STOP + "{% if m.role == 'assistant' %}<|im_end|>{% endif %}"),
    "the stop behind": chat("{% if not loop.first %}<|im_end|>\n{% endif %}" + _MESSAGE),
    "the stop behind it, or none": chat(
        "{% if not loop.first and 'no' not in m.content %}<|im_end|>\n{% endif %}" + _MESSAGE, prompt=_STOPPED
    ),
    "the stop two behind it": chat(
        "{% if m.content == 'so' %}\n{% else %}{% if not loop.first and 'no' not in m.content %}<|im_end|>\n{% endif %}"
        + _MESSAGE
        + "{% endif %}",
        prompt=_STOPPED,
    ),
    "a role before": chat(
        "{% if loop.index0 and messages[loop.index0 - 1].role == m.role %}!{% endif %}" + _MESSAGE + _STOP
    ),
    "the end of all": chat(
        "{% if m.role == 'assistant' and loop.index == messages | length %}!{% endif %}" + _MESSAGE + _STOP
    ),
    "a scaffold": chat(
        "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and 'no' not in m.content %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m.content }}" + _STOP,
        prompt="{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    ),
    "the answer again": chat(_MESSAGE + "{% if 'no' in m.content %}{{ m.content }}{% endif %}" + _STOP),
}


def rows() -> list[Conversation]:
    """Conversations of many lengths, in no order, some of whose texts say "no" or "so", alone or with more."""
    drawn = random.Random(5)
    made = []
    for number in range(1, 21):
        size = 2 * drawn.randint(1, 7)
        texts = [drawn.choice(["yes", "no", "so", "well", "no, no", " so it is "]) for _ in range(size)]
        made.append(conversation(number, texts, system=drawn.choice([None, None, "Be brief.", "no"])))
    for row in made[::5]:
        row.messages[-2:-2] = [{"role": "user", "content": "and"}]
        row.weights.append(1.0)
    for number in range(21, 33):
        questions = [drawn.choice(["yes", "no", "so"]) for _ in range(drawn.randint(1, 6))]
        made.append(conversation(number, answered(questions)))
    twice = {"role": "assistant", "content": "no more"}
    return [
        *made,
        Conversation(RowAddress("chats", 33), [*made[3].messages, twice], [1.0] * (len(made[3].messages) + 1)),
    ]


def answered(questions: list[str]) -> list[str]:
    return [text for question in questions for text in (question, "well")]


def compiler_of(template: str, folder: Path) -> Compiler:
    shutil.copytree(SAMPLES / "model", folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(template)
    return batch_compiler(load_model(str(folder / "model")), config(folder / "model"))


def template_of(compile_rows: Compiler) -> SymbolicTemplate:
    assert compile_rows.batch is not None
    return compile_rows.batch._book._templates.default


@pytest.mark.parametrize("template", [*HANDED_ON.values(), *OF_ITS_OWN.values()], ids=[*HANDED_ON, *OF_ITS_OWN])
@pytest.mark.parametrize("allow", [(), ("ill-posed", "field-repeated", "no-terminator")], ids=["strict", "waived"])
def test_conversations_that_are_put_together_are_what_the_template_writes(
    template: str, allow: tuple[str, ...], tmp_path: Path
) -> None:
    shutil.copytree(SAMPLES / "model", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    options = config(tmp_path / "model", allow=allow)
    compile_rows = batch_compiler(load_model(options.model), options)
    assert same(*both(compile_rows, rows_of(rows()), options))
    # Where something was put together otherwise than a server renders it, nothing is any more.
    assert (template_of(compile_rows)._passes is None) == (template in HANDED_ON.values())


@pytest.mark.parametrize("name", HANDED_ON)
def test_nothing_is_put_together_where_a_pass_hands_something_on(name: str, tmp_path: Path) -> None:
    assert template_of(compiler_of(HANDED_ON[name], tmp_path))._passes is None


@pytest.mark.parametrize(
    "name", ["plain", "its own words", "whether it is the first", "what was set before", "a macro"]
)
def test_a_shape_of_messages_that_were_seen_is_not_rendered_on_symbols_nor_resolved(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_rows = compiler_of(OF_ITS_OWN[name], tmp_path)
    assert compile_rows.batch is not None
    book = compile_rows.batch._book
    for number, questions in enumerate([["yes", "no", "yes"], ["yes", "yes", "no", "no"]]):
        assert isinstance(book.replay(conversation(number, answered(questions))), tuple)
    done: list[str] = []
    for kind, method in ((SymbolicTemplate, "_run_symbolic"), (TurnResolver, "_as_rendered")):
        monkeypatch.setattr(kind, method, lambda *_, _name=method, **__: done.append(_name))
    for number, size in enumerate((5, 12, 40)):
        questions = [("yes", "no", "no")[i % 3] for i in range(size)]
        assert isinstance(book.replay(conversation(number, answered(questions))), tuple)
    assert not done


def test_what_is_put_together_otherwise_than_a_server_renders_it_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sftprep.templates.symbolic_layout._repeats", lambda *_: True)
    compile_rows = compiler_of(HANDED_ON["a counter"], tmp_path)
    assert isinstance(template_of(compile_rows)._passes, PassBook)
    options = config(tmp_path / "model")
    assert same(*both(compile_rows, rows_of(rows()), options))
    assert template_of(compile_rows)._passes is None


def test_a_refusal_keeps_nothing_of_the_conversation_that_it_was_found_on(tmp_path: Path) -> None:
    compile_rows = compiler_of(OF_ITS_OWN["the answer again"], tmp_path)
    assert compile_rows.batch is not None
    for number, texts in enumerate((["yes", "no"], ["yes", "yes", "yes", "no", "well", "so"])):
        error = compile_rows.batch._book.replay(conversation(number, texts))
        assert isinstance(error, Exception)
        assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)
