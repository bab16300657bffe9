"""Near duplicates: every pair at the threshold is found, on made and on real rows, against brute force."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.errors import UsageError
from sftprep.stages import near_duplicates
from sftprep.stages.near_duplicates import SHINGLE_WORDS, Clusters, Hashes, find_clusters, signatures
from sftprep.stages.words import ngram_hashes, text_digest, word_hashes, words

THRESHOLD = 0.8


def shingles_of(texts: Sequence[str]) -> list[Hashes]:
    return [ngram_hashes(word_hashes(words(text)), n=SHINGLE_WORDS) for text in texts]


def clusters_of(texts: Sequence[str], *, threshold: float = THRESHOLD) -> Clusters:
    shingles = shingles_of(texts)
    digests = np.array([text_digest(text) for text in texts], dtype=np.uint64)
    present = np.array([len(own) > 0 for own in shingles], dtype=np.bool_)
    return find_clusters(signatures(shingles), digests=digests, present=present, threshold=threshold)


def similar_pairs(texts: Sequence[str], *, threshold: float) -> Iterator[tuple[int, int]]:
    """Every pair whose Jaccard similarity reaches the threshold: the plain way, over shared shingles."""
    holders: defaultdict[int, list[int]] = defaultdict(list)
    sets = [set(own.tolist()) for own in shingles_of(texts)]
    for later, own in enumerate(sets):
        shared: Counter[int] = Counter()
        for shingle in own:
            shared.update(holders[shingle])
            holders[shingle].append(later)
        for earlier, count in shared.items():
            if count / (len(own) + len(sets[earlier]) - count) >= threshold:
                yield earlier, later


def test_equal_and_nearly_equal_texts_are_joined_and_others_are_not() -> None:
    base = " ".join(f"word{i}" for i in range(60))
    texts = [base, f"{base} more", "quite another thing said here", base.upper(), base, "", "", "ok"]
    found = clusters_of(texts)
    assert found.labels.tolist() == [0, 0, 2, 0, 0, 5, 6, 7]
    assert found.exact.tolist() == [False, False, False, False, True, False, False, False]
    assert found.repeated.sum() == 3


def test_nothing_is_a_cluster_of_nothing() -> None:
    assert clusters_of([]).labels.tolist() == []
    assert clusters_of(["", " "]).labels.tolist() == [0, 1]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 40]), min_size=1, max_size=12), st.integers(0, 999))
def test_a_copy_with_few_edits_is_always_in_its_original_s_cluster(edits: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = [f"w{value}" for value in rng.integers(0, 10_000, 200)]
    texts = [" ".join(base)]
    for count in edits:
        copy = list(base)
        for place in rng.choice(len(copy), size=count, replace=False):
            copy[place] = "changed"
        texts.append(" ".join(copy))
    labels = clusters_of(texts).labels
    for earlier, later in similar_pairs(texts, threshold=0.85):
        assert labels[earlier] == labels[later]


def test_large_buckets_of_one_template_are_joined_through_every_centre() -> None:
    frame = " ".join(f"fixed{i}" for i in range(80))
    rng = np.random.default_rng(7)
    texts = [f"{frame} {' '.join(f'v{v}' for v in rng.integers(0, 9999, 4))}" for _ in range(300)]
    assert len(set(clusters_of(texts).labels.tolist())) == 1


def test_members_of_a_bucket_meet_each_other_and_not_its_first_alone() -> None:
    table = np.zeros((3, 128), np.uint32)
    table[0, 5:] = 1
    # The other two are alike, and share the one band that they share with the first, no other.
    table[1:, 5:] = 2
    table[2, 5:125:5] = 3
    digests, present = np.arange(1, 4, dtype=np.uint64), np.ones(3, np.bool_)
    assert find_clusters(table, digests=digests, present=present, threshold=THRESHOLD).labels.tolist() == [0, 1, 1]


def crowd(count: int, *, share: float, planted: int) -> tuple[np.ndarray, np.ndarray]:
    """Signatures of a crowd, any two of which share `share` squared of their numbers, and pairs that share 0.85."""
    rng = np.random.default_rng(3)
    frame = rng.integers(0, 2**32, 128, dtype=np.uint32)
    table = rng.integers(0, 2**32, (count, 128), dtype=np.uint32)
    table = np.where(rng.random(table.shape) < share, frame, table)
    pairs = rng.permutation(count)[: 2 * planted].reshape(planted, 2)
    kept = rng.random((planted, 128)) < 0.85
    table[pairs[:, 1]] = np.where(kept, table[pairs[:, 0]], table[pairs[:, 1]])
    return table, pairs


@pytest.mark.parametrize("comparisons", [1 << 30, 1 << 15])
def test_pairs_in_a_crowd_are_found_with_as_many_comparisons_as_wanted_and_with_few(
    monkeypatch: pytest.MonkeyPatch, comparisons: int
) -> None:
    monkeypatch.setattr(near_duplicates, "_COMPARISONS", comparisons)
    monkeypatch.setattr(near_duplicates, "_LEAST_WINDOW", 128)
    table, pairs = crowd(4000, share=0.7, planted=300)
    digests, present = np.arange(1, 4001, dtype=np.uint64), np.ones(4000, np.bool_)
    labels = find_clusters(table, digests=digests, present=present, threshold=THRESHOLD).labels
    found = (labels[pairs[:, 0]] == labels[pairs[:, 1]]).mean()
    assert found >= (1.0 if comparisons > 1 << 15 else 0.95)
    # What is joined is alike: nothing else of the crowd is.
    assert len(set(labels.tolist())) >= 3_600


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 9_999), st.sampled_from([0.5, 0.7, 0.9, 0.98]))
def test_texts_of_one_bucket_are_joined_as_all_its_pairs_would_be(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 2**32, (40, 128), dtype=np.uint32)
    table[:, 5:] = np.where(rng.random((40, 123)) < share, table[rng.integers(0, 6, 40), 5:], table[:, 5:])
    table[:, :5] = 7
    digests, present = np.arange(1, 41, dtype=np.uint64), np.ones(40, np.bool_)
    # One band alone: no other may make good what is missed in this bucket.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_BANDS", 1)
        labels = find_clusters(table, digests=digests, present=present, threshold=THRESHOLD).labels
    assert_joined(table, labels)


def test_a_text_meets_later_ones_that_an_earlier_text_has_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_BANDS", 1)
    table = np.random.default_rng(2).integers(0, 2**32, (40, 128), dtype=np.uint32)
    table[:, :5] = 7
    table[30, 5:108] = table[0, 5:108]
    table[1, :88], table[1, 108:] = table[30, :88], table[30, 108:]
    digests, present = np.arange(1, 41, dtype=np.uint64), np.ones(40, np.bool_)
    labels = find_clusters(table, digests=digests, present=present, threshold=THRESHOLD).labels
    assert np.flatnonzero(labels == 0).tolist() == [0, 1, 30]


def test_every_window_of_a_crowd_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(1).integers(0, 2**32, (400, 128), dtype=np.uint32)
    table[:, :5] = 7
    table[1::2, 5:] = table[::2, 5:]
    table[1::2, 100:] += 1
    for name, value in (("_BANDS", 1), ("_COMPARISONS", 1), ("_LEAST_WINDOW", 40)):
        monkeypatch.setattr(near_duplicates, name, value)
    digests, present = np.arange(1, 401, dtype=np.uint64), np.ones(400, np.bool_)
    labels = find_clusters(table, digests=digests, present=present, threshold=THRESHOLD).labels
    assert_joined(table, labels)


def assert_joined(table: np.ndarray, labels: np.ndarray) -> None:
    """The labels are those of all pairs whose signatures are alike."""
    joined = np.arange(len(table))
    alike = (table[:, None] == table).mean(axis=2) >= THRESHOLD - near_duplicates.SLACK
    for one, other in np.argwhere(alike):
        joined[joined == max(joined[one], joined[other])] = min(joined[one], joined[other])
    assert labels.tolist() == joined.tolist()


def test_labels_do_not_depend_on_the_order_of_arrival() -> None:
    texts = [f"{' '.join(f'a{i}' for i in range(40))} {n % 3}" for n in range(12)] + ["alone here now"]
    forward = clusters_of(texts).labels
    backward = clusters_of(texts[::-1]).labels[::-1]
    assert [(a == b) for a in forward for b in forward] == [(a == b) for a in backward for b in backward]


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(UsageError) as caught:
        signatures(shingles_of(["a b c"]))
    assert caught.value.code == "missing-extra"
    assert "sftprep[quality]" in caught.value.hint


def real_texts(path: Path, role: str, *, count: int) -> list[str]:
    data = zstandard.ZstdDecompressor().stream_reader(path.read_bytes(), read_across_frames=True).read()
    rows = [json.loads(line) for line in data.split(b"\n")[:count]]
    return ["\n".join(str(m.get("content") or "") for m in row["messages"] if m["role"] == role) for row in rows]


@pytest.mark.corpus
@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize(
    ("name", "count"),
    [("fastchat_dummy_conversation", 500), ("hh_rlhf_harmless_base_test", 2500), ("gpteacher_toolformer", 1500)],
)
def test_recall_on_real_rows_is_at_least_95_percent_of_brute_force(
    corpus: Path, name: str, count: int, role: str
) -> None:
    texts = real_texts(corpus / "chat" / f"{name}.jsonl.zst", role, count=count)
    labels = clusters_of(texts).labels
    pairs = list(similar_pairs(texts, threshold=THRESHOLD))
    found = sum(labels[earlier] == labels[later] for earlier, later in pairs)
    assert len(pairs) > 50
    assert found >= 0.95 * len(pairs), f"{found} of {len(pairs)}"
    # What is joined is alike: a repeated text has one within the estimate's error of the threshold.
    near = {row for pair in similar_pairs(texts, threshold=0.65) for row in pair}
    repeated = np.flatnonzero(labels != np.arange(len(texts)))
    assert len(set(repeated.tolist()) - near) <= 0.01 * len(repeated)
