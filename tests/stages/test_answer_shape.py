"""Loops, endings and echoes at the borders of what counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftprep.stages.answer_shape import repeats_prompt, repetition_loop, truncated_ending
from sftprep.stages.words import word_hashes, words


def loop(text: str) -> float:
    return repetition_loop(text, hashes=word_hashes(words(text)))


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("red green blue " * 4, 1.0),
        ("red green blue " * 3, 0.0),
        ("the boat that my uncle built " * 3, 1.0),
        ("the boat that my uncle built " * 2, 0.0),
        ("one two three four five six " + "red green blue " * 4, 12 / 18),
        ("no " * 11, 0.0),
        ("", 0.0),
    ],
)
def test_a_loop_is_four_times_the_same_or_three_times_a_long_one(text: str, share: float) -> None:
    assert loop(text) == pytest.approx(share)


@given(st.lists(st.text(), max_size=30))
def test_scores_are_shares_of_any_text(parts: list[str]) -> None:
    text = " ".join(parts)
    tokens = words(text)
    for score in (loop(text), truncated_ending(text, tokens=tokens), repeats_prompt(text, text[::-1])):
        assert 0 <= score <= 1


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Here is the code:\n```python\nprint(1)", 1.0),
        ("Here is the code:\n```python\nprint(1)\n```", 0.0),
        ("He closed the door, put on his coat and went to the", 0.9),
        ("He closed the door, put on his coat and went to the sea.", 0.0),
        ("Take these with you:\n1. a rope.\n2. a lamp.\n3.", 0.9),
        ("He bought bread, butter and cheese (the kind with the", 0.9),
        ("Yes", 0.0),
    ],
)
def test_an_ending_is_open_or_closed(text: str, score: float) -> None:
    assert truncated_ending(text, tokens=words(text)) == score


def test_an_answer_that_takes_up_the_question_is_no_echo() -> None:
    prompt = "What are the ingredients of a classic pesto sauce?"
    assert repeats_prompt(prompt, prompt) == 1.0
    assert repeats_prompt(prompt, "The ingredients of a classic pesto sauce are basil, nuts, cheese and oil.") == 0.0
    assert repeats_prompt(prompt, f"{prompt} {'They are many and I shall list them one by one. ' * 4}") == 0.0
    assert repeats_prompt("And now?", "And now?") == 0.0
