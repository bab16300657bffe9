"""Each scorer of text against answers judged by hand, and against a slow reference where it computes."""

from __future__ import annotations

import re
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sftprep.evaluate.answer import Answer
from sftprep.evaluate.score import score
from sftprep.evaluate.scorer_specs import ScorerSpec
from sftprep.evaluate.text_scorers import f1, normalised

SPEC: TypeAdapter[Any] = TypeAdapter(ScorerSpec)
CHOICES = {"A": "iron", "B": "copper", "C": "tin", "D": "red gold"}


def passed(spec: dict[str, Any], text: str, *, stopped: bool = True) -> bool:
    return score(SPEC.validate_python(spec), Answer(text, 9, stopped)).passed


@pytest.mark.parametrize(
    ("spec", "text", "wanted"),
    [
        ({"kind": "exact", "expected": ["Berth 9"]}, " Berth 9\n", True),
        ({"kind": "exact", "expected": ["Berth 9"]}, "berth 9", False),
        ({"kind": "normalised", "expected": ["Berth 9"]}, "The berth, 9.", True),
        ({"kind": "normalised", "expected": ["Berth 9"]}, "berth 19", False),
        ({"kind": "token-f1", "expected": ["the old pier"]}, "an old wooden pier", True),
        ({"kind": "token-f1", "expected": ["the old pier"]}, "a new lighthouse", False),
        ({"kind": "choice", "expected": "B", "choices": CHOICES}, "B", True),
        ({"kind": "choice", "expected": "B", "choices": CHOICES}, "(B) copper, not A", True),
        ({"kind": "choice", "expected": "B", "choices": CHOICES}, "The answer is: **B**.", True),
        ({"kind": "choice", "expected": "B", "choices": CHOICES}, "It conducts well because it is copper.", True),
        ({"kind": "choice", "expected": "A", "choices": CHOICES}, "A long time ago, copper was used.", False),
        ({"kind": "choice", "expected": "B", "choices": CHOICES}, "iron or copper", False),
        ({"kind": "choice", "expected": "B", "choices": CHOICES}, "", False),
        ({"kind": "numeric", "expected": 1250}, "5 * 250 = 1,250.", True),
        ({"kind": "numeric", "expected": 1250}, "1,250 less 10 is 1,240", False),
        ({"kind": "numeric", "expected": -0.5}, "x = -.5", True),
        ({"kind": "numeric", "expected": 0}, "none", False),
        ({"kind": "numeric", "expected": 12}, "pages 10-12", True),
        ({"kind": "numeric", "expected": -3}, "It is (-3).", True),
        ({"kind": "numeric", "expected": -1250.5}, "\u2212$1,250.50", True),
        ({"kind": "numeric", "expected": 72}, "She sold 48+24 = <<48+24=72>>72.\n#### 72", True),
        ({"kind": "numeric", "expected": 2345}, "1,2345", True),
        ({"kind": "regex", "pattern": r"^Aye\."}, "Aye. Done.", True),
        ({"kind": "regex", "pattern": "tide", "absent": True}, "High tide", False),
    ],
)
def test_a_scorer_judges_as_a_person_does(spec: dict[str, Any], text: str, wanted: bool) -> None:
    assert passed(spec, text) is wanted


def reference_f1(prediction: str, expected: str) -> float:
    """Word by word, as the definition reads."""

    def plain(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if c not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    found, left = plain(prediction), plain(expected)
    total, shared = len(left), 0
    for word in found:
        if word in left:
            left.remove(word)
            shared += 1
    if not found or not total:
        return float(not found and not total)
    precision, recall = shared / len(found), shared / total
    return 2 * precision * recall / (precision + recall) if shared else 0.0


@given(*[st.lists(st.sampled_from(["the", "tide", "Tide,", "an", "at", "six", "!"]), max_size=8).map(" ".join)] * 2)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(prediction: str, expected: str) -> None:
    assert f1(prediction, expected) == pytest.approx(reference_f1(prediction, expected))


@pytest.mark.parametrize(
    ("prediction", "expected", "value"),
    [
        ("The Normans", "Normans", 1.0),
        ("in the 10th and 11th centuries", "10th and 11th centuries", 8 / 9),
        ("Denmark Iceland Norway", "Denmark, Iceland and Norway", 6 / 7),
        ("the", "", 1.0),
        ("tide", "", 0.0),
        ("tide tide", "tide", 2 / 3),
        ("U.S.", "US", 1.0),
    ],
)
def test_f1_of_these_pairs_is_what_the_definition_gives_by_hand(prediction: str, expected: str, value: float) -> None:
    assert f1(prediction, expected) == pytest.approx(value)


@given(st.text())
def test_normalising_twice_changes_nothing_of_latin_text(text: str) -> None:
    once = normalised(text.encode("ascii", "ignore").decode())
    assert f1(once, text.encode("ascii", "ignore").decode()) == 1.0


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "choice", "expected": "E", "choices": CHOICES},
        {"kind": "regex", "pattern": "("},
        {"kind": "exact", "expected": []},
        {"kind": "no-such"},
        {"kind": "stops", "extra": 1},
    ],
)
def test_a_specification_that_cannot_be_meant_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SPEC.validate_python(spec)
