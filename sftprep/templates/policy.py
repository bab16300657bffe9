"""What a render may do where the safe answer is to refuse, and what of a turn is trained."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ControlTokens(StrEnum):
    """What happens to a row whose content holds the text of a control token."""

    ERROR = "error"
    SPLIT = "split"
    """The text is encoded as plain text; a server that does not do that reads it otherwise."""
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


class Part(StrEnum):
    """What is done with a part of a trained turn."""

    TRAIN = "train"
    MASK = "mask"
    """The model sees it, and is not trained to write it."""


class Mask(StrEnum):
    """Where the mask comes from."""

    CONTRACT = "contract"
    """The server's prompt before each turn, and what the model must emit through its stop token."""
    GENERATION_TAGS = "generation-tags"
    """The template's own `{% generation %}` blocks, as they are."""


@dataclass(frozen=True, slots=True)
class RenderPolicy:
    """The safe defaults: every assistant turn, exact, or an error with a name. `allow` waives errors by code."""

    control_tokens: ControlTokens = ControlTokens.ERROR
    history: History = History.EXPAND
    train_on: TrainOn = TrainOn.ALL
    allow: frozenset[str] = frozenset()
    reasoning: Part = Part.TRAIN
    tool_calls: Part = Part.TRAIN
    merge_consecutive: bool = False
    mask: Mask = Mask.CONTRACT
