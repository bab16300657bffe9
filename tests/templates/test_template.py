"""Texts are those of the model's own template as transformers renders it (C1, C4), and every character has a writer."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
import transformers.utils.chat_template_utils as hf

from sftprep.errors import TemplateError
from sftprep.templates.template import ChatTemplate, Request, _compiled
from tests.templates.conversations import CONVERSATIONS

NOW = datetime(2026, 1, 2, 3, 4, 5)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
KNOWN_DIFFERENT = {("llama.cpp__meetkai-functionary-medium-v3.1.jinja", "tools")}
"""`|safe` on one operand of `+` escapes the other one there: such a row is refused by name (`trace-differs`)."""


class FixedClock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return NOW


def transformers_text(text: str, messages: list[Any], tools: Any, *, prompt: bool, **kwargs: Any) -> str | None:
    """What transformers renders; None where it refuses."""
    normal = hf._normalize_chat_messages(messages)
    try:
        rendered, _ = hf.render_jinja_template(
            [normal], tools=tools, chat_template=text, add_generation_prompt=prompt, **SPECIAL, **kwargs
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return None
    return str(rendered[0])


def compile_template(text: str) -> ChatTemplate:
    return ChatTemplate(text, special_tokens=SPECIAL, stop_tokens=["</s>"], now=NOW)


def differences(name: str, text: str) -> tuple[int, list[str]]:
    """How many renders were compared, and which were not equal to the character."""
    template = compile_template(text)
    compared, wrong = 0, []
    for case, (messages, tools) in CONVERSATIONS.items():
        for prompt in (False, True):
            expected = transformers_text(text, messages, tools, prompt=prompt)
            try:
                traced = template.trace(messages, Request(tools=tools), prompt=prompt)
            except TemplateError:
                wrong += [] if expected is None else [f"{name} {case}: refused"]
                continue
            compared += 1
            covered = sum(run.length for run in traced.runs) == len(traced.text)
            wrong += [] if traced.text == expected and covered else [f"{name} {case}: differs"]
    return compared, wrong


def test_our_own_template_renders_as_transformers_renders_it(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "datetime", FixedClock)
    compared, wrong = differences("own", (samples / "model" / "chat_template.jinja").read_text())
    assert compared > 20
    assert wrong == []


@pytest.mark.corpus
def test_every_real_template_renders_as_transformers_renders_it(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "datetime", FixedClock)
    compared, wrong = 0, []
    for path in sorted((corpus / "templates").glob("*.jinja")):
        done, differing = differences(path.name, path.read_text())
        compared += done
        wrong += [w for w in differing if (path.name, w.split()[1].split("-")[0]) not in KNOWN_DIFFERENT]
    assert compared > 4000
    assert wrong == []


def test_the_same_file_on_two_days_gives_the_same_text_c6() -> None:
    template = compile_template("{{ strftime_now('%d %b %Y') }}")
    assert template.render([], Request(), prompt=False) == "02 Jan 2026"


def test_a_template_that_is_made_again_is_not_compiled_again_and_keeps_its_own_day_and_names_c6() -> None:
    text = "{{ strftime_now('%d') }}{{ extra }}{{ bos_token }}{{ messages[0].content }}"
    first, before = compile_template(text), _compiled.cache_info()
    later = ChatTemplate(text, special_tokens={"bos_token": "<b>"}, stop_tokens=[], now=datetime(2026, 1, 9))
    after = _compiled.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
    assert first.render([{"role": "user", "content": "q"}], Request(), prompt=False) == "02<s>q"
    assert later.render([{"role": "user", "content": "r"}], Request(), prompt=False) == "09<b>r"
    assert first.variables == later.variables == {"extra", "bos_token", "messages"}


def test_a_template_with_a_syntax_error_is_named_with_its_line() -> None:
    with pytest.raises(TemplateError) as caught:
        compile_template("fine\n{% for m in messages %}")
    assert caught.value.code == "template-syntax"
    assert caught.value.place == "chat_template:2"


def test_a_template_that_refuses_the_messages_is_named() -> None:
    with pytest.raises(TemplateError, match="must alternate") as caught:
        compile_template("{{ raise_exception('roles must alternate') }}").render([], Request(), prompt=False)
    assert caught.value.code == "template-raised"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[0].content._runs }}",
        "{{ messages[0].content.tracer.sources }}",
        "{{ messages[0].content.piece(0, 1) }}",
        "{{ messages.append(1) }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.listdir('/') }}",
    ],
)
def test_a_hostile_template_reaches_nothing_traced_or_not(attack: str) -> None:
    template = compile_template(attack)
    for run in (template.render, template.trace):
        try:
            text = run([{"role": "user", "content": "secret"}], Request(), prompt=False)
        except TemplateError:
            continue
        assert str(getattr(text, "text", text)) == "", "an attribute that str has not is undefined"
