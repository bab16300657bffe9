"""Alignment pairs every document once at most, equal ones always, and finds edited ones among many that look alike."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sftprep.stages.align import TokenDocuments, align, first_difference


def of(documents: list[list[int]]) -> TokenDocuments:
    ids = np.array([i for document in documents for i in document], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    return TokenDocuments(ids, ids % 2 == 0, offsets)


DOCUMENTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), max_size=12)


@given(DOCUMENTS, DOCUMENTS)
def test_each_document_is_in_one_place(left: list[list[int]], right: list[list[int]]) -> None:
    found = align(of(left), of(right))
    pairs = [*found.identical, *found.masks_differ, *found.ids_differ]
    assert sorted([a for a, _ in pairs] + found.only_left.tolist()) == list(range(len(left)))
    assert sorted([b for _, b in pairs] + found.only_right.tolist()) == list(range(len(right)))
    assert all(left[a] == right[b] for a, b in found.identical)


@given(DOCUMENTS.flatmap(lambda documents: st.tuples(st.just(documents), st.permutations(documents))))
def test_a_shuffled_copy_is_identical(both: tuple[list[list[int]], list[list[int]]]) -> None:
    documents, shuffled = both
    assert len(align(of(documents), of(shuffled)).identical) == len(documents)


def test_edited_documents_find_their_own_among_many_with_the_same_opening() -> None:
    draw = np.random.default_rng(0)
    opening = draw.integers(0, 100, 30).tolist()
    originals = [opening + draw.integers(0, 1000, 40).tolist() for _ in range(400)]
    edited = [[*document[:29], 7, 7, *document[31:60]] for document in originals]
    order = draw.permutation(len(edited)).tolist()
    found = align(of(originals), of([edited[n] for n in order]))
    assert len(found.ids_differ) == len(originals)
    assert all(order[b] == a for a, b in found.ids_differ)


def test_copies_of_one_document_find_the_copies_of_its_edited_form() -> None:
    """A source of several epochs: more copies than one document is weighed against."""
    draw = np.random.default_rng(0)
    originals = [draw.integers(0, 1000, 40).tolist() for _ in range(3)]
    edited = [[*document[:20], 7, 7, *document[20:]] for document in originals]
    found = align(of(originals * 300), of(edited * 299))
    assert len(found.ids_differ) == 3 * 299
    assert all(a % 3 == b % 3 for a, b in found.ids_differ.tolist())
    assert (len(found.only_left), len(found.only_right)) == (3, 0)


def test_the_end_of_the_shorter_one_is_a_difference() -> None:
    assert first_difference(np.array([1, 2]), np.array([1, 2, 3])) == 2
    assert first_difference(np.array([1, 2]), np.array([1, 3])) == 1
