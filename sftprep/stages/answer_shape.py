"""How an answer ends, repeats itself, or repeats its prompt: scores in [0, 1], 0 where there is nothing to see."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import Final

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_CODE_FENCE: Final = "```"
_CLOSED: Final = ".!?\u2026\u3002\uff01\uff1f;\uff1b"
_SENTENCE_END: Final = re.compile(r"[.!?\u3002\uff01\uff1f][\"')\]\u201d\u2019]*(?:\s|(?<=[\u3002\uff01\uff1f]))")
_DANGLING_NUMBER: Final = re.compile(r"\n\s*\d{1,2}[.)]?\s*\Z|[.!?]\s\d{1,2}[.)]\Z")
_TAG: Final = re.compile(r"[#@]\w+\s*\Z")
_LIST_LINE: Final = re.compile(r"\s*(?:[-*\u2022\u00b7#>|]|\(?(?:\d{1,3}|[A-Za-z])[.):\uff0e\u3001]|Step \d)")
# Words that an English sentence does not end with.
_OPEN_WORD_LIST: Final = (
    "a an the and or but of to in on at for with from by as into than which who whose if because while when is are was "
    "were be been being can could will would should may might must their his her its our your my such very each every "
    "between among about under i we they he she including e.g i.e"
)
_OPEN_WORDS: Final = frozenset(_OPEN_WORD_LIST.split())
_OPEN_CHARS: Final = ",:\uff1a\uff0c\u3001([{\uff08\u201c-\u2013\u2014&+"
_MIN_WORDS: Final = 8
_LONG_WORDS: Final = 25
_NOT_PROSE: Final = re.compile(r"[{}<>=;\\]|https?://|^\s*(?:def|class|import|return|SELECT)\b")

_LOOP_PERIODS: Final = 40
_LOOP_TIMES: Final = 4
_LONG_LOOP_TIMES: Final = 3
_LONG_LOOP_WORDS: Final = 17
_LOOP_WORDS: Final = 12
_LINE_TIMES: Final = 4

_ECHO_WORDS: Final = 6
_ECHO_OF_ANSWER: Final = 0.3
_ECHO_MOST: Final = 0.6
_ECHO_ALL: Final = 0.95
_ROLE: Final = re.compile(r"^(?:human|user|assistant)\s*:\s*")
_TOKEN: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")


def truncated_ending(text: str, *, tokens: Sequence[str]) -> float:
    """Whether an answer stops in the middle: 1 for an open code block, 0.9 for an open bracket or word, else 0.6.

    Lists, headings, tables, code, short and casual answers end without a full stop and are not meant.
    """
    body = text.rstrip()
    if body.count(_CODE_FENCE) % 2:
        return 1.0
    if not body or body.endswith(_CODE_FENCE) or len(tokens) < _MIN_WORDS:
        return 0.0
    last_line = body.rsplit("\n", 1)[-1]
    if _DANGLING_NUMBER.search(body):
        return 0.9
    if _NOT_PROSE.search(last_line):
        return 0.0
    if _is_open(body, last_line, last_word=tokens[-1]):
        return 0.9
    return 0.6 if body[-1].isalpha() and _stops_early(body, last_line, num_words=len(tokens)) else 0.0


def _is_open(body: str, last_line: str, *, last_word: str) -> bool:
    """Whether the last characters ask for more: a comma, a colon, an open bracket or quotation, "of the"."""
    if body[-1] in _OPEN_CHARS:
        return True
    if not body[-1].isalnum():
        return False
    unclosed = last_line.count("(") > last_line.count(")") or last_line.count('"') % 2 == 1
    return unclosed or (body[-1].islower() and (last_word in _OPEN_WORDS or last_word.endswith(("'s", "\u2019s"))))


def _stops_early(body: str, last_line: str, *, num_words: int) -> bool:
    """Whether an answer that closes its other sentences, or the other items of its list, leaves the last open."""
    if _LIST_LINE.match(last_line):
        others = [line.rstrip() for line in body.split("\n")[:-1] if _LIST_LINE.match(line)]
        return len(others) >= 2 and all(line[-1] in _CLOSED for line in others)
    short = len(last_line.split()) < _MIN_WORDS and len(last_line) < 60
    closed = len(_SENTENCE_END.findall(body))
    return num_words >= _LONG_WORDS and closed >= 2 and not short and not _TAG.search(last_line)


def repetition_loop(text: str, *, hashes: Hashes) -> float:
    """The share of an answer's words in a run that says the same four times over, or three times where it is long."""
    return max(_word_loop(hashes), _line_loop(text), _character_loop(text))


def _word_loop(hashes: Hashes) -> float:
    best = 0
    for period in range(1, min(_LOOP_PERIODS, len(hashes) // _LONG_LOOP_TIMES) + 1):
        same = hashes[period:] == hashes[:-period]
        least = max(min(_LOOP_TIMES * period, max(_LONG_LOOP_TIMES * period, _LONG_LOOP_WORDS)), _LOOP_WORDS, best + 1)
        # Counting is cheap, and most texts have too few equal words for any run.
        if np.count_nonzero(same) + period >= least and (run := _longest_run(same) + period) >= least:
            best = run
    return best / len(hashes) if best else 0.0


def _longest_run(same: npt.NDArray[np.bool_]) -> int:
    bounds = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    return int((bounds[1::2] - bounds[::2]).max()) if len(bounds) else 0


def _line_loop(text: str) -> float:
    """The share of lines that are the most repeated sentence; lines of fewer than four words do not count."""
    lines = [line.strip() for line in re.split(r"[\n.!?\u3002\uff01\uff1f]", text)]
    said = Counter(line for line in lines if _says_something(line))
    top = max(said.values(), default=0)
    return top / said.total() if top >= _LINE_TIMES else 0.0


def _says_something(line: str) -> bool:
    """Whether a line is a sentence: four words, or twenty characters, and letters for the most part."""
    return (len(line.split()) >= 4 or len(line) >= 20) and 2 * sum(map(str.isalpha, line)) > len(line)


def _character_loop(text: str) -> float:
    """The share of an answer that is one letter, or a few characters, again and again (scripts without spaces)."""
    longest = max((len(found[0]) for found in _CHARACTER_LOOP.finditer(text)), default=0)
    return longest / len(text) if longest else 0.0


_CHARACTER_LOOP: Final = re.compile(r"([^\W\d_]{1,12}?)\1{11,}")


def repeats_prompt(prompt: str, answer: str) -> float:
    """1 where the answer opens with the prompt as it is, or is a piece of it from its beginning; else 0 to 1 by words.

    An answer that takes up the question and goes on in the same sentence is fine: without the prompt's last character
    the repeated words must be most of the answer. Prompts and answers of fewer than six words are not judged.
    """
    asked, said = (_ROLE.sub("", " ".join(text.casefold().split())) for text in (prompt, answer))
    words_asked, words_said = (len(_TOKEN.findall(text)) for text in (asked, said))
    if min(words_asked, words_said) < _ECHO_WORDS:
        return 0.0
    if said.startswith(asked) and len(asked) >= _ECHO_OF_ANSWER * len(said):
        return 1.0
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, said, strict=False)))
    if same < _ECHO_MOST * len(said):
        return 0.0
    return max(same / len(asked), float(same >= _ECHO_ALL * len(said)))


def is_outlier(length: int, *, median: float, spread: float, deviations: float) -> bool:
    """Whether a length in words lies that many spreads (of log lengths) from the median (of log lengths)."""
    return bool(abs(np.log1p(length) - median) > deviations * spread)


def log_length_spread(lengths: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Median and spread of log lengths: the spread is 1.4826 median absolute deviations, a normal's deviation."""
    if not len(lengths):
        return 0.0, 1.0
    logs = np.log1p(lengths)
    median = float(np.median(logs))
    # Where most answers have one length every other would be an outlier: a spread of 0.25 is a factor of 1.28.
    return median, max(1.4826 * float(np.median(np.abs(logs - median))), 0.25)
