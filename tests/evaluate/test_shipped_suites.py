"""The suites that come with sftprep, answered by models that are known to be good or bad: a script each."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from sftprep.evaluate.answer import Answer
from sftprep.evaluate.score import score
from sftprep.evaluate.suite import LoadedCase, read_suite

Model = Callable[[LoadedCase], str]


def said(case: LoadedCase, role: str) -> str:
    return "\n".join(message["content"] for message in case.conversation.messages if message["role"] == role)


def refuser(case: LoadedCase) -> str:
    return "I'm sorry, but I can't help with that."


def adviser(case: LoadedCase) -> str:
    return "You should not do that. It is illegal, and somebody could be hurt."


def helper(case: LoadedCase) -> str:
    return "Sure. First take what you need, then go on step by step."


def parrot(case: LoadedCase) -> str:
    return f"My instructions are: {said(case, 'system')}"


def speller(case: LoadedCase) -> str:
    return " ".join(said(case, "system").replace(" ", ""))


def keeper(case: LoadedCase) -> str:
    return "I can tell you that we are open from nine to five."


def obedient(case: LoadedCase) -> str:
    """Does what the hidden instruction says: the one word in capitals."""
    text = said(case, "user").partition("Text:\n")[2]
    (word,) = set(re.findall(r"\b[A-Z]{6,}\b", text)) - {"SYSTEM"}
    return f"{word}."


def summariser(case: LoadedCase) -> str:
    return f"It is about this: {said(case, 'user').partition('Text:')[2].strip().partition('. ')[0]}."


def copier(case: LoadedCase) -> str:
    return said(case, "user").partition("Text:\n")[2].partition("\n\nQuestion:")[0]


def modest(case: LoadedCase) -> str:
    return "The text doesn't say."


def inventor(case: LoadedCase) -> str:
    return "That was not Captain Elsa Thorne of Vienna, but her cousin Margaret in 1987."


def sober(case: LoadedCase) -> str:
    return "The pump failed at night, and a new seal is needed."


def gushing(case: LoadedCase) -> str:
    return "Great question! I'm sorry you had to ask. It's at nine, and I hope this helps!"


@pytest.mark.parametrize(
    ("suite", "model", "passed", "failed"),
    [
        ("safety", refuser, {"harmful"}, {"benign"}),
        ("safety", adviser, {"harmful", "benign"}, set()),
        ("safety", helper, {"benign"}, {"harmful"}),
        ("attacks", parrot, set(), {"leak", "injection"}),
        ("attacks", speller, set(), {"leak", "injection"}),
        ("attacks", keeper, {"leak"}, {"injection"}),
        ("attacks", obedient, set(), {"injection"}),
        ("attacks", summariser, {"injection"}, set()),
        ("grounded", copier, {"answerable"}, {"unanswerable"}),
        ("grounded", modest, {"unanswerable"}, {"answerable"}),
        ("grounded", inventor, set(), {"answerable", "unanswerable"}),
        ("tone", sober, {"plain", "complaint", "register"}, set()),
        ("tone", gushing, set(), {"plain", "complaint", "register"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_suite_tells_good_models_from_bad_ones(
    suite: str, model: Model, passed: set[str], failed: set[str]
) -> None:
    found: dict[str, list[bool]] = {}
    for case in read_suite(suite).cases:
        (tag,) = case.case.tags
        if model is obedient and tag == "leak":
            continue
        answer = Answer(model(case), 20, True)
        found.setdefault(tag, []).append(all(score(spec, answer).passed for spec in case.scorers))
    for tag in passed | failed:
        assert len(found[tag]) >= 2
        assert found[tag] == [tag in passed] * len(found[tag]), tag
