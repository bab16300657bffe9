"""Win-rate by a judge: each pair shown in both orders, ties counted as halves, position and length accounted for."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from sftprep.evaluate.answer import Answer
from sftprep.evaluate.endpoint import Question
from sftprep.evaluate.statistics import paired_bootstrap
from sftprep.reports.evaluate_json import WinRate

_PROMPT: Final = """Two assistants answered the same request. Judge which answer helps more: correct first, then to the
point, then well put. Length is no merit. Reply with one word on the first line: A, B or tie.

[request]
{prompt}

[answer A]
{first}

[answer B]
{second}

[end]"""
# Alone on its line, or before a reason: "A better answer" and "A, B or tie" are no verdicts.
_VERDICT: Final = re.compile(
    r"\A\W*(?:answer\s+)?(A|B|tie)(?=\W*(?:\n|\Z)|\W*[.:]\s|\s+[-\u2013\u2014]\s)", re.IGNORECASE
)
_RIDGE: Final = 1.0
_STEPS: Final = 50


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one request, the new one and the one that it is compared with."""

    prompt: str
    new: str
    old: str


def questions(pairs: Sequence[Pair]) -> list[Question]:
    """Two requests a pair: the new answer first, then second."""
    orders = [
        order for pair in pairs for order in ((pair.prompt, pair.new, pair.old), (pair.prompt, pair.old, pair.new))
    ]
    return [
        {
            "messages": [{"role": "user", "content": _PROMPT.format(prompt=prompt, first=first, second=second)}],
            "temperature": 0,
            "max_tokens": 16,
        }
        for prompt, first, second in orders
    ]


def win_rate(pairs: Sequence[Pair], verdicts: Sequence[Answer], *, judge: str, against: str, seed: int) -> WinRate:
    """The verdicts on `questions(pairs)`; a pair of which one cannot be read is counted and left out."""
    read = [_read(answer.text) for answer in verdicts]
    both = [(pair, read[2 * i], read[2 * i + 1]) for i, pair in enumerate(pairs)]
    judged = [(pair, first, second) for pair, first, second in both if first and second]
    scores = np.array([(_POINTS[first] + 1 - _POINTS[second]) / 2 for _, first, second in judged])
    interval = paired_bootstrap(scores.tolist(), seed=seed)
    placed = [verdict for _, *found in judged for verdict in found if verdict != "tie"]
    lengths = np.array([len(pair.new) - len(pair.old) for pair, _, _ in judged], dtype=np.float64)
    return WinRate(
        judge=judge,
        against=against,
        num_cases=len(judged),
        num_unreadable=len(pairs) - len(judged),
        wins=int((scores > 0.5).sum()),
        ties=int((scores == 0.5).sum()),
        losses=int((scores < 0.5).sum()),
        win_rate=float(scores.mean()) if len(scores) else 0.5,
        low=interval.low if len(scores) else 0.0,
        high=interval.high if len(scores) else 1.0,
        length_controlled=length_controlled(scores, lengths),
        first_position=placed.count("a") / len(placed) if placed else 0.5,
    )


_POINTS: Final = {"a": 1.0, "tie": 0.5, "b": 0.0}


def _read(text: str) -> Literal["a", "b", "tie"] | None:
    found = _VERDICT.match(text)
    said = found[1].lower() if found else ""
    return "a" if said == "a" else "b" if said == "b" else "tie" if said == "tie" else None


def length_controlled(scores: npt.NDArray[np.float64], lengths: npt.NDArray[np.float64]) -> float:
    """The win-rate that answers of equal length would have.

    A logistic regression of the score on the difference in characters (over its standard deviation, through tanh, with
    a ridge on the slope); the intercept alone is what is left. It is the length term of length-controlled AlpacaEval
    (Dubois et al. 2024) without that one's terms for the difficulty of each instruction.
    """
    if not len(scores):
        return 0.5
    spread = float(lengths.std()) or 1.0
    features = np.stack([np.ones(len(lengths)), np.tanh(lengths / spread)], axis=1)
    weights = np.zeros(2)
    # A little of the ridge on the intercept keeps it finite where every score is the same.
    ridge = np.diag([1e-3, _RIDGE])
    for _ in range(_STEPS):
        expected = 1 / (1 + np.exp(-features @ weights))
        gradient = features.T @ (scores - expected) - ridge @ weights
        curvature = features.T @ (features * (expected * (1 - expected))[:, None]) + ridge
        weights = weights + np.clip(np.linalg.solve(curvature, gradient), -2, 2)
    return 1 / (1 + math.exp(-float(weights[0])))
