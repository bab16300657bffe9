"""What a plan asks of a row's texts, asked in groups: the same answers as one question at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.data import Conversation, RowAddress
from sftprep.templates.guarded import Guarded, text_of
from sftprep.templates.shape import BLANK, SAYING, shape_of
from sftprep.templates.symbols import Field, Guard, answer

_WORDS = ("<a>", "a<", "b", "\n", "<")
_ALPHABET = "<>ab \n"
_LSTRIP = (("lstrip", "\n"),)
_JSON = (("json", (False, None, None, False)),)


def _conversation(texts: Sequence[str]) -> Conversation:
    messages: list[Mapping[str, Any]] = [{"role": "user", "content": text} for text in texts]
    return Conversation(RowAddress("f", 1), messages, [1.0] * len(texts))


def _field(message: int, *ops: tuple[str, Any]) -> Field:
    return Field(message, ("content",), ops)


_texts = st.text(_ALPHABET, min_size=1, max_size=8)
_fields = st.builds(
    lambda message, ops: _field(message, *ops), st.integers(0, 2), st.sampled_from([(), _LSTRIP, _JSON])
)
_questions = st.one_of(
    st.tuples(
        st.sampled_from(["__contains__", "startswith", "endswith", "begins", "__eq__"]),
        st.tuples(st.sampled_from(_WORDS)),
    ),
    st.just(("shape", ())),
    st.just(("startswith", (("<a", "b"),))),
    st.just(("startswith", ("a", 1))),
    st.just(("count", ("a",))),
)
_guards = st.lists(st.builds(lambda field, asked: Guard(field, *asked), _fields, _questions), max_size=6)


@settings(max_examples=400)
@given(
    first=st.lists(_texts, min_size=3, max_size=3),
    other=st.lists(_texts, min_size=3, max_size=3),
    written=st.lists(_fields, unique=True, max_size=4),
    guards=_guards,
)
def test_a_row_of_the_shape_is_taken_exactly_where_each_question_has_its_answer(
    first: list[str], other: list[str], written: list[Field], guards: list[Guard]
) -> None:
    made_of, row = _conversation(first), _conversation(other)
    said = {guard: answer(text_of(guard.field, made_of), guard.question, guard.args) for guard in guards}
    guarded = Guarded.of(written, said)
    found = guarded.texts(row)
    if shape_of(made_of.messages) == shape_of(row.messages):
        agrees = all(answer(text_of(g.field, row), g.question, g.args) == known for g, known in said.items())
        assert (found is not None) == agrees
    if found is not None:
        assert list(found[: len(written)]) == [text_of(field, row) for field in written]
    assert _of_chat(guarded, other) == (None if found is None else list(found))


def _of_chat(guarded: Guarded, texts: Sequence[str]) -> list[str] | None:
    found = guarded.of_chat(texts, [text.encode() for text in texts])
    return None if found is None else [text.decode() for text in found]


def test_a_text_of_a_tool_may_be_white_space_where_the_first_one_was_not() -> None:
    field = Field(-1, ("tools", 0), (("strip", None),))
    guarded = Guarded.of((), {Guard(field, "shape"): SAYING})
    row = Conversation(RowAddress("f", 1), [], [], tools=[" "])
    assert guarded.texts(row) is None


def test_white_space_at_the_edges_of_a_blank_text_is_asked_for() -> None:
    guarded = Guarded.of((), {Guard(_field(0, *_LSTRIP), "shape"): BLANK})
    assert guarded.texts(_conversation([" "])) is not None
    assert guarded.texts(_conversation(["\n"])) is None


@pytest.mark.parametrize("question", ["__contains__", "startswith", "begins"])
def test_a_text_without_the_sign_is_asked_where_the_first_one_said_yes(question: str) -> None:
    guarded = Guarded.of((), {Guard(_field(0), question, ("<a",)): True})
    assert guarded.texts(_conversation(["<a b"])) is not None
    assert guarded.texts(_conversation(["b"])) is None


def test_a_text_of_which_nothing_is_left_begins_as_any_word_does() -> None:
    asked = {Guard(_field(0, *_LSTRIP), "begins", ("<a>",)): False}
    guarded = Guarded.of((), asked)
    assert guarded.texts(_conversation([" "])) is not None
    assert guarded.texts(_conversation(["\n"])) is None


def test_a_text_that_ends_before_the_sign_of_a_word_may_begin_as_the_word_does() -> None:
    guarded = Guarded.of((), {Guard(_field(0), "begins", ("a<",)): False})
    assert guarded.texts(_conversation(["b"])) is not None
    assert guarded.texts(_conversation(["a"])) is None


@pytest.mark.parametrize("texts", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_the_texts_of_all_messages_are_taken_by_number(texts: list[str]) -> None:
    written = [_field(len(texts) - 1)]
    assert _of_chat(Guarded.of(written, {}), texts) == texts[-1:]
    assert _of_chat(Guarded.of([_field(0)], {}), texts) == texts[:1]


def test_a_field_that_is_no_text_of_a_message_has_no_column() -> None:
    assert _of_chat(Guarded.of([Field(0, ("reasoning_content",))], {}), ["a"]) is None
    assert _of_chat(Guarded.of([Field(-1, ("tools", 0), _JSON)], {}), ["a"]) is None
