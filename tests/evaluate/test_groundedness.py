"""The groundedness of answers to a given context, on answers that were labelled before they were measured."""

from __future__ import annotations

import json
from pathlib import Path

from sftprep.evaluate.grounded_scorer import unsupported_share
from sftprep.evaluate.scorer_specs import Grounded
from tests.quality.test_contexts_labelled import CONTEXTS, answers

AT_MOST = Grounded(kind="grounded", context="x").at_most
SHORT = [
    json.loads(line)
    for line in (Path(__file__).parent / "short_answers.jsonl").read_text(encoding="utf-8").splitlines()
]


def test_answers_of_two_sentences_are_told_apart_280_of_280() -> None:
    rows = list(answers())
    wrong = [
        (kind, text)
        for kind, context, text in rows
        if (unsupported_share(text, context=context) <= AT_MOST) != (kind == "supported")
    ]
    assert len(rows) == 280
    assert wrong == []


def test_of_sixty_short_answers_one_is_judged_wrongly() -> None:
    """Right, made up, and "the text does not say": the last claims nothing that the context would have to hold."""
    contexts = [row["context"] for row in CONTEXTS]
    wrong = []
    for row in SHORT:
        (context,) = (text for text in contexts if text.startswith(row["starts"]))
        if (unsupported_share(row["answer"], context=context) <= AT_MOST) != row["grounded"]:
            wrong.append(row["answer"])
    assert len(SHORT) == 60
    assert wrong == ["By five pounds, to 45."]


def test_what_follows_a_sentence_that_declines_is_still_judged() -> None:
    context = "Captain Berg sailed the Tern in 1921 from Skarv with nine men."
    assert unsupported_share("The text does not say. Captain Berg sailed in 1921.", context=context) == 0
    assert unsupported_share("The text does not say. Admiral Holm sailed in 1956.", context=context) > AT_MOST


def test_small_numbers_are_the_same_in_words_and_in_digits() -> None:
    assert unsupported_share("It lasts 6 weeks.", context="In summer it lasts six weeks.") == 0
    assert unsupported_share("It lasts seven weeks.", context="In summer it lasts 7 weeks.") == 0
    assert unsupported_share("It lasts 8 weeks.", context="In summer it lasts six weeks.") > AT_MOST
