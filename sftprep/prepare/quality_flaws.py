"""Every answer judged by every detector: counts by flaw and by source, and the worst of each."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from sftprep.config.quality import QualityConfig
from sftprep.data import RowAddress
from sftprep.reports.quality_json import Example, Flaw
from sftprep.stages.answer_phrases import leaked_instructions, refusal
from sftprep.stages.answer_shape import (
    is_outlier,
    log_length_spread,
    repeats_prompt,
    repetition_loop,
    truncated_ending,
)
from sftprep.stages.dialogue import Answer
from sftprep.stages.groundedness import gives_context, unsupported
from sftprep.stages.language import Identify, wrong_language
from sftprep.stages.words import Hashes

FLAWS: Final = {
    "refusal": "the answer declines",
    "truncated-ending": "the answer stops in the middle",
    "wrong-language": "the answer is in another language than its prompt",
    "leaked-instructions": "the answer shows role markers or talks of its instructions",
    "repetition-loop": "the answer says the same again and again",
    "repeats-prompt": "the answer repeats its prompt",
    "ungrounded": "the answer says what the context that the prompt gives does not hold",
}
OUTLIER: Final = "length-outlier"
# Of real answers, as met before anything was improved on them: README tells of all that was measured.
REACH: Final = {
    "refusal": "9 of 13 that it found were right, it found 9 of 10",
    "truncated-ending": "11 of 13 that it found were right, it found 11 of 15",
    "wrong-language": "2 of 3 that it found were right, it found 2 of 2",
    "leaked-instructions": "9 of 9 that it found were right, it found 9 of 10",
    "repetition-loop": "the one that it found was right, it found 1 of 3",
    "repeats-prompt": "0 of 2 that it found were right, it found 0 of 2",
    "ungrounded": "names, numbers and words of nowhere, not statements turned round: of 7 unsupported answers among 26 "
    "that were labelled unseen it found none, and one that was fine; half of answers to another row's context",
    OUTLIER: "all of 144 planted among 5,544 lengths, and 15 others",
}
OUTLIER_MEANING: Final = "far shorter or longer than the others"
_EXCERPT: Final = 160


@dataclass(frozen=True, slots=True)
class JudgedText:
    """An answer with what its row's address and its words are."""

    address: RowAddress
    answer: Answer
    words: list[str]
    hashes: Hashes

    @property
    def place(self) -> str:
        """Where the answer stands."""
        return f"{self.address}:/messages/{self.answer.message}"


def excerpt(text: str, *, end: bool = False, start: int = 0) -> str:
    """The first (or last) characters of a text on one line, from a place on."""
    line = " ".join(text[start:].split())
    shown = "…" + line if start else line
    if len(shown) <= _EXCERPT:
        return shown
    return "…" + shown[-_EXCERPT:] if end else shown[:_EXCERPT] + "…"


def scores(text: JudgedText, *, config: QualityConfig, identify: Identify) -> Iterator[tuple[str, float]]:
    """Each flaw that could be judged and its score; 0 where the answer is free of it."""
    answer = text.answer
    yield "refusal", refusal(answer.text, num_words=len(text.words))
    yield "truncated-ending", truncated_ending(answer.text, tokens=text.words)
    yield "leaked-instructions", leaked_instructions(answer.text, prompt=answer.prompt)
    loop = repetition_loop(answer.text, hashes=text.hashes)
    yield "repetition-loop", loop if loop >= config.loop_share else 0.0
    echo = repeats_prompt(answer.prompt, answer.text)
    yield "repeats-prompt", echo if echo >= config.echo_share else 0.0
    probability = config.language_probability
    yield (
        "wrong-language",
        wrong_language(answer.prompt, answer.text, identify=identify, probability=probability),
    )
    if gives_context(answer.prompt, tool_results=answer.tool_results):
        share = unsupported(answer.text, context=answer.context, by_words=not answer.tool_results)
        yield "ungrounded", share if share >= config.unsupported_share else 0.0


@dataclass(slots=True)
class Worst:
    """The highest scores met, the earlier of equals first."""

    limit: int
    heap: list[tuple[float, int, Example]] = field(default_factory=list)
    met: int = 0

    def add(self, score: float, *, place: str, text: str) -> None:
        """Keep an example where it is among the worst, and says what none of them says yet."""
        self.met += 1
        is_worse = self.limit and (len(self.heap) < self.limit or score > self.heap[0][0])
        if is_worse and all(kept.excerpt != text for _, _, kept in self.heap):
            entry = (score, -self.met, Example(place=place, excerpt=text, score=round(min(score, 1.0), 4)))
            (heapq.heappushpop if len(self.heap) == self.limit else heapq.heappush)(self.heap, entry)

    def ranked(self) -> list[Example]:
        """The worst first."""
        return [example for _, _, example in sorted(self.heap, key=lambda entry: entry[:2], reverse=True)]


@dataclass(slots=True)
class FlawTally:
    """Counts of all answers and the worst of each flaw."""

    config: QualityConfig
    identify: Identify
    judged: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    worst: dict[str, Worst] = field(default_factory=dict)
    lengths: array[int] = field(default_factory=lambda: array("q"))
    shortest: Worst = field(default_factory=lambda: Worst(0))
    longest: Worst = field(default_factory=lambda: Worst(0))

    def __post_init__(self) -> None:
        limit = self.config.examples
        self.worst = {code: Worst(limit) for code in FLAWS}
        self.shortest, self.longest = Worst(limit), Worst(limit)

    def add(self, text: JudgedText) -> bool:
        """Judge an answer; whether it has any flaw."""
        flawed = False
        for code, score in scores(text, config=self.config, identify=self.identify):
            self.judged[code] += 1
            if score:
                flawed = True
                self.found[code] += 1
                shown = excerpt(text.answer.text, end=code == "truncated-ending")
                self.worst[code].add(score, place=text.place, text=shown)
        self.lengths.append(len(text.words))
        shown = f"{len(text.words)} words: {excerpt(text.answer.text)}"
        self.longest.add(len(text.words), place=text.place, text=shown)
        self.shortest.add(-len(text.words), place=text.place, text=shown)
        return flawed

    def flaws(self) -> list[Flaw]:
        """The outcome, the most frequent first."""
        found = [self._flaw(code, self.worst[code].ranked()) for code in FLAWS]
        return sorted([*found, self._outliers()], key=lambda flaw: (-flaw.share, flaw.code))

    def _flaw(self, code: str, examples: list[Example]) -> Flaw:
        share = self.found[code] / max(self.judged[code], 1)
        return Flaw(
            code=code,
            meaning=FLAWS.get(code, OUTLIER_MEANING),
            reach=REACH[code],
            num_judged=self.judged[code],
            num_answers=self.found[code],
            share=share,
            examples=examples,
        )

    def _outliers(self) -> Flaw:
        lengths = np.array(self.lengths, dtype=np.int64)
        median, spread = log_length_spread(lengths)
        limit = self.config.length_deviations
        away = np.abs(np.log1p(lengths) - median)
        self.judged[OUTLIER], self.found[OUTLIER] = len(lengths), int((away > limit * spread).sum())
        ends = [
            (abs(np.log1p(abs(words)) - median), example)
            for side in (self.longest, self.shortest)
            for words, _, example in side.heap
            if is_outlier(int(abs(words)), median=median, spread=spread, deviations=limit)
        ]
        ranked = sorted(ends, key=lambda end: (-end[0], end[1].place))[: self.config.examples]
        scored = [
            example.model_copy(update={"score": round(float(min(1.0, far / (2 * limit * spread))), 4)})
            for far, example in ranked
        ]
        return self._flaw(OUTLIER, scored)
