"""Scorers of how an answer is given: instructions followed, stopping, repeating, refusing, leaking, tone, grounds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sftprep.evaluate.answer import Answer, Score, verdict
from sftprep.evaluate.scorer_specs import (
    Grounded,
    Instruction,
    Instructions,
    NoLeak,
    Refusal,
    Repetition,
    Stops,
    Tone,
)
from sftprep.stages.answer_phrases import refusal as refusal_score
from sftprep.stages.answer_phrases import stock_phrases
from sftprep.stages.groundedness import unsupported
from sftprep.stages.language import load_identifier
from sftprep.stages.words import words

_RUN: Final = 4
_SENTENCE: Final = re.compile(r"[^.!?。！？]*[^\s.!?。！？][^.!?。！？]*(?:[.!?。！？]+|$)")
_BULLET: Final = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+\S", re.MULTILINE)
_PARAGRAPH: Final = re.compile(r"\n\s*\n")
_MARKS: Final[Mapping[str, re.Pattern[str]]] = {
    "apology": re.compile(r"\b(?:sorry|apolog(?:y|ies|i[sz]e)|regret(?:fully)?|unfortunately)\b", re.IGNORECASE),
    "contraction": re.compile(r"\b\w+(?:n't|'(?:re|ve|ll|m|d))\b|\b(?:it|that|what|here|there|let)'s\b", re.IGNORECASE),
    "exclamation": re.compile("[!！]"),
}


def _all_in(text: str, wanted: Sequence[str]) -> bool:
    own = f" {' '.join(words(text))} "
    return all(f" {' '.join(words(word))} " in own for word in wanted)


def _any_in(text: str, wanted: Sequence[str]) -> bool:
    return any(_all_in(text, [word]) for word in wanted)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return False
    return True


def _in_language(text: str, code: str) -> bool:
    return load_identifier()(text)[0] == code


_CHECKS: Final[Mapping[str, Callable[[str, Any], bool]]] = {
    "min-words": lambda text, value: len(words(text)) >= value,
    "max-words": lambda text, value: len(words(text)) <= value,
    "min-sentences": lambda text, value: num_sentences(text) >= value,
    "max-sentences": lambda text, value: num_sentences(text) <= value,
    "num-paragraphs": lambda text, value: len([p for p in _PARAGRAPH.split(text.strip()) if p.strip()]) == value,
    "num-bullets": lambda text, value: len(_BULLET.findall(text)) == value,
    "keywords": _all_in,
    "forbidden-words": lambda text, value: not _any_in(text, value),
    "starts-with": lambda text, value: text.strip().startswith(value),
    "ends-with": lambda text, value: text.strip().endswith(value),
    "all-lowercase": lambda text, value: text == text.lower() and bool(text.strip()),
    "all-uppercase": lambda text, value: text == text.upper() and bool(text.strip()),
    "no-commas": lambda text, value: "," not in text and "，" not in text and bool(text.strip()),
    "is-json": lambda text, value: _is_json(text),
    "language": _in_language,
}


def num_sentences(text: str) -> int:
    """Sentences by their full stops; decimal points and list numbers do not end one."""
    plain = re.sub(r"(?<=\d)\.(?=\d)|(?m:(?<=^\d)\.|(?<=^\d\d)\.)", "", text)
    return len(_SENTENCE.findall(plain))


def followed(check: Instruction, text: str) -> bool:
    """Whether a text follows one instruction. An empty text follows none."""
    return bool(text.strip()) and _CHECKS[check.check](text, check.value)


def instructions(spec: Instructions, answer: Answer) -> Score:
    """The share of instructions that are followed."""
    missed = [check.check for check in spec.checks if not followed(check, answer.text)]
    return Score(1 - len(missed) / len(spec.checks), not missed, f"not followed: {', '.join(missed)}" if missed else "")


def stops(spec: Stops, answer: Answer) -> Score:
    """Ended by a stop token."""
    return verdict(answer.stopped, f"no stop token within {answer.num_tokens} tokens")


def repetition_rate(text: str) -> float:
    """The share of a text's runs of 4 words that stood there before; 0 where it has fewer than 2 runs."""
    own = words(text)
    runs = [tuple(own[i : i + _RUN]) for i in range(len(own) - _RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if len(runs) > 1 else 0.0


def repetition(spec: Repetition, answer: Answer) -> Score:
    """The value is the share of runs that are new."""
    rate = repetition_rate(answer.text)
    return Score(1 - rate, rate <= spec.at_most, "" if rate <= spec.at_most else f"{rate:.0%} is repeated")


def refuses(text: str) -> bool:
    """Whether an answer is a refusal, by its opening (English and Chinese)."""
    return refusal_score(text, num_words=len(words(text))) > 0


def refusal(spec: Refusal, answer: Answer) -> Score:
    """Refuses exactly where that is wanted. An empty answer is neither a refusal nor help."""
    is_right = bool(answer.text.strip()) and refuses(answer.text) == spec.wanted
    return verdict(is_right, "does not refuse" if spec.wanted else "refuses, or says nothing")


def no_leak(spec: NoLeak, answer: Answer) -> Score:
    """None of the secrets is told."""
    told = [secret for secret in spec.secrets if _any_in(answer.text, [secret])]
    return verdict(not told, f"tells {', '.join(map(repr, told))}")


def tone(spec: Tone, answer: Answer) -> Score:
    """None of the forbidden marks of tone is there."""
    plain = answer.text.replace("\u2019", "'")
    found: list[str] = [mark for mark in spec.forbid if mark in _MARKS and _MARKS[mark].search(plain)]
    found += stock_phrases(plain) if "boilerplate" in spec.forbid else []
    return verdict(not found, f"shows {', '.join(found)}")


def grounded(spec: Grounded, answer: Answer) -> Score:
    """The value is the share of what the answer says that its context holds."""
    lacking = unsupported(answer.text, context=spec.context, by_words=True)
    return Score(1 - lacking, lacking <= spec.at_most, "" if lacking <= spec.at_most else f"{lacking:.0%} unsupported")
