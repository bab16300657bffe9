"""The contract, against transformers itself: for every trained turn the ids before it are the server's prompt.

The reference is the obvious slow one: `AutoTokenizer.apply_chat_template` on the messages before the turn.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sftprep.data import TRAINED_KINDS, Conversation, Document, RowAddress, SpanKind
from sftprep.engines.load import load_model
from sftprep.engines.model import ModelFiles
from sftprep.engines.reference import ReferenceEngine
from sftprep.errors import MaskError
from sftprep.stages.encode import encode
from sftprep.stages.render import render
from sftprep.templates.adapt import adapt_messages, probe_form
from sftprep.templates.policy import ControlTokens, History, RenderPolicy, TrainOn
from sftprep.templates.template import ChatTemplate
from tests.templates.conversations import CONVERSATIONS, TOOLS, assistant, calling, result, user

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / "data_samples" / "model"
CORPUS_MODELS = ROOT.parent / "shared" / "corpus" / "models"
WITH_TEMPLATE = ("qwen3", "phi-3", "mistral-v3", "mistral-tekken", "gpt-oss", "deepseek-v3", "deepseek-v4", "qwen3.6")
ALLOW = RenderPolicy(control_tokens=ControlTokens.ALLOW, allow=frozenset({"field-lost"}))


REFUSALS = {"template-raised", "tools-lost", "contradicted", "trace-differs", "no-terminator"}
"""What a real template may force; anything else is our fault."""


class Model:
    """A model directory, loaded by us and by transformers."""

    def __init__(self, path: Path) -> None:
        self.files: ModelFiles = load_model(str(path))
        self.engine = ReferenceEngine(self.files.tokenizer_json)
        self.template = ChatTemplate(
            self.files.template,
            special_tokens=self.files.special_tokens,
            stop_tokens=self.files.stop_tokens,
            control_tokens=self.files.control_tokens,
            now=datetime.now(),
        )
        self.reference = AutoTokenizer.from_pretrained(path)

    def documents(self, messages: list[Any], tools: Any = None, policy: RenderPolicy = ALLOW) -> list[Document]:
        conversation = Conversation(RowAddress("f", 1), messages, [1.0] * len(messages), tools)
        rendered = render(conversation, template=self.template, policy=policy)
        return encode(rendered.samples, engine=self.engine, stop_ids=frozenset(self.files.stop_ids))

    def prompts(self, messages: list[Any], tools: Any) -> list[list[int]]:
        """The server's prompt, and the one under each switch of the template."""
        adapted = adapt_messages(messages, probe_form(self.template))
        found = []
        for kwargs in ({}, *({name: value} for name, value in self.template.switches)):
            ids = self.reference.apply_chat_template(
                adapted, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=True, **kwargs
            )
            found.append(list(ids["input_ids"]))
        return found


@functools.lru_cache(maxsize=2)
def model_at(path: Path) -> Model:
    return Model(path)


def runs(document: Document) -> Iterator[tuple[int, int, int]]:
    """(message, start, stop) of every trained run of a document."""
    spans = [span for span in document.spans if span.kind in TRAINED_KINDS]
    for message in dict.fromkeys(span.message for span in spans):
        own = [span for span in spans if span.message == message]
        yield message, own[0].start, own[-1].stop


def check_exact(model: Model, documents: Sequence[Document], messages: list[Any], tools: Any) -> list[int]:
    """Assert the contract on every trained run; the messages that were trained, in the order found."""
    trained = []
    for document in documents:
        assert [s.start for s in document.spans] == [0, *[s.stop for s in document.spans][:-1]]
        assert document.spans[-1].stop == len(document.ids)
        for message, start, stop in runs(document):
            before, run = document.ids[:start].tolist(), document.ids[start:stop].tolist()
            assert before in model.prompts(messages[:message], tools), f"turn {message}: not the server's prompt"
            assert run[-1] in model.files.stop_ids, "the stop token is trained, and nothing after it"
            assert not set(run[:-1]) & set(model.files.stop_ids), "no server lets a model write behind a stop token"
            trained.append(message)
    return trained


def check_case(model: Model, case: str) -> int:
    messages, tools = CONVERSATIONS[case]
    try:
        documents = model.documents(messages, tools)
    except MaskError as error:
        if error.code not in REFUSALS:
            raise
        return 0
    expected = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    assert sorted(check_exact(model, documents, messages, tools)) == expected, "each turn is trained exactly once"
    return len(expected)


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_prompt_ids_are_the_server_s_and_each_turn_is_trained_once_a1_a7_a8_b1_b2(case: str) -> None:
    assert check_case(model_at(OWN), case) > 0


@pytest.mark.corpus
@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_the_contract_holds_on_real_tokenizers_and_templates_a1_a6_a7_c1_c3_c5(corpus: Path, name: str) -> None:
    model = model_at(corpus / "models" / name)
    turns = [check_case(model, case) for case in CONVERSATIONS]
    assert sum(turns) >= 20, f"{sum(turns)} turns were trained"


def text_of(model: Model, document: Document, kinds: frozenset[SpanKind]) -> str:
    return "|".join(
        model.engine.decode(document.ids[s.start : s.stop].tolist()) for s in document.spans if s.kind in kinds
    )


def test_what_is_trained_is_what_the_model_must_write_stop_token_included_b8() -> None:
    model = model_at(OWN)
    (document,) = model.documents([user("q one"), assistant("a one"), user("q two"), assistant("a two")])
    assert text_of(model, document, TRAINED_KINDS) == "a one|<|im_end|>|a two|<|im_end|>"
    assert text_of(model, document, frozenset({SpanKind.SEPARATOR})) == "\n|\n"


def test_a_tool_call_is_trained_and_its_result_is_not_d6_d7() -> None:
    model = model_at(OWN)
    (document,) = model.documents(
        [user("q"), calling({"harbour": "Kiel"}, "I look."), result("2.1"), assistant("2.")], TOOLS
    )
    trained = text_of(model, document, TRAINED_KINDS)
    assert trained.startswith('I look.\n<tool_call>{"name": "tide_table"')
    assert "2.1" not in trained
    assert text_of(model, document, frozenset({SpanKind.TOOL_RESULT})).endswith("|2.1")


def test_prompt_and_response_are_labelled_as_the_literature_defines_it() -> None:
    model = model_at(OWN)
    (document,) = model.documents([user("What is a quay?"), assistant("A wall where ships lie.")])
    assert text_of(model, document, TRAINED_KINDS) == "A wall where ships lie.|<|im_end|>"


def test_a_turn_of_weight_zero_is_context_and_a_fraction_is_carried_l1() -> None:
    model = model_at(OWN)
    messages = [user("q"), assistant("a"), user("q"), assistant("b")]
    conversation = Conversation(RowAddress("f", 1), messages, [1.0, 0.0, 1.0, 0.25])
    rendered = render(conversation, template=model.template, policy=ALLOW)
    (document,) = encode(rendered.samples, engine=model.engine, stop_ids=frozenset(model.files.stop_ids))
    assert text_of(model, document, TRAINED_KINDS) == "b|<|im_end|>"
    assert text_of(model, document, frozenset({SpanKind.WEIGHT_ZERO})) == "a"
    assert {s.weight for s in document.spans if s.kind in TRAINED_KINDS} == {0.25}


def test_only_the_last_turn_is_trained_where_the_policy_says_so() -> None:
    model = model_at(OWN)
    policy = RenderPolicy(train_on=TrainOn.LAST)
    (document,) = model.documents([user("q"), assistant("a"), user("q"), assistant("b")], policy=policy)
    assert text_of(model, document, TRAINED_KINDS) == "b|<|im_end|>"


def test_a_control_token_in_content_is_an_error_by_default_m4() -> None:
    with pytest.raises(MaskError) as caught:
        model_at(OWN).documents([user("say <|im_end|>"), assistant("no")], policy=RenderPolicy())
    assert (caught.value.code, caught.value.place) == ("control-token", "/messages/0/content")


def test_a_control_token_that_the_template_joins_of_parts_is_an_error_m4() -> None:
    parts = [{"type": "text", "text": text} for text in ("say <|im_", "end|>")]
    with pytest.raises(MaskError) as caught:
        model_at(OWN).documents([{"role": "user", "content": parts}, assistant("no")], policy=RenderPolicy())
    assert (caught.value.code, caught.value.place) == ("control-token", "/messages/0/content/0/text")


def test_no_answer_goes_on_behind_a_stop_token_that_it_says_a8() -> None:
    with pytest.raises(MaskError) as caught:
        model_at(OWN).documents([user("q"), assistant("yes<|im_end|>and no")], policy=ALLOW)
    assert (caught.value.code, caught.value.place) == ("early-stop", "/messages/1")


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([assistant("first")], "ill-posed"),
        ([user("q"), assistant("a"), assistant("b")], "ill-posed"),
        ([user("q")], "nothing-trained"),
    ],
)
def test_what_cannot_be_exact_is_an_error_with_a_name(messages: list[Any], code: str) -> None:
    with pytest.raises(MaskError) as caught:
        model_at(OWN).documents(messages)
    assert caught.value.code == code


MARKER = "marker"
PIECES = (*"ab \n\té日🙂<|>[]{}%#", "<|im_end|>", "<|im_start|>assistant\n", "</think>")
WORDS = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)
ANSWERS = st.lists(st.sampled_from([piece for piece in PIECES if piece != "<|im_end|>"]), max_size=20).map("".join)
"""What a model can write: a stop token within is `early-stop`."""


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(WORDS, ANSWERS), min_size=1, max_size=4))
def test_hostile_conversations_keep_the_contract_a11_m4(turns: list[tuple[str, str]]) -> None:
    model = model_at(OWN)
    messages = [m for q, a in turns for m in (user(MARKER + q), assistant("answer" + a))]
    documents = model.documents(messages)
    assert sorted(check_exact(model, documents, messages, None)) == list(range(1, len(messages), 2))
    for document in documents:
        assert MARKER not in text_of(model, document, TRAINED_KINDS), "no token of a user is ever trained (A2)"


REWRITING = """{%- set last = namespace(q=0) -%}
{%- for m in messages if m.role == 'user' %}{% set last.q = loop.index0 * 2 %}{% endfor -%}
{%- for m in messages -%}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and m.reasoning_content and loop.index0 > last.q %}<think>{{ m.reasoning_content }}</think>
{% endif %}{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""


def rewriting_model() -> tuple[Model, ChatTemplate]:
    model = model_at(OWN)
    template = ChatTemplate(REWRITING, special_tokens={}, stop_tokens=model.files.stop_tokens, now=datetime(2026, 1, 2))
    return model, template


@pytest.mark.parametrize(
    ("history", "trained"), [(History.EXPAND, 2), (History.AS_RENDERED, 1), (History.LAST_TURN, 1)]
)
def test_a_turn_whose_history_is_rewritten_gets_a_sample_of_its_own_e1_e2(history: History, trained: int) -> None:
    model, template = rewriting_model()
    messages = CONVERSATIONS["reasoning"][0]
    conversation = Conversation(RowAddress("f", 1), messages, [1.0] * len(messages))
    rendered = render(conversation, template=template, policy=RenderPolicy(history=history))
    assert sum(rendered.classes.values()) == trained
    completions = [s.text[t.start : t.stop] for s in rendered.samples for t in s.turns]
    assert completions[-1] == "<think>r two</think>\na two<|im_end|>"
    assert all("<think>" in completion for completion in completions), "no turn teaches an empty thought"
    documents = encode(rendered.samples, engine=model.engine, stop_ids=frozenset(model.files.stop_ids))
    assert len(documents) == len(rendered.samples) == trained


def test_a_template_that_drops_what_the_model_says_is_refused_by_name_e4() -> None:
    _, template = rewriting_model()
    messages = [user("q"), calling({"harbour": "Kiel"}, "I look.")]
    conversation = Conversation(RowAddress("f", 1), messages, [1.0, 1.0])
    with pytest.raises(MaskError) as caught:
        render(conversation, template=template, policy=RenderPolicy())
    assert caught.value.code == "field-lost"


def test_a_template_without_a_stop_token_is_refused_unless_waived_b2_b4() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        special_tokens={},
        stop_tokens=["<|im_end|>"],
        now=datetime(2026, 1, 2),
    )
    conversation = Conversation(RowAddress("f", 1), [user("q"), assistant("a")], [1.0, 1.0])
    with pytest.raises(MaskError) as caught:
        render(conversation, template=template, policy=RenderPolicy())
    assert caught.value.code == "no-terminator"
    waived = render(conversation, template=template, policy=RenderPolicy(allow=frozenset({"no-terminator"})))
    (sample,) = waived.samples
    assert [sample.text[t.start : t.stop] for t in sample.turns] == ["a"]


def test_the_token_that_opens_the_next_turn_is_trained_where_it_stops_the_model_b3() -> None:
    template = ChatTemplate(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        special_tokens={},
        stop_tokens=["<|user|>"],
        now=datetime(2026, 1, 2),
    )
    messages = [user("q one"), assistant("a one"), user("q two"), assistant("a two")]
    rendered = render(Conversation(RowAddress("f", 1), messages, [1.0] * 4), template=template, policy=RenderPolicy())
    completions = [s.text[t.start : t.stop] for s in rendered.samples for t in s.turns]
    assert completions == ["a one<|user|>", "a two<|user|>"]
    assert len(rendered.samples) == 1


SWITCHING = """{%- for m in messages -%}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and m.reasoning_content %}<think>{{ m.reasoning_content }}</think>
{% elif m.role == 'assistant' %}<think></think>
{% endif %}{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think></think>
{% endif %}{% endif -%}"""


@pytest.mark.parametrize(
    ("given", "chosen"), [({}, {"enable_thinking": False}), ({"x": "y"}, {"enable_thinking": False})]
)
def test_the_arguments_that_the_template_was_given_are_known_for_every_document_e6(given: Any, chosen: Any) -> None:
    model = model_at(OWN)
    template = ChatTemplate(SWITCHING, special_tokens={}, stop_tokens=model.files.stop_tokens, now=datetime(2026, 1, 2))
    messages = [user("q"), assistant("a", reasoning_content="r"), user("q"), assistant("b")]
    conversation = Conversation(RowAddress("f", 1), messages, [1.0] * 4, template_kwargs=given)
    rendered = render(conversation, template=template, policy=ALLOW)
    documents = encode(rendered.samples, engine=model.engine, stop_ids=frozenset(model.files.stop_ids))
    assert [document.template_kwargs for document in documents] == [given, given | chosen]


def check_hostile(model: Model) -> None:
    """The contract on conversations of control tokens, headers and white space, drawn at random."""
    exact: list[int] = []
    pieces = [*PIECES, *model.files.control_tokens[:40]]
    # What a model can write: a stop token within is `early-stop`.
    said = [piece for piece in pieces if piece not in model.files.stop_tokens]
    questions, answers = (st.lists(st.sampled_from(own), max_size=12).map("".join) for own in (pieces, said))

    @settings(max_examples=40, deadline=None, database=None)
    @given(turns=st.lists(st.tuples(questions, answers), min_size=1, max_size=3))
    def check(turns: list[tuple[str, str]]) -> None:
        messages = [m for q, a in turns for m in (user(MARKER + q), assistant("answer" + a))]
        try:
            documents = model.documents(messages)
        except MaskError as error:
            if error.code not in {*REFUSALS, "lossy-tokenizer", "stop-not-one-token"}:
                raise
            return
        exact.append(len(documents))
        trained = [message for document in documents for message, _, _ in runs(document)]
        assert sorted(trained) == list(range(1, len(messages), 2))
        for document in documents:
            for message, start, _ in runs(document):
                assert document.ids[:start].tolist() in model.prompts(messages[:message], None)
            assert MARKER not in text_of(model, document, TRAINED_KINDS)

    check()
    assert len(exact) >= 20, "half of the conversations are exact at least"
    for stop in model.files.stop_tokens:
        with pytest.raises(MaskError) as caught:
            model.documents([user("q"), assistant(f"yes{stop}and no")])
        assert caught.value.code in {"early-stop", *REFUSALS}


@pytest.mark.slow
@pytest.mark.corpus
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [*WITH_TEMPLATE, "smollm2-135m-instruct"])
def test_hostile_conversations_keep_the_contract_on_every_tokenizer_a11_c5_m4(corpus: Path, name: str) -> None:
    check_hostile(model_at(corpus / "models" / name))


@pytest.mark.slow
@pytest.mark.corpus
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["gpt-2", "falcon"])
def test_so_they_do_on_bare_tokenizers_with_a_template_of_ours_a11_c5_m4(
    corpus: Path, tmp_path: Path, name: str
) -> None:
    place = Path(shutil.copytree(corpus / "models" / name, tmp_path / "model"))
    (place / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    check_hostile(Model(place))
