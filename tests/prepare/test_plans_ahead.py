"""One render tells the texts of all beginnings of a conversation only where the template reads nothing ahead."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sftprep.data import Conversation, RowAddress
from sftprep.engines.load import load_model
from sftprep.prepare.compile import batch_compiler
from tests.prepare.test_plans import SAMPLES, both, config, conversation, rows_of, same

_MESSAGE = "<|im_start|>{{ m.role }}\n{{ m.content }}"
_STOP = "<|im_end|>\n"
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chat(body: str, *, over: str = "messages", before: str = "", prompt: str = _PROMPT) -> str:
    return f"{before}{{% for m in {over} %}}{body}{{% endfor %}}{prompt}"


AHEAD = {
    "last": chat(_MESSAGE + "{% if loop.last %}!{% endif %}" + _STOP),
    "next": chat("{% if loop.nextitem is defined %}-{% endif %}" + _MESSAGE + _STOP),
    "length": chat("{% if loop.index > messages | length - 2 %}+{% endif %}" + _MESSAGE + _STOP),
    "left": chat("{{ '.' * loop.revindex0 }}" + _MESSAGE + _STOP),
    "the last one": chat("{% if m is sameas messages[-1] %}+{% endif %}" + _MESSAGE + _STOP),
    "one after": chat("{% if messages[loop.index0 + 1] is defined %}+{% endif %}" + _MESSAGE + _STOP),
    "the rest": chat("{% for n in messages[loop.index:] %}.{% endfor %}" + _MESSAGE + _STOP),
    "all before": chat(
        "{% if loop.index0 > ns.n - 3 %}+{% endif %}" + _MESSAGE + _STOP,
        before="{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}",
    ),
    "how many": chat(_MESSAGE + _STOP, before="{% if messages | length > 3 %}long\n{% endif %}"),
    "a list of its own": chat(_MESSAGE + _STOP, over="(messages + [])"),
    "turned": chat(_MESSAGE + _STOP, over="messages | reverse | list | reverse"),
}
BEHIND = {
    "plain": chat(_MESSAGE + _STOP),
    "first": chat("{% if loop.first and messages[0].role != 'system' %}>{% endif %}" + _MESSAGE + _STOP),
    "one before": chat(
        "{% if loop.index0 and messages[loop.index0 - 1].role == 'user' %}-{% endif %}" + _MESSAGE + _STOP
    ),
    "all but the first": chat(_MESSAGE + _STOP, over="messages[1:]", before="{{ messages[0].content }}"),
    "counted": chat("{% set ns.n = ns.n + 1 %}{{ ns.n }}" + _MESSAGE + _STOP, before="{% set ns = namespace(n=0) %}"),
    "chosen": chat(_MESSAGE + _STOP, over="messages if m.content != 'two'").replace("m.content != 'two'", "m.role"),
    "switched": chat(_MESSAGE + _STOP, prompt=_PROMPT.replace("\n", "\n{% if brief is defined %}={% endif %}")),
}
ENDINGS = {
    "reads a message": chat(
        _MESSAGE + _STOP,
        prompt="{% if add_generation_prompt %}{% if messages[0].role == 'system' %}!{% endif %}"
        "<|im_start|>assistant\n{% endif %}",
    ),
    "reads what was set": chat(
        "{% set ns.n = ns.n + 1 %}" + _MESSAGE + _STOP,
        before="{% set ns = namespace(n=0) %}",
        prompt="{% if add_generation_prompt %}{{ ns.n }}<|im_start|>assistant\n{% endif %}",
    ),
    "prints what was set": chat(
        "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}told{% endif %}{{ m.content }}" + _STOP,
        before="{% set word = '' if messages[0].role == 'system' else 'told' %}",
        prompt="{% if add_generation_prompt %}<|im_start|>assistant\n{{ word }}{% endif %}",
    ),
    "in the loop": chat(
        _MESSAGE + _STOP + "{% if loop.last and add_generation_prompt %}<|im_start|>assistant\n{% endif %}", prompt=""
    ),
}


def rows() -> list[Conversation]:
    sizes = [2, 4, 6, 8, 10, 4, 2, 8]
    made = [conversation(n + 1, [f"text {i}" for i in range(size)]) for n, size in enumerate(sizes)]
    with_system = [conversation(n + 9, ["one", "two", "three", "four"], system="Be brief.") for n in range(2)]
    open_ended = [conversation(n + 11, ["one", "two", "three", "four", "five"]) for n in range(2)]
    twice = {"role": "assistant", "content": "and more"}
    refused = Conversation(RowAddress("chats", 13), [*made[1].messages, twice], [1.0] * 5)
    return [*made, *with_system, *open_ended, refused]


@pytest.mark.parametrize(
    "template", [*AHEAD.values(), *BEHIND.values(), *ENDINGS.values()], ids=[*AHEAD, *BEHIND, *ENDINGS]
)
def test_what_a_template_reads_of_later_messages_is_in_every_text(template: str, tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "model", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    options = config(tmp_path / "model")
    compile_rows = batch_compiler(load_model(options.model), options)
    assert same(*both(compile_rows, rows_of(rows()), options))


@pytest.mark.parametrize("name", list(BEHIND))
def test_a_template_that_reads_nothing_ahead_is_rendered_once_for_all_beginnings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SAMPLES / "model", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(BEHIND[name])
    options = config(tmp_path / "model")
    compile_rows = batch_compiler(load_model(options.model), options)
    assert compile_rows.batch is not None
    template = compile_rows.batch._book._templates.default
    sizes: list[int] = []
    run = type(template)._run_symbolic
    monkeypatch.setattr(
        type(template), "_run_symbolic", lambda self, size, *a, **k: (sizes.append(size), run(self, size, *a, **k))[1]
    )
    texts = [f"text {i}" for i in range(20)]
    compile_rows.batch._book.replay(conversation(1, texts))
    assert 0 < len(sizes) < 6
