"""Scores: the scorer of each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sftprep.evaluate import behaviour_scorers as behaviour
from sftprep.evaluate import json_scorers, text_scorers
from sftprep.evaluate.answer import Answer, Score
from sftprep.evaluate.grounded_scorer import grounded
from sftprep.evaluate.instruction_checks import instructions
from sftprep.evaluate.plug_ins import plug_in_score
from sftprep.evaluate.scorer_specs import PlugIn, ScorerSpec

_SCORERS: Final[Mapping[str, Callable[[Any, Answer], Score]]] = {
    "exact": text_scorers.exact,
    "normalised": text_scorers.normalised_match,
    "token-f1": text_scorers.token_f1,
    "choice": text_scorers.choice,
    "numeric": text_scorers.numeric,
    "regex": text_scorers.regex,
    "json-fields": json_scorers.json_fields,
    "tool-calls": json_scorers.tool_calls,
    "instructions": instructions,
    "stops": behaviour.stops,
    "repetition": behaviour.repetition,
    "refusal": behaviour.refusal,
    "no-leak": behaviour.no_leak,
    "tone": behaviour.tone,
    "grounded": grounded,
}


def score(spec: ScorerSpec, answer: Answer) -> Score:
    """What one scorer says of an answer.

    Raises:
        UsageError: `no-such-scorer`, `bad-score`: of a plug-in.
    """
    if isinstance(spec, PlugIn):
        return plug_in_score(spec.name, answer, spec.options)
    return _SCORERS[spec.kind](spec, answer)
