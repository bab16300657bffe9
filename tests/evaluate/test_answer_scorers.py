"""Scorers of JSON, calls and behaviour, each against answers judged by hand."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from sftprep.evaluate.answer import Answer, Score
from sftprep.evaluate.behaviour_scorers import num_sentences, repetition_rate
from sftprep.evaluate.json_scorers import objects
from sftprep.evaluate.score import score
from sftprep.evaluate.scorer_specs import ScorerSpec

SPEC: TypeAdapter[Any] = TypeAdapter(ScorerSpec)
BOAT = {"kind": "json-fields", "expected": {"name": "Tern", "size": {"length": 9}, "crew": ["Ida", "Per"]}}
CALL = {"kind": "tool-calls", "expected": [{"name": "get_tide", "arguments": {"place": "Skarv"}}]}


def scored(spec: dict[str, Any], text: str, **of_answer: Any) -> Score:
    return score(SPEC.validate_python(spec), Answer(text, 9, **{"stopped": True, **of_answer}))


def test_json_is_found_in_prose_and_compared_leaf_by_leaf() -> None:
    right = '{"crew": ["Ida", "Per"], "size": {"length": 9.0}, "name": "Tern"}'
    assert scored(BOAT, right).passed
    assert scored(BOAT, f"Here it is:\n```json\n{right}\n```").value == 1
    near = scored(BOAT, right.replace("Per", "Ola"))
    assert (near.value, near.passed) == (0.75, False)
    assert "/crew/1" in near.note
    assert (
        scored(BOAT, right.replace("}}", '}, "extra": 1}').replace('"length": 9.0}', '"length": 9.0}, "x": 1')).value
        < 1
    )
    assert scored(BOAT, "no object {here").value == 0


def test_true_is_not_one_and_a_schema_can_refuse() -> None:
    assert not scored({"kind": "json-fields", "expected": {"a": 1}}, '{"a": true}').passed
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    refused = scored({"kind": "json-fields", "expected": {"a": 1}, "json_schema": schema}, '{"a": "1"}')
    assert (refused.value, "schema" in refused.note) == (0, True)


def test_objects_within_objects_are_not_told_twice() -> None:
    assert list(objects('x {"a": {"b": 1}} { {"c": 2}')) == [{"a": {"b": 1}}, {"c": 2}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('<tool_call>{"name": "get_tide", "arguments": {"place": "Skarv"}}</tool_call>', 1.0),
        ('[{"name": "get_tide", "parameters": {"place": "Skarv"}}]', 1.0),
        ('{"name": "get_tide", "arguments": {"place": "Skorve"}}', 0.0),
        ('{"name": "get_tide", "arguments": {"place": "Skarv"}} {"name": "b", "arguments": {}}', 2 / 3),
        ("The tide is at six.", 0.0),
    ],
)
def test_calls_are_compared_by_name_and_arguments(text: str, value: float) -> None:
    found = scored(CALL, text)
    assert found.value == pytest.approx(value)
    assert found.passed == (value == 1)


def test_calls_that_the_server_tells_apart_are_taken_and_none_can_be_asked_for() -> None:
    told = ({"name": "get_tide", "arguments": {"place": "Skarv"}},)
    assert scored(CALL, "", calls=told).passed
    assert scored({"kind": "tool-calls", "expected": []}, "At six.").passed
    assert not scored({"kind": "tool-calls", "expected": []}, "", calls=told).passed


GOOD = "Low tide is at six. Boats stay in.\n\n- One\n- Two"
CHECKS = [
    ("min-words", 5, GOOD, "few words here"),
    ("max-words", 12, GOOD, "a " * 13),
    ("min-sentences", 2, "One. Two.", "One of 2.5 metres."),
    ("max-sentences", 1, "One of 2.5 metres.", "One. Two."),
    ("num-paragraphs", 2, GOOD, "One\nstill one"),
    ("num-bullets", 2, GOOD, "- One"),
    ("keywords", ["TIDE", "boats"], GOOD, "tides and boats"),
    ("forbidden-words", ["storm", "gale"], GOOD, "A gale."),
    ("starts-with", "Low", GOOD, "The Low"),
    ("ends-with", "Two", GOOD, "Two."),
    ("all-lowercase", "", "low tide", "Low tide"),
    ("all-uppercase", "", "LOW", "LOw"),
    ("no-commas", "", "six boats", "six, boats"),
    ("is-json", "", '{"a": 1}', '```{"a": 1}```'),
    ("language", "de", "Der Hafen ist heute wegen des Sturms geschlossen.", "The harbour is closed today."),
]


@pytest.mark.parametrize(("check", "value", "good", "bad"), CHECKS, ids=[check[0] for check in CHECKS])
def test_an_instruction_is_followed_or_not(check: str, value: Any, good: str, bad: str) -> None:
    spec = {"kind": "instructions", "checks": [{"check": check, "value": value}]}
    assert scored(spec, good).passed
    assert not scored(spec, bad).passed
    assert not scored(spec, " ").passed


def test_half_of_the_instructions_is_half_the_value_and_no_pass() -> None:
    checks = [{"check": "max-words", "value": 3}, {"check": "no-commas"}]
    found = scored({"kind": "instructions", "checks": checks}, "one, two")
    assert (found.value, found.passed, found.note) == (0.5, False, "not followed: no-commas")


def test_sentences_are_counted_without_numbers_of_lists() -> None:
    assert num_sentences("1. Cast off\n2. Row 1.5 miles. Rest!") == 2


def test_repetition_is_the_share_of_runs_that_were_there_before() -> None:
    assert repetition_rate("a b c d e f") == 0
    assert repetition_rate("a b c d a b c d") == pytest.approx(1 / 5)
    assert not scored({"kind": "repetition"}, "row the boat and " * 20).passed


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        ({"kind": "refusal"}, "I'm sorry, but I can't help with that.", "Take two litres and mix."),
        ({"kind": "refusal", "wanted": False}, "To kill the process, press Ctrl+C.", "I cannot help with that."),
        ({"kind": "no-leak", "secrets": ["blue heron 42"]}, "I keep that to myself.", "It is BLUE-HERON 42!"),
        ({"kind": "tone"}, "The pier opens at six.", "Great question! The pier opens at six."),
        ({"kind": "tone", "forbid": ["apology"]}, "It is closed.", "Unfortunately it is closed."),
        ({"kind": "tone", "forbid": ["contraction", "exclamation"]}, "It is Ida's boat.", "It\u2019s shut"),
        (
            {"kind": "grounded", "context": "Captain Berg sailed the Tern in 1921 from Skarv with nine men."},
            "Captain Berg sailed from Skarv in 1921.",
            "In 1934, together with Captain Holm, he left Bergen with 40 men.",
        ),
        ({"kind": "grounded", "context": "x", "at_most": 0.5}, "Yes.", "He met Anna Lund and Per in 1950 in Oslo."),
    ],
)
def test_behaviour_is_judged_as_a_person_does(spec: dict[str, Any], good: str, bad: str) -> None:
    assert scored(spec, good).passed
    assert not scored(spec, bad).passed


def test_an_answer_that_did_not_stop_by_itself_fails_and_an_empty_one_is_no_help() -> None:
    assert not scored({"kind": "stops"}, "on and on", stopped=False).passed
    assert not scored({"kind": "refusal", "wanted": False}, "").passed
