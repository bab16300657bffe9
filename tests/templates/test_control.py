"""Control tokens that somebody typed are found, quickly or slowly."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftprep.data import Conversation, RowAddress
from sftprep.templates.control import TokenSearch, may_hold_tokens

TOKENS = ("<|im_end|>", "<｜a｜>", "[INST]", "</s>")
TEXTS = st.lists(
    st.sampled_from(["<|im_", "end|>", *TOKENS, "<｜", "a｜>", "</", "s>", '"', "\\", "\n", "é", "x", "\ud800"]),
    max_size=4,
).map("".join)
JSON = st.recursive(
    st.one_of(TEXTS, st.integers(), st.none()), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)
)


@given(
    TEXTS | st.lists(TEXTS.map(lambda text: {"text": text})), st.dictionaries(TEXTS, JSON), st.none() | st.lists(JSON)
)
def test_nothing_that_is_typed_is_missed_quickly(
    content: str | list[Any], more: dict[str, Any], tools: list[Any] | None
) -> None:
    call = {"function": {"name": "f", "arguments": json.dumps(more).replace("<", "\\u003c").replace("/", "\\/")}}
    messages = [{**more, "content": content}, {"content": "", "tool_calls": [call]}]
    conversation = Conversation(RowAddress("chats", 1), messages, [1.0, 1.0], tools=tools)
    pattern = re.compile("|".join(map(re.escape, TOKENS)))
    if TokenSearch(TOKENS).clears(conversation):
        assert not may_hold_tokens(conversation, pattern)


@pytest.mark.parametrize("token", ['<"end">', "a\\b", "<\n>"])
def test_a_token_that_json_writes_otherwise_is_never_cleared(token: str) -> None:
    messages = [{"role": "user", "content": f"say {token}"}]
    assert not TokenSearch([token]).clears(Conversation(RowAddress("chats", 1), messages, [1.0]))


def test_usual_texts_are_cleared() -> None:
    messages = [{"role": "user", "content": 'say "end|>"'}]
    assert TokenSearch(TOKENS).clears(Conversation(RowAddress("chats", 1), messages, [1.0]))


@given(
    st.lists(TEXTS.map(lambda text: text.replace("\ud800", "")), max_size=5),
    st.sampled_from([TOKENS, ("<\n>", "\n>x")]),
)
def test_texts_that_are_searched_at_once_are_named_where_one_holds_a_token(
    texts: list[str], tokens: tuple[str, ...]
) -> None:
    texts = [text.replace("end|>", "<\n>x\n") for text in texts] if tokens is not TOKENS else texts
    holding = TokenSearch(tokens).holding([text.encode() for text in texts])
    assert holding >= {number for number, text in enumerate(texts) if any(token in text for token in tokens)}
    if tokens is TOKENS:
        assert holding == {number for number, text in enumerate(texts) if any(token in text for token in tokens)}


def test_what_a_border_hides_is_named_too() -> None:
    assert TokenSearch(["a\nb", "bc"]).holding([b"x", b"a", b"bc", b"y"]) == {1, 2}


def test_tokens_that_begin_alike_are_all_found() -> None:
    tokens = [f"<|reserved_{number}|>" for number in range(300)]
    texts = [f"say {token}".encode() for token in tokens]
    assert TokenSearch(tokens).holding([b"<|reserved_|>", *texts, b"<|reserved_300|>"]) == set(range(1, 301))
