"""The rule behind the first difference of two documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from sftprep.data import SpanKind
from sftprep.stages.align import first_difference

Ids = npt.NDArray[np.int32]
Kinds = npt.NDArray[np.int8]
Mask = npt.NDArray[np.bool_]

_MASK_RULES: Final = {
    SpanKind.HEADER: "scaffold-trained",
    SpanKind.SEPARATOR: "separator-trained",
    SpanKind.SYSTEM: "other-role-trained",
    SpanKind.USER: "other-role-trained",
    SpanKind.TOOL_RESULT: "other-role-trained",
    SpanKind.TOOL_SCHEMA: "other-role-trained",
    SpanKind.STOP: "stop-untrained",
    SpanKind.COMPLETION: "answer-untrained",
    SpanKind.HISTORY: "context-trained",
    SpanKind.WEIGHT_ZERO: "context-trained",
    SpanKind.MASKED: "context-trained",
}
_MOST_APPENDED: Final = 2


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule by name; `trained_by` is the side that trains the token, empty where the ids differ."""

    name: str
    trained_by: Literal["left", "right", ""] = ""


def mask_rule(kinds: tuple[Kinds | None, Kinds | None], trained: tuple[Mask, Mask]) -> Rule:
    """The rule of two masks over equal ids, by the first token that one side trains alone."""
    position = first_difference(*trained)
    side: Literal["left", "right"] = "left" if trained[0][position] else "right"
    more, less = trained if side == "left" else trained[::-1]
    own = next((k for k in kinds if k is not None), None)
    if more.all():
        return Rule("everything-trained", side)
    if position == 0:
        return Rule("first-token-trained", side)
    if own is None:
        return Rule("mask-differs", side)
    kind = SpanKind(int(own[position]))
    if kind is SpanKind.COMPLETION and own[position - 1] != SpanKind.COMPLETION:
        rest = np.flatnonzero(own[position:] != SpanKind.COMPLETION)
        stop = position + int(rest[0]) if len(rest) else len(own)
        return Rule("answer-start-untrained" if less[position:stop].any() else "answer-untrained", side)
    return Rule(_MASK_RULES[kind], side)


def id_rule(ids: tuple[Ids, Ids], kinds: tuple[Kinds | None, Kinds | None], tokenizer: Tokenizer | None) -> Rule:
    """The rule of two documents of like content with other ids."""
    left, right = ids
    position = first_difference(left, right)
    shorter, longer = sorted(ids, key=len)
    if position == len(shorter):
        return Rule("token-appended" if len(longer) - len(shorter) <= _MOST_APPENDED else "truncated")
    if len(longer) == len(shorter) + 1 and np.array_equal(longer[1:], shorter):
        return Rule("token-prepended")
    if tokenizer is not None and _text(left, tokenizer) == _text(right, tokenizer):
        return Rule("tokenised-differently")
    own = next((k for k in kinds if k is not None and position < len(k)), None)
    if own is None:
        return Rule("ids-differ")
    is_template = own[position] in {SpanKind.HEADER, SpanKind.SEPARATOR}
    return Rule("template-text-differs" if is_template else "content-differs")


def _text(ids: Ids, tokenizer: Tokenizer) -> str:
    return str(tokenizer.decode([i for i in ids.tolist() if i >= 0], skip_special_tokens=False))
