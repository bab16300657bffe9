"""Leakage: the index gives what comparing every pair gives."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sftprep.stages.leakage import Hashes, build_index, contained, ngram_length, similar
from sftprep.stages.words import ngram_hashes, word_hashes, words

SETS = st.lists(st.lists(st.integers(1, 30), max_size=25), max_size=8)


def hashes(values: list[int]) -> Hashes:
    return np.array(values, dtype=np.uint64)


@given(SETS, st.lists(st.integers(1, 30), max_size=25), st.sampled_from([0.7, 0.8, 0.95, 1.0]))
def test_similar_finds_exactly_the_sets_that_brute_force_finds(
    held_out: list[list[int]], asked: list[int], threshold: float
) -> None:
    index = build_index([hashes(own) for own in held_out])
    found = {(match.owner, round(match.score, 9)) for match in similar(index, hashes(asked), threshold=threshold)}
    expected = set()
    for owner, own in enumerate(held_out):
        union = set(own) | set(asked)
        score = len(set(own) & set(asked)) / len(union) if union else 0.0
        if score >= threshold and asked:
            expected.add((owner, round(score, 9)))
    assert found == expected


@given(SETS, st.lists(st.integers(1, 30), max_size=25))
def test_contained_gives_the_share_of_each_held_out_set(held_out: list[list[int]], asked: list[int]) -> None:
    index = build_index([hashes(own) for own in held_out])
    found = {match.owner: match.score for match in contained(index, hashes(asked))}
    shares = {i: len(set(own) & set(asked)) / len(set(own)) for i, own in enumerate(held_out) if own}
    assert found == {owner: share for owner, share in shares.items() if share}


def test_what_many_held_out_texts_share_is_no_evidence() -> None:
    sets = [hashes([1, 100 + i]) for i in range(12)]
    index = build_index(sets, common_after=10)
    assert contained(index, hashes([1])) == []
    assert [(m.owner, m.score) for m in contained(index, hashes([1, 105]))] == [(5, 1.0)]


def test_the_ngram_length_is_the_fifth_percentile_between_8_and_13() -> None:
    assert ngram_length([40] * 100) == 13
    assert ngram_length([3] * 100) == 8
    assert ngram_length([10] * 6 + [50] * 94) == 10
    assert ngram_length([]) == 13


@given(st.lists(st.sampled_from(["tide", "at", "six", "quay"]), max_size=12), st.integers(1, 5))
def test_ngram_hashes_tell_runs_apart_and_nothing_else(tokens: list[str], n: int) -> None:
    own = ngram_hashes(word_hashes(tokens), n=n).tolist()
    runs = [tuple(tokens[i : i + n]) for i in range(max(len(tokens) - n + 1, min(1, len(tokens))))]
    assert len(own) == len(runs)
    assert [a == b for a in own for b in own] == [a == b for a in runs for b in runs]


def test_words_ignore_case_punctuation_and_width() -> None:
    assert words("The tide, at SIX!") == words("ＴＨＥ tide -- at six") == ["the", "tide", "at", "six"]
    assert words("潮水六点") == ["潮", "水", "六", "点"]
    assert words("don't 3.5") == ["don't", "3", "5"]


def test_hashes_are_the_same_on_every_machine() -> None:
    assert ngram_hashes(word_hashes(words("the tide comes in")), n=3).tolist() == GOLDEN


GOLDEN = [9842185098081646770, 116841680207489452]
