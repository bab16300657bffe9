"""What a render may do where the safe answer is to refuse."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ControlTokens(StrEnum):
    """What happens to a row whose content holds the text of a control token."""

    ERROR = "error"
    ALLOW = "allow"


class History(StrEnum):
    """What happens to the turns whose prompt the template rewrites later."""

    EXPAND = "expand"
    """One more sample for each set of turns that no other sample shows as the server would."""
    LAST_TURN = "last-turn"
    """Only the last trained turn is trained."""
    AS_RENDERED = "as-rendered"
    """One sample; the turns that it does not show as the server would are context and not trained."""


class TrainOn(StrEnum):
    """Which assistant turns are trained."""

    ALL = "all"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class RenderPolicy:
    """The safe defaults: every assistant turn, exact, or an error with a name. `allow` waives errors by code."""

    control_tokens: ControlTokens = ControlTokens.ERROR
    history: History = History.EXPAND
    train_on: TrainOn = TrainOn.ALL
    allow: frozenset[str] = frozenset()
