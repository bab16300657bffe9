"""Turns of templates that do unusual things: exact where they can be, else the error that says why."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from sftprep.errors import MaskError
from sftprep.templates.adapt import adapt_messages, probe_form
from sftprep.templates.contract import TurnResolver
from sftprep.templates.exact import ExactTurn
from sftprep.templates.template import ChatTemplate, Request
from tests.templates.conversations import assistant, calling, user

HEAD = "{% for m in messages %}<|{{ m.role }}|>"
PROMPT = "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def resolved(text: str, messages: list[Any], *, allow: str = "", stop: tuple[str, ...] = ("<|end|>",)) -> ExactTurn:
    template = ChatTemplate(text, special_tokens={}, stop_tokens=stop, now=datetime(2026, 1, 2))
    adapted = adapt_messages(messages, probe_form(template))
    return TurnResolver(template, adapted, Request(), frozenset([allow])).resolve(len(messages) - 1)


def completion(turn: ExactTurn) -> str:
    return turn.traced.text[turn.start : turn.end.stop]


def refusal(text: str, messages: list[Any], **more: Any) -> str:
    with pytest.raises(MaskError) as caught:
        resolved(text, messages, **more)
    assert caught.value.hint
    return caught.value.code


def test_a_stop_token_before_all_that_the_turn_says_is_refused_because_a_server_stops_there() -> None:
    text = HEAD + "{{ m.content }}{% if m.tool_calls %}<|end|><|calls|>{{ m.tool_calls | tojson }}{% endif %}<|end|>"
    assert refusal(text + PROMPT, [user("q"), calling({"harbour": "Kiel"}, "I look.")]) == "early-stop"
    assert completion(resolved(text + PROMPT, [user("q"), assistant("a <|end|> b")])) == "a <|end|> b<|end|>"


def test_the_token_that_opens_the_next_turn_is_found_though_history_is_rendered_otherwise_b3() -> None:
    text = (
        HEAD + "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{{ m.content }}" + PROMPT
    )
    turn = resolved(text, [user("q"), assistant("a", reasoning_content="r")], stop=("<|user|>",))
    assert completion(turn) == "<think>r</think>a<|user|>"
    assert turn.traced.text[: turn.start] == "<|user|>q<|assistant|>"


def test_a_template_that_drops_tool_results_is_asked_with_a_user_instead_b3() -> None:
    text = (
        "{% for m in messages if m.role != 'tool' %}<|{{ m.role }}|>{{ m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}" + PROMPT
    )
    assert completion(resolved(text, [user("q"), calling({}, "I look.")], stop=("<|user|>",))).endswith("<|user|>")


def test_a_switch_may_be_a_text_that_the_template_compares_e6() -> None:
    text = (
        HEAD + "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        "{% if (effort or 'none') == 'none' %}<think></think>{% elif effort in ['low', 'high'] %}<think>{% endif %}"
        "{% endif %}"
    )
    turn = resolved(text, [user("q"), assistant("a", reasoning_content="r")])
    assert completion(turn) == "r</think>a<|end|>"
    assert turn.request.kwargs == {"effort": "low"}


def test_a_prompt_that_a_later_render_does_not_hold_is_spliced_though_its_beginning_differs() -> None:
    text = "{% if add_generation_prompt %}<|system|>be kind{% endif %}" + HEAD + "{{ m.content }}<|end|>" + PROMPT
    turn = resolved(text, [user("q"), assistant("a")])
    assert turn.kind == "spliced"
    assert turn.traced.text == "<|system|>be kind<|user|>q<|end|><|assistant|>a<|end|>"


def test_where_a_switch_fits_and_something_else_is_wrong_that_is_what_is_told() -> None:
    text = (
        HEAD + "{% if m.role == 'assistant' %}<think>{% endif %}{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% if think %}<think>{% else %}<answer>{% endif %}{% endif %}"
    )
    messages = [user("q"), assistant("a", reasoning_content="reason")]
    assert refusal(text, messages) == "field-lost"
    assert completion(resolved(text, messages, allow="field-lost")) == "a<|end|>"


def test_a_template_that_reads_parts_only_is_given_parts() -> None:
    text = HEAD + "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}<|end|>" + PROMPT
    assert completion(resolved(text, [user("q"), assistant("a")])) == "a<|end|>"


def test_a_field_of_which_nothing_is_shown_is_lost_though_its_text_occurs_elsewhere_e4() -> None:
    text = HEAD + "{{ m.content }}<|end|>" + PROMPT
    assert refusal(text, [user("q"), assistant("a", reasoning_content="assistant")]) == "field-lost"


def test_an_object_that_is_printed_whole_shows_all_that_is_in_it() -> None:
    text = HEAD + "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    text += "{% for k, v in c.function.arguments.items() %}|{{ k }}={{ v }}{% endfor %}{% endfor %}<|end|>" + PROMPT
    turn = resolved(text, [user("q"), calling({"a": {"b": "one", "c": ["two"]}, "d": "three"}, "I look.")])
    assert completion(turn) == "I look.tide_table|a={'b': 'one', 'c': ['two']}|d=three<|end|>"


def test_a_scaffold_that_the_plain_prompt_supplies_is_not_trained_though_a_switch_renders_the_turn_e3() -> None:
    text = HEAD + "{% if m.role == 'assistant' %}{% if thinking %}<think>{% endif %}</think>{% endif %}{{ m.content }}"
    text += "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|><think>"
    text += "{% if not thinking %}</think>{% endif %}{% endif %}"
    turn = resolved(text, [user("q"), assistant("a")])
    assert completion(turn) == "a<|end|>"
    assert turn.traced.text[: turn.start] == "<|user|>q<|end|><|assistant|><think></think>"
    assert not turn.request.kwargs
