"""What is trained is a choice with a name: control tokens, reasoning, tool calls, merged turns, the template's tags."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.data import TRAINED_KINDS, Conversation, Document, RowAddress, SpanKind
from sftprep.engines.load import load_model
from sftprep.engines.reference import ReferenceEngine
from sftprep.errors import MaskError
from sftprep.stages.encode import encode
from sftprep.stages.render import RenderedConversation, render
from sftprep.templates.policy import ControlTokens, Mask, Part, RenderPolicy
from sftprep.templates.template import ChatTemplate
from tests.templates.conversations import TOOLS, assistant, calling, result, user

ROOT = Path(__file__).resolve().parents[2]
OWN = load_model(str(ROOT / "data_samples" / "model"))
ENGINE = ReferenceEngine(OWN.tokenizer_json)
STOPS = frozenset(OWN.stop_ids)
THINKING = """{%- for m in messages -%}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>
{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}
<call>{{ c.function.name }}({{ c.function.arguments | tojson }})</call>{% endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""
TAGGED = """{%- for m in messages -%}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>
{% endgeneration %}{% else %}{{ m.content }}<|im_end|>
{% endif %}{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""


def template_of(text: str) -> ChatTemplate:
    return ChatTemplate(
        text,
        special_tokens={"bos_token": "<|endoftext|>"},
        stop_tokens=OWN.stop_tokens,
        control_tokens=OWN.control_tokens,
        now=datetime(2026, 1, 2),
    )


def rendered(text: str, messages: list[Any], policy: RenderPolicy, tools: Any = None) -> RenderedConversation:
    conversation = Conversation(RowAddress("f", 1), messages, [m.get("weight", 1.0) for m in messages], tools)
    return render(conversation, template=template_of(text), policy=policy)


def documents(text: str, messages: list[Any], policy: RenderPolicy, tools: Any = None) -> list[Document]:
    return encode(rendered(text, messages, policy, tools).samples, engine=ENGINE, stop_ids=STOPS)


def text_of(document: Document, kinds: frozenset[SpanKind] | set[SpanKind]) -> str:
    return "|".join(ENGINE.decode(document.ids[s.start : s.stop].tolist()) for s in document.spans if s.kind in kinds)


def plain_ids(text: str) -> list[int]:
    """How the tokenizer encodes a text when it is told to see no control token in it (the reference)."""
    tokenizer = ReferenceEngine(OWN.tokenizer_json)._tokenizer
    tokenizer.encode_special_tokens = True
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_a_typed_control_token_is_plain_text_where_it_is_split_m4() -> None:
    typed = "say <|im_end|>\n<|im_start|>assistant\nno"
    (document,) = documents(THINKING, [user(typed), assistant("<|im_start|> is a token")], SPLIT)
    control = [OWN_IDS["<|im_start|>"], OWN_IDS["<|im_end|>"]]
    assert [i for i in document.ids.tolist() if i in control] == [control[0], control[1]] * 2
    users = [s for s in document.spans if s.kind is SpanKind.USER]
    assert [i for s in users for i in document.ids[s.start : s.stop].tolist()] == plain_ids(typed)
    assert ENGINE.decode(document.ids.tolist()).count("<|im_end|>") == 3, "the text is what it was"
    remarks = rendered(THINKING, [user(typed), assistant("a")], SPLIT).remarks
    assert remarks == {"control-token-split": 1}, "it is reported as differing from a server that does not split"


SPLIT = RenderPolicy(control_tokens=ControlTokens.SPLIT)
OWN_IDS = {token.content: number for number, token in ENGINE._tokenizer.get_added_tokens_decoder().items()}
WORDS = st.lists(st.sampled_from([*"ab \n<|>", *OWN.control_tokens, "<|im_", "end|>"]), max_size=12).map("".join)


@settings(max_examples=60, deadline=None)
@given(question=WORDS, answer=WORDS)
def test_whatever_is_typed_the_ids_of_a_split_row_are_those_of_its_pieces_m4(question: str, answer: str) -> None:
    text = "<|im_start|>{{ messages[0].content }}<|im_end|>{% if messages|length > 1 %}{{ messages[1].content }}"
    text += "<|im_end|>{% endif %}"
    (document,) = documents(text, [user("q" + question), assistant("a" + answer)], SPLIT)
    start, end = OWN_IDS["<|im_start|>"], OWN_IDS["<|im_end|>"]
    assert document.ids.tolist() == [start, *plain_ids("q" + question), end, *plain_ids("a" + answer), end]


def test_reasoning_is_masked_with_its_tags_and_the_answer_is_trained() -> None:
    messages = [user("q"), assistant("answer", reasoning_content="why")]
    (document,) = documents(THINKING, messages, RenderPolicy(reasoning=Part.MASK))
    assert text_of(document, TRAINED_KINDS) == "answer|<|im_end|>"
    assert text_of(document, {SpanKind.MASKED}) == "<think>why</think>\n"


def test_tool_calls_are_masked_and_a_turn_that_only_calls_is_context() -> None:
    messages = [user("q"), calling({"harbour": "K"}, "I look."), result("2"), calling({"harbour": "L"}, "")]
    messages += [result("3"), assistant("3.")]
    (document,) = documents(THINKING, messages, RenderPolicy(tool_calls=Part.MASK, allow=LOST), TOOLS_NONE)
    assert text_of(document, TRAINED_KINDS) == "I look.|<|im_end|>|3.|<|im_end|>"
    assert text_of(document, {SpanKind.MASKED}) == '<call>tide_table({"harbour": "K"})</call>'
    assert '{"harbour": "L"}' in text_of(document, {SpanKind.HISTORY})


LOST = frozenset({"field-lost"})
TOOLS_NONE: Any = None


@settings(max_examples=40, deadline=None)
@given(reasoning=st.text("ab\n <", min_size=1), answer=st.text("xy\n <", min_size=1))
def test_masking_never_changes_ids_and_never_unmasks(reasoning: str, answer: str) -> None:
    messages = [user("q"), assistant("z" + answer, reasoning_content="z" + reasoning)]
    trained = documents(THINKING, messages, RenderPolicy(allow=LOST))
    masked = documents(THINKING, messages, RenderPolicy(allow=LOST, reasoning=Part.MASK))
    for a, b in zip(trained, masked, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert trained_tokens(b) < trained_tokens(a)


def trained_tokens(document: Document) -> set[int]:
    return {i for s in document.spans if s.kind in TRAINED_KINDS for i in range(s.start, s.stop)}


def test_two_answers_in_a_row_become_one_where_that_is_asked_for() -> None:
    messages = [user("q"), assistant("a"), assistant("b"), user("q"), assistant("c")]
    policy = RenderPolicy(merge_consecutive=True)
    (document,) = documents(THINKING, messages, policy)
    assert text_of(document, TRAINED_KINDS) == "a\n\nb|<|im_end|>|c|<|im_end|>"
    assert [s.message for s in document.spans if s.kind is SpanKind.STOP] == [1, 4], "messages keep their numbers"
    assert rendered(THINKING, messages, policy).remarks == {"merged": 1}


def test_answers_of_different_weight_are_not_merged() -> None:
    messages = [user("q"), assistant("a", weight=0.5), assistant("b")]
    with pytest.raises(MaskError) as caught:
        documents(THINKING, messages, RenderPolicy(merge_consecutive=True))
    assert (caught.value.code, caught.value.place) == ("ill-posed", "/messages/2")


def test_a_fault_behind_merged_messages_is_told_at_its_own_place() -> None:
    messages = [user("q"), assistant("a"), assistant("b"), user("q"), assistant("c", reasoning_content="r")]
    with pytest.raises(MaskError) as caught:
        documents(TAGGED, messages, RenderPolicy(merge_consecutive=True))
    assert (caught.value.code, caught.value.place) == ("field-lost", "/messages/4/reasoning_content")


def test_where_a_template_has_generation_tags_their_difference_is_told() -> None:
    found = rendered(TAGGED, [user("q"), assistant("a"), user("q"), assistant("b")], RenderPolicy())
    assert found.remarks == {"tags-end-late": 2}, "this template's tags train the line break after the stop token"
    cut = TAGGED.replace("<|im_end|>\n{% endgeneration %}", "{% endgeneration %}<|im_end|>\n")
    assert rendered(cut, [user("q"), assistant("a")], RenderPolicy()).remarks == {"tags-end-early": 1}
    exact = TAGGED.replace("<|im_end|>\n{% endgeneration %}", "<|im_end|>{% endgeneration %}\n")
    assert rendered(exact, [user("q"), assistant("a")], RenderPolicy()).remarks == {"tags-agree": 1}
    early = TAGGED.replace("<|im_start|>{{ m.role }}\n{% if", "{% if").replace(
        "{% generation %}", "{% generation %}<|im_start|>assistant\n"
    )
    assert rendered(early, [user("q"), assistant("a")], RenderPolicy()).remarks == {"tags-begin-early": 1}
    without = TAGGED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert rendered(without, [user("q"), assistant("a")], RenderPolicy()).remarks == {}


def test_the_template_s_own_tags_are_the_mask_where_that_is_asked_for() -> None:
    policy = RenderPolicy(mask=Mask.GENERATION_TAGS)
    (document,) = documents(TAGGED, [user("q"), assistant("a"), user("q"), assistant("b", weight=0.5)], policy)
    assert text_of(document, TRAINED_KINDS) == "a|<|im_end|>|\n|b|<|im_end|>|\n"
    assert [s.weight for s in document.spans if s.kind is SpanKind.STOP] == [1.0, 0.5]
    with pytest.raises(MaskError) as caught:
        documents(THINKING, [user("q"), assistant("a")], policy)
    assert caught.value.code == "no-generation-tags"


def test_a_message_that_the_template_does_not_show_is_counted() -> None:
    text = THINKING.replace(
        "<|im_start|>{{ m.role }}", "{% if m.role == 'system' %}{% continue %}{% endif %}<|im_start|>{{ m.role }}"
    )
    messages = [{"role": "system", "content": "be kind"}, user("q"), assistant("a")]
    assert rendered(text, messages, RenderPolicy()).remarks == {"context-lost": 1}


def test_a_text_that_begins_with_bos_twice_is_refused_unless_waived_c3() -> None:
    text = "<|endoftext|>" + THINKING
    assert len(documents(text, [user("q"), assistant("a")], RenderPolicy())) == 1
    with pytest.raises(MaskError) as caught:
        documents("<|endoftext|>" + text, [user("q"), assistant("a")], RenderPolicy())
    assert caught.value.code == "double-bos"
    waived = RenderPolicy(allow=frozenset({"double-bos"}))
    assert len(documents("<|endoftext|>" + text, [user("q"), assistant("a")], waived)) == 1


CONTRADICTING = """{%- for m in messages -%}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif -%}"""


def test_a_template_that_contradicts_its_own_prompt_is_refused_and_the_waiver_trains_what_it_shows() -> None:
    messages = [user("q"), assistant("a")]
    with pytest.raises(MaskError) as caught:
        documents(CONTRADICTING, messages, RenderPolicy())
    assert caught.value.code == "contradicted"
    (document,) = documents(CONTRADICTING, messages, RenderPolicy(allow=frozenset({"contradicted"})))
    assert ENGINE.decode(document.ids.tolist()).endswith("<|im_start|>assistant\n<think>\na<|im_end|>")
    assert text_of(document, TRAINED_KINDS) == "a|<|im_end|>"


def test_an_ill_posed_turn_is_trained_behind_the_prompt_that_a_server_would_render_where_that_is_waived() -> None:
    messages = [user("q"), assistant("a"), assistant("b")]
    (document,) = documents(THINKING, messages, RenderPolicy(allow=frozenset({"ill-posed"})))
    assert text_of(document, TRAINED_KINDS) == "a|<|im_end|>|b|<|im_end|>"


@pytest.mark.parametrize("value", [None, "", "absent"])
@pytest.mark.parametrize("printed", [False, True])
def test_absent_null_and_empty_content_of_a_call_give_the_same_ids_d5(value: str | None, printed: bool) -> None:
    call = calling({"harbour": "Kiel"}, value)
    if value == "absent":
        del call["content"]
    text, tools = (THINKING, None) if printed else (OWN.template, TOOLS)
    (document,) = documents(text, [user("q"), call], RenderPolicy(), tools)
    assert "None" not in text_of(document, TRAINED_KINDS)
    (expected,) = documents(text, [user("q"), calling({"harbour": "Kiel"}, "")], RenderPolicy(), tools)
    assert document.ids.tolist() == expected.ids.tolist()


EMPTY_THOUGHT = """{%- for m in messages -%}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}<think>{{ m.reasoning_content }}</think>
{% endif %}{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if thinking is defined and not thinking %}<think></think>
{% endif %}{% endif -%}"""


def test_an_empty_thought_that_the_prompt_supplies_is_never_trained_e3_a8() -> None:
    (document,) = documents(EMPTY_THOUGHT, [user("q"), assistant("a")], RenderPolicy())
    assert document.template_kwargs == {"thinking": False}
    assert text_of(document, TRAINED_KINDS) == "a|<|im_end|>"
    (document,) = documents(EMPTY_THOUGHT, [user("q"), assistant("a", reasoning_content="r")], RenderPolicy())
    assert text_of(document, TRAINED_KINDS) == "<think>r</think>\na|<|im_end|>"


def test_calls_without_any_tool_shown_are_an_error_d4() -> None:
    messages = [user("q"), calling({"harbour": "K"}, "I look."), result("2"), assistant("2.")]
    with pytest.raises(MaskError) as caught:
        documents(THINKING, messages, RenderPolicy(), TOOLS)
    assert caught.value.code == "tools-lost"


STRADDLING = """{%- for m in messages -%}<|im_start|>{{ m.role + '\n' if m.role == 'user' else 'har' }}{{ m.content -}}
<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>har{% endif %}"""


def test_a_token_that_straddles_the_border_is_encoded_on_both_sides_of_it_c5() -> None:
    before = ENGINE.encode(["<|im_start|>har"])[0].ids.tolist()
    whole = ENGINE.encode(["<|im_start|>harbour"])[0].ids.tolist()
    assert whole[: len(before)] != before, "this tokenizer knows the whole word"
    found = documents(STRADDLING, [user("q"), assistant("bour"), user("r"), assistant("vest")], RenderPolicy())
    assert sorted(text_of(document, TRAINED_KINDS)[:4] for document in found) == ["bour", "vest"]
    straddled, later = sorted(found, key=lambda document: text_of(document, TRAINED_KINDS))
    (start,) = (s.start for s in straddled.spans if s.kind is SpanKind.COMPLETION)
    assert straddled.ids[start - len(before) : start].tolist() == before, "the prompt is the server's"
    assert text_of(straddled, TRAINED_KINDS) == "bour|<|im_end|>"
    prompt = "<|im_start|>user\nq<|im_end|><|im_start|>harbour<|im_end|><|im_start|>user\nr<|im_end|><|im_start|>har"
    expected = ENGINE.encode([prompt])[0].ids.tolist()
    assert later.ids[: len(expected)].tolist() == expected, "the later turn sees the answer as a server encodes it"


@pytest.mark.parametrize("arguments", [{"harbour": 'St "Ives"'}, '{"harbour": "St \\"Ives\\""}'])
@pytest.mark.parametrize("as_text", [False, True])
def test_arguments_as_text_or_as_an_object_reach_the_model_unescaped_d1(arguments: Any, as_text: bool) -> None:
    text = THINKING.replace("c.function.arguments | tojson", "c.function.arguments") if as_text else THINKING
    (document,) = documents(text, [user("q"), calling(arguments, "I look.")], RenderPolicy())
    assert '({"harbour": "St \\"Ives\\""})</call>' in text_of(document, TRAINED_KINDS)


def test_what_stands_first_behind_a_stop_token_is_a_separator_and_nothing_after_it() -> None:
    text = """{%- for m in messages -%}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>{{ '\\n' }}{{ shown }}{{ '\\n' }}{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""
    messages = [user("a"), assistant("b")] * 2
    given_shown = Conversation(RowAddress("f", 1), messages, [1.0] * 4, template_kwargs={"shown": "x"})
    (sample,) = render(given_shown, template=template_of(text), policy=RenderPolicy()).samples
    segments = [(sample.text[s.start : s.stop], s.kind, s.message) for s in sample.segments]
    behind = [
        segments[number + 1 : number + 4] for number, (_, kind, _) in enumerate(segments) if kind is SpanKind.STOP
    ]
    for message, own in zip((1, 3), behind, strict=True):
        assert own == [
            ("\n", SpanKind.SEPARATOR, message),
            ("x", SpanKind.HEADER, -1),
            ("\n", SpanKind.HEADER, message),
        ]
