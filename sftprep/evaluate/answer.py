"""What a model answered, and what a scorer says of it."""

from __future__ import annotations

from dataclasses import dataclass

from sftprep.data import Json


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer without its stop token.

    `stopped`: the model ended it by itself. `calls` are its tool calls where the server tells them apart from the
    text; None where they are in the text.
    """

    text: str
    num_tokens: int
    stopped: bool
    calls: tuple[Json, ...] | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """`value` in [0, 1]; `passed` is the verdict of the case; `note` says why it is not."""

    value: float
    passed: bool
    note: str = ""


def verdict(passed: bool, note: str) -> Score:
    """A score that is all or nothing; the note is kept where it failed."""
    return Score(float(passed), passed, "" if passed else note)
