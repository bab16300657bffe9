"""Numbers about lengths: what padding wastes, what a row length drops."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftprep.stages.lengths import LengthCounts, drops, quantiles, waste

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=60).map(np.array)


def test_documents_of_250_tokens_padded_to_2048_waste_88_percent() -> None:
    # The example of the literature (F6, G1): mean 250 of 2,048.
    lengths = np.array([150, 250, 350] * 100)
    found = waste(lengths, max_length=2048, num_packs=37)
    assert round(found.padding_to_max_length, 2) == 0.88
    assert found.padding_to_longest == pytest.approx(1 - 250 / 350)
    assert found.packing == pytest.approx(1 - 75_000 / (37 * 2048))
    assert found.packing < 0.02


def test_quantiles_are_lengths_that_occur() -> None:
    found = quantiles(np.arange(1, 101))
    assert (found.p50, found.p90, found.p99, found.max, found.mean) == (50, 90, 99, 100, 50.5)


def test_a_row_length_drops_the_conversations_whose_longest_document_is_longer() -> None:
    longest, num_tokens = np.array([100, 600, 3000]), np.array([100, 900, 3000])
    found = list(drops(longest, num_tokens=num_tokens))
    assert [(d.max_length, d.num_conversations, d.num_tokens) for d in found] == [
        (512, 2, 3900),
        (1024, 1, 3000),
        (2048, 1, 3000),
        (4096, 0, 0),
    ]
    assert found[0].conversation_share == pytest.approx(2 / 3)
    assert found[0].token_share == pytest.approx(3900 / 4000)


@given(LENGTHS)
def test_a_longer_row_never_drops_more(lengths: np.ndarray) -> None:
    counts = [drop.num_conversations for drop in drops(lengths, num_tokens=lengths)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0
    assert counts.count(0) == 1


@given(parts=st.lists(st.lists(st.integers(0, 60), max_size=50), min_size=1, max_size=5).filter(any))
def test_counted_lengths_have_the_quantiles_of_listed_ones_g1(parts: list[list[int]]) -> None:
    counted = LengthCounts()
    for part in parts:
        counted.add(np.array(part, dtype=np.int64))
    listed = np.array([length for part in parts for length in part])
    assert counted.total == len(listed)
    assert astuple(counted.quantiles()) == pytest.approx(astuple(quantiles(listed)))
