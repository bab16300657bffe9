"""What whoever calls `train` may measure on the model between steps, and what a run keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """One answer of the model as it was after a step; `value` in [0, 1] and `passed` are its scorers' verdict."""

    case: str
    prompt: str
    text: str
    num_tokens: int
    stopped: bool
    value: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """The answers to a few cases, and their shares by metric: `pass-rate`, `pass-rate.SUITE` and so on."""

    scores: dict[str, float]
    answers: tuple[ShownAnswer, ...]


@dataclass(frozen=True, slots=True)
class Watcher:
    """Lets the model answer, in evaluation mode and with its own attention; `metrics` are the scores that it gives.

    Under several processes each of them calls it on the same, split model, and the first one's sample counts.
    """

    metrics: frozenset[str]
    ask: Callable[[PreTrainedModel], Sample]
