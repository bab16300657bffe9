"""Texts of a conversation, and how varied texts are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftprep.data import Conversation, Json, RowAddress
from sftprep.stages.answer_shape import is_outlier, log_length_spread
from sftprep.stages.dialogue import RowText, row_text
from sftprep.stages.diversity import DistinctTally, Group, edge_keys, largest_groups, mask_variables, sequence_key
from sftprep.stages.words import word_hashes, words


def texts_of(*messages: Mapping[str, Json], weights: list[float] | None = None) -> RowText:
    return row_text(Conversation(RowAddress("f", 1), messages, weights or [1.0] * len(messages)))


def test_texts_hold_prompts_responses_and_calls_but_no_system_message() -> None:
    call = {"type": "function", "function": {"name": "tide", "arguments": {"day": 3}}}
    row = texts_of(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "When is high tide?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "06:12"},
        {"role": "assistant", "content": "At 6:12."},
    )
    assert row.prompts == "When is high tide?"
    assert "tide" in row.responses
    assert row.responses.endswith("At 6:12.")
    assert "Be brief" not in row.conversation
    assert "06:12" in row.conversation
    (answer,) = row.answers
    assert (answer.message, answer.text, answer.prompt, answer.tool_results) == (
        4,
        "At 6:12.",
        "When is high tide?",
        "06:12",
    )
    assert answer.context == "Be brief.\nWhen is high tide?\n06:12"


def test_a_turn_of_weight_zero_is_no_answer() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    assert [a.message for a in texts_of(*messages, weights=[1, 0, 1, 1]).answers] == [3]


def test_distinct_ngrams_are_exact_while_few_and_close_when_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 2**63, 40_000).astype(np.uint64)
    tally = DistinctTally(1)
    for part in np.split(np.concatenate([values, values]), 80):
        tally.add(part)
    assert (tally.total, tally.distinct) == (80_000, 40_000)
    monkeypatch.setattr("sftprep.stages.diversity._SAMPLE", 4_000)
    sampled = DistinctTally(1)
    for part in np.split(np.concatenate([values, values]), 80):
        sampled.add(part)
    assert sampled.total == 80_000
    assert abs(sampled.distinct - 40_000) < 2_500


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(2, 4))
def test_groups_are_what_a_counter_counts(keys: list[int], at_least: int) -> None:
    grouped, groups = largest_groups(np.array(keys, dtype=np.uint64), at_least=at_least, count=3)
    counts = Counter(key for key in keys if key)
    assert grouped == sum(count for count in counts.values() if count >= at_least)
    expected = sorted((count for count in counts.values() if count >= at_least), reverse=True)[:3]
    assert [group.size for group in groups] == expected
    for group in groups:
        places = [place for place, key in enumerate(keys) if key == keys[group.first]]
        assert group == Group(len(places), places[0], places[-1])


def test_prompts_of_one_template_have_one_key() -> None:
    filled = ['Tell Anna about "rain" in 12 words.', 'Tell Boris Petrov about "snow" in 300 words.']
    keys = {sequence_key(word_hashes(words(mask_variables(text)))) for text in filled}
    assert len(keys) == 1
    other = sequence_key(word_hashes(words(mask_variables("Tell Anna of rain in 12 words."))))
    assert other not in keys
    assert sequence_key([]) == 0


def test_edges_are_shared_by_prompts_with_one_frame() -> None:
    frame = "please read the note below and answer in one short line", "answer now and do not explain your choice"
    first, second = (edge_keys(word_hashes(words(f"{frame[0]} {middle} {frame[1]}"))) for middle in ("a", "b c"))
    assert first == second
    assert 0 not in first
    assert edge_keys(word_hashes(words("too short"))) == (0, 0)


def test_only_lengths_far_from_the_median_are_outliers() -> None:
    lengths = np.array([90, 100, 110, 95, 105, 100, 5, 9000])
    median, spread = log_length_spread(lengths)
    outliers = [int(n) for n in lengths if is_outlier(int(n), median=median, spread=spread, deviations=4)]
    assert outliers == [5, 9000]
