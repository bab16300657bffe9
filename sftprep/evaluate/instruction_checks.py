"""Instructions that a program can verify: the kinds of IFEval (Zhou et al. 2023), and what each of them means here.

Definitions are IFEval's where it has one. Ours are stricter where its code takes what its instructions do not ask for:
keywords are whole words, an empty title is none, a paragraph needs a blank line before it. Sentences are told apart by
their full stops, without a data file; and an empty answer follows nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sftprep.evaluate.answer import Answer, Score
from sftprep.evaluate.scorer_specs import Instruction, Instructions
from sftprep.stages.language import load_identifier
from sftprep.stages.words import words

_WORD: Final = re.compile(r"\w+")
_SENTENCE: Final = re.compile(r"[^.!?。！？]*[^\s.!?。！？][^.!?。！？]*(?:[.!?。！？]+|$)")
# Full stops that end no sentence: in numbers, behind a list's numbers, behind initials, in and behind abbreviations.
_NO_STOP: Final = re.compile(
    r"(?<=\d)\.(?=\d)|(?m:(?<=^\d)\.|(?<=^\d\d)\.)|(?<=\b[A-HJ-Z])\.(?=\s?[A-Z])|(?<=\b[a-z])\.(?=[a-z])"
    r"|(?<=\b[a-z]\.[a-z])\.|(?<=\b[A-Z]\.[A-Z])\.(?=\s[a-z])"
    r"|(?:(?<=\bMr)|(?<=\bMs)|(?<=\bDr)|(?<=\bSt)|(?<=\bvs)|(?<=\bMrs))\."
)
_BULLET: Final = re.compile(r"^\s*(?:\*(?!\*)|[-•])\s*\S", re.MULTILINE)
_BLANK_LINE: Final = re.compile(r"\n\s*\n")
_FENCE: Final = re.compile(r"\A```(?:json)?\s*(.*?)\s*(?:```)?\Z", re.IGNORECASE | re.DOTALL)
_HIGHLIGHT: Final = re.compile(r"\*\*\s*[^\s*][^\n*]*\*\*|\*\s*[^\s*][^\n*]*\*")
_PLACEHOLDER: Final = re.compile(r"\[[^\]\n]*\]")
_TITLE: Final = re.compile(r"<<\s*[^\s<>][^\n]*>>")
_EDGES: Final = "\"'\u201c\u201d\u2018\u2019"


def all_in(text: str, wanted: Sequence[str]) -> bool:
    """Whether every one of the texts is there, as whole words; case and punctuation do not count."""
    own = f" {' '.join(words(text))} "
    return all(f" {' '.join(words(word))} " in own for word in wanted)


def any_in(text: str, wanted: Sequence[str]) -> bool:
    """Whether one of the texts is there, as whole words."""
    return any(all_in(text, [word]) for word in wanted)


def num_sentences(text: str) -> int:
    """Sentences by their full stops; decimal points, initials, titles and list numbers do not end one."""
    return len(_SENTENCE.findall(_NO_STOP.sub("", text)))


def _occurrences(text: str, keyword: str) -> int:
    own, wanted = words(text), words(keyword)
    return sum(own[i : i + len(wanted)] == wanted for i in range(len(own) - len(wanted) + 1))


def _letters(text: str, letter: str) -> int:
    return text.casefold().count(letter.casefold())


def _capital_words(text: str) -> int:
    return sum(word.isupper() for word in _WORD.findall(text))


def _paragraphs(text: str) -> list[str]:
    return [part for part in _BLANK_LINE.split(text.strip()) if part.strip()]


def _parts(text: str, mark: str) -> list[str] | None:
    """The parts between marks; a mark may stand at either end, but nothing between two is no part."""
    parts = [part.strip() for part in text.split(mark)]
    inner = parts[bool(not parts[0]) : len(parts) - bool(not parts[-1])]
    return inner if all(inner) else None


def _is_json(text: str) -> bool:
    fenced = _FENCE.match(text.strip())
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):  # also a number of more digits than Python reads
        return False
    return True


def _paragraph_starts(text: str, check: Instruction) -> bool:
    found = _paragraphs(text)
    place = (check.number or 0) - 1
    return 0 <= place < len(found) and words(found[place])[:1] == words(str(check.value))[:1]


def _postscript(mark: str) -> re.Pattern[str]:
    """The mark at the start of a word, with or without spaces between its letters: P.S. and P. S."""
    letters = r"\s?".join(map(re.escape, mark.replace(" ", "")))
    return re.compile(rf"(?<!\S){letters}", re.IGNORECASE)


def _two_answers(text: str) -> bool:
    parts = _parts(text, "******")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def _plain(text: str) -> str:
    return text.strip().strip(_EDGES).strip().casefold()


def _ends_with(text: str, ending: str) -> bool:
    return text.strip().strip(_EDGES).casefold().endswith(ending.strip().casefold())


_CHECKS: Final[Mapping[str, Callable[[str, Any], bool]]] = {
    "min-words": lambda text, value: len(_WORD.findall(text)) >= value,
    "max-words": lambda text, value: len(_WORD.findall(text)) <= value,
    "min-sentences": lambda text, value: num_sentences(text) >= value,
    "max-sentences": lambda text, value: num_sentences(text) <= value,
    "num-paragraphs": lambda text, value: len(_paragraphs(text)) == value,
    "num-starred-parts": lambda text, value: len(_parts(text, "***") or ()) == value,
    "num-bullets": lambda text, value: len(_BULLET.findall(text)) == value,
    "min-placeholders": lambda text, value: len(_PLACEHOLDER.findall(text)) >= value,
    "min-highlights": lambda text, value: len(_HIGHLIGHT.findall(text)) >= value,
    "min-capital-words": lambda text, value: _capital_words(text) >= value,
    "max-capital-words": lambda text, value: _capital_words(text) <= value,
    "keywords": all_in,
    "forbidden-words": lambda text, value: not any_in(text, value),
    "one-of": lambda text, value: any(option in text for option in value),
    "starts-with": lambda text, value: _plain(text).startswith(_plain(value)),
    "ends-with": _ends_with,
    "postscript": lambda text, value: _postscript(value).search(text) is not None,
    "title": lambda text, value: _TITLE.search(text) is not None,
    "quoted": lambda text, value: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    "two-answers": lambda text, value: _two_answers(text),
    "all-lowercase": lambda text, value: text.islower(),
    "all-uppercase": lambda text, value: text.isupper(),
    "no-commas": lambda text, value: not re.search("[,，、]", text),
    "is-json": lambda text, value: _is_json(text),
    "language": lambda text, value: load_identifier()(text)[0] == value,
}
_COUNTED: Final[Mapping[str, Callable[[str, Instruction], bool]]] = {
    "keyword-at-least": lambda text, check: _occurrences(text, str(check.value)) >= (check.number or 0),
    "keyword-at-most": lambda text, check: _occurrences(text, str(check.value)) <= (check.number or 0),
    "letter-at-least": lambda text, check: _letters(text, str(check.value)) >= (check.number or 0),
    "letter-at-most": lambda text, check: _letters(text, str(check.value)) <= (check.number or 0),
    "sections": lambda text, check: (
        len(re.findall(rf"{re.escape(str(check.value))}\s?\d+", text)) >= (check.number or 0)
    ),
    "paragraph-starts-with": _paragraph_starts,
}


def followed(check: Instruction, text: str) -> bool:
    """Whether a text follows one instruction. An empty text follows none."""
    if not text.strip():
        return False
    if check.check in _COUNTED:
        return _COUNTED[check.check](text, check)
    return _CHECKS[check.check](text, check.value)


def instructions(spec: Instructions, answer: Answer) -> Score:
    """The share of instructions that are followed."""
    missed = [check.check for check in spec.checks if not followed(check, answer.text)]
    return Score(1 - len(missed) / len(spec.checks), not missed, f"not followed: {', '.join(missed)}" if missed else "")
