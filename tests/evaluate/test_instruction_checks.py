"""Instructions: each kind that IFEval has, on texts that follow it, nearly follow it, and do not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from sftprep.evaluate.answer import Answer, Score
from sftprep.evaluate.instruction_checks import followed, num_sentences
from sftprep.evaluate.score import score
from sftprep.evaluate.scorer_specs import Instruction, ScorerSpec

SPEC: TypeAdapter[Any] = TypeAdapter(ScorerSpec)
GOOD = "Low tide is at six. Boats stay in.\n\n- One\n- Two"


def scored(checks: list[dict[str, Any]], text: str) -> Score:
    return score(SPEC.validate_python({"kind": "instructions", "checks": checks}), Answer(text, 9, True))


CHECKS = [
    ("min-words", 5, GOOD, "few words here"),
    ("max-words", 12, GOOD, "a " * 13),
    ("min-sentences", 2, "One. Two.", "One of 2.5 metres."),
    ("max-sentences", 1, "One of 2.5 metres.", "One. Two."),
    ("num-paragraphs", 2, GOOD, "One\nstill one"),
    ("num-starred-parts", 2, "One\n***\nTwo", "One\n***\n***\nTwo"),
    ("num-starred-parts", 2, "***\nOne\n***\nTwo", "One two"),
    ("num-bullets", 2, GOOD, "- One"),
    ("num-bullets", 2, "* One\n* Two\n**bold**", "1. One\n2. Two"),
    ("min-placeholders", 2, "Dear [name], at [place].", "Dear [name],"),
    ("min-highlights", 2, "*Low* and **high**.", "*Low* and high * 2."),
    ("min-capital-words", 2, "LOW tide, HIGH tide", "LOW tide, High tide"),
    ("max-capital-words", 1, "LOW tide", "LOW TIDE"),
    ("keywords", ["TIDE", "boats"], GOOD, "tides and boats"),
    ("forbidden-words", ["storm", "gale"], GOOD, "A gale."),
    ("one-of", ["My answer is yes.", "My answer is no."], "My answer is no.", "Yes."),
    ("starts-with", "Low", GOOD, "The Low"),
    ("starts-with", "when is low tide?", "When is low tide? At six.", "At six."),
    ("ends-with", "Two", GOOD, "Two."),
    ("ends-with", "anything else?", '"Is there ANYTHING else?"', "Anything else? No."),
    ("postscript", "P.S.", "At six.\n\nP.S. Bring a coat.", "At six. No p s."),
    ("title", "", "<<Of tides>>\nAt six.", "<< >> At six."),
    ("quoted", "", '"At six."', '"At" six.'),
    ("two-answers", "", "At six.\n******\nBy six.", "At six.\n******\nAt six."),
    ("all-lowercase", "", "low tide", "Low tide"),
    ("all-uppercase", "", "LOW", "LOw"),
    ("all-uppercase", "", "LOW AT 6", "6"),
    ("no-commas", "", "six boats", "six, boats"),
    ("is-json", "", '{"a": 1}', 'Here: {"a": 1}'),
    ("is-json", "", '```json\n{"a": 1}\n```', '```json\n{"a": 1\n```'),
    ("language", "de", "Der Hafen ist heute wegen des Sturms geschlossen.", "The harbour is closed today."),
]


@pytest.mark.parametrize(("check", "value", "good", "bad"), CHECKS, ids=[f"{c[0]}-{i}" for i, c in enumerate(CHECKS)])
def test_an_instruction_is_followed_or_not(check: str, value: Any, good: str, bad: str) -> None:
    checks = [{"check": check, "value": value}]
    assert scored(checks, good).passed
    assert not scored(checks, bad).passed
    assert not scored(checks, " ").passed


COUNTED = [
    ("keyword-at-least", "tide", 2, "Low tide, high TIDE.", "Low tides, high tide."),
    ("keyword-at-most", "low tide", 1, "Low tide, high tide.", "Low tide and low tide."),
    ("letter-at-least", "t", 3, "Tall tent.", "A tent."),
    ("letter-at-most", "e", 1, "A tent.", "Sleet."),
    ("sections", "Section", 2, "Section 1\nlow\nSection 2\nhigh", "Section 1\nlow and a section"),
    ("paragraph-starts-with", "boats", 2, "Low tide.\n\nBoats, stay in.", "Boats stay.\n\nLow tide."),
]


@pytest.mark.parametrize(("check", "value", "number", "good", "bad"), COUNTED, ids=[c[0] for c in COUNTED])
def test_an_instruction_with_a_number_is_followed_or_not(
    check: str, value: str, number: int, good: str, bad: str
) -> None:
    checks = [{"check": check, "value": value, "number": number}]
    assert scored(checks, good).passed
    assert not scored(checks, bad).passed
    assert not scored(checks, " ").passed


@pytest.mark.parametrize(
    "check",
    [
        {"check": "max-words"},
        {"check": "keywords", "value": "one"},
        {"check": "starts-with", "value": ""},
        {"check": "keyword-at-least", "value": "one"},
        {"check": "sections", "number": 2},
        {"check": "title", "number": 2},
    ],
)
def test_an_instruction_that_cannot_be_meant_is_refused(check: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"needs a|takes no"):
        scored([check], "x")


def test_a_number_without_end_is_no_json() -> None:
    assert followed(Instruction(check="is-json"), "7" * 300)
    assert not followed(Instruction(check="is-json"), "7" * 5000)


def test_half_of_the_instructions_is_half_the_value_and_no_pass() -> None:
    found = scored([{"check": "max-words", "value": 3}, {"check": "no-commas"}], "one, two")
    assert (found.value, found.passed, found.note) == (0.5, False, "not followed: no-commas")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1. Cast off\n2. Row 1.5 miles. Rest!", 2),
        ("Mr. Berg sails. He is old", 2),
        ("J. R. R. Tolkien wrote it. The U.S.A. is big, e.g. in the west.", 2),
        ("Really?! Yes... No.", 3),
        ("船到了。我们走吧！", 2),
        ("...", 0),
    ],
)
def test_sentences_are_counted_as_a_person_does(text: str, count: int) -> None:
    assert num_sentences(text) == count
