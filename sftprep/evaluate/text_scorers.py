"""Scorers that compare an answer's text with an expected one."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from typing import Final

from sftprep.evaluate.answer import Answer, Score, verdict
from sftprep.evaluate.scorer_specs import Choice, Exact, Normalised, Numeric, Regex, TokenF1

_ARTICLE: Final = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
# A hyphen behind a word, a digit or a bracket joins or subtracts; it is no sign: "10-12", "2024-05-01".
_SIGN: Final = r"(?:(?<![\w.)\]])[-+\u2212])?"
_NUMBER: Final = re.compile(
    rf"{_SIGN}\$?(?:(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|(?<!\d)\.\d+)"
)
_NUMBER_SIGNS: Final = str.maketrans({",": None, "$": None, "\u2212": "-"})
_SHOWN: Final = 60


def normalised(text: str) -> str:
    """SQuAD's normalisation, in its order: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(spec: Exact, answer: Answer) -> Score:
    """Equal to an expected text."""
    return verdict(answer.text.strip() in {text.strip() for text in spec.expected}, f"not {_shown(spec.expected[0])}")


def normalised_match(spec: Normalised, answer: Answer) -> Score:
    """Equal to an expected text, both normalised."""
    found = normalised(answer.text)
    return verdict(found in set(map(normalised, spec.expected)), f"not {_shown(spec.expected[0])}")


def f1(prediction: str, expected: str) -> float:
    """Harmonic mean of precision and recall over normalised words, counted with repetition (SQuAD's definition).

    Where either has no words, 1 if neither has, else 0.
    """
    found, wanted = normalised(prediction).split(), normalised(expected).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


def token_f1(spec: TokenF1, answer: Answer) -> Score:
    """The best F1 over the expected texts."""
    value = max(f1(answer.text, text) for text in spec.expected)
    return Score(value, value >= spec.passes_at, "" if value >= spec.passes_at else f"F1 {value:.2f}")


def chosen(text: str, choices: dict[str, str]) -> str | None:
    """The label that an answer chooses: at its start, after "answer is", or the only label or text that it names."""
    labels = "|".join(re.escape(label) for label in sorted(choices, key=len, reverse=True))
    for pattern in (
        rf"\A\W*({labels})(?=$|[\s).:,\]*])(?! \w)",
        rf"(?i:answer|choice|option)\s*(?i:is|:)?\s*\W*\b({labels})\b",
    ):
        found = re.search(pattern, text)
        if found:
            return found[1]
    words = f" {normalised(text)} "
    told = {label for label, choice in choices.items() if f" {normalised(choice)} " in words}
    if not told:
        told = {label for label in choices if re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text)}
    return told.pop() if len(told) == 1 else None


def choice(spec: Choice, answer: Answer) -> Score:
    """The chosen label is the expected one; an answer that chooses none, or several, is wrong."""
    found = chosen(answer.text, spec.choices)
    return verdict(found == spec.expected, f"chose {found or 'nothing'}, not {spec.expected}")


def last_number(text: str) -> float | None:
    """The last number of a text, thousands separators and dollar signs dropped."""
    found = _NUMBER.findall(text)
    return float(found[-1].translate(_NUMBER_SIGNS)) if found else None


def numeric(spec: Numeric, answer: Answer) -> Score:
    """The last number is the expected one."""
    found = last_number(answer.text)
    near = found is not None and math.isclose(
        found, spec.expected, rel_tol=spec.tolerance, abs_tol=min(spec.tolerance, 1.0)
    )
    return verdict(near, f"{'no number' if found is None else f'{found:g}'}, not {spec.expected:g}")


def regex(spec: Regex, answer: Answer) -> Score:
    """The pattern is there, or is not."""
    flags = re.IGNORECASE if spec.ignore_case else 0
    found = re.search(spec.pattern, answer.text, flags | re.MULTILINE) is not None
    return verdict(found != spec.absent, f"{'holds' if spec.absent else 'lacks'} {_shown(spec.pattern)}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
