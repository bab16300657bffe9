"""Scorer of answers to a given context: what they claim that the context does not hold."""

from __future__ import annotations

import re
from typing import Final

from sftprep.evaluate.answer import Answer, Score, verdict
from sftprep.evaluate.scorer_specs import Grounded
from sftprep.stages.groundedness import support
from sftprep.stages.words import words

_SENTENCE: Final = re.compile(r"(?<=[.!?。！？])\s+")
# "The text does not say who built it" claims nothing of who did.
_DECLINES: Final = re.compile(
    r"(?:\b(?:not|no|cannot|nothing|nowhere)|n't)\b.{0,50}?\b(?:mention|sa(?:y|id)\b|stated?\b|specif|provid|given?\b"
    r"|t(?:ell|old)\b|contain|includ|indicat|discuss|describ|inform|know|clear|answer|detail|listed|determin)"
    r"|\b(?:unknown|unclear|unspecified|unanswerable)\b",
    re.IGNORECASE,
)


_NUMBER_WORD_LIST: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_WORD_OF: Final = {str(number): word for number, word in enumerate(_NUMBER_WORD_LIST.split())}
_DIGITS_OF: Final = {word: digits for digits, word in _WORD_OF.items()}
_KNOWN: Final = _WORD_OF.keys() | _DIGITS_OF.keys()


def _with_numbers(context: str) -> str:
    """The context and its small numbers again, as digits where it has words and as words where it has digits."""
    own = words(context)
    return " ".join([context, *(_DIGITS_OF.get(word) or _WORD_OF[word] for word in own if word in _KNOWN)])


def unsupported_share(text: str, *, context: str) -> float:
    """The share of an answer's content words, numbers and names that its context lacks; 0 where there is none.

    Sentences that say what the context does not tell are left out.
    """
    claims = " ".join(part for part in _SENTENCE.split(text) if not _DECLINES.search(part.replace("\u2019", "'")))
    found = support(claims, context=_with_numbers(context))
    total = found.num_words + found.num_entities
    held = found.words * found.num_words + found.entities * found.num_entities
    return 1 - held / total if total else 0.0


def grounded(spec: Grounded, answer: Answer) -> Score:
    """The value is the share of what the answer says that its context holds; an answer without a word fails."""
    if not words(answer.text):
        return verdict(passed=False, note="says nothing")
    lacking = unsupported_share(answer.text, context=spec.context)
    return Score(1 - lacking, lacking <= spec.at_most, "" if lacking <= spec.at_most else f"{lacking:.0%} unsupported")
