"""One answer to its scores: the scorer of each kind, and those that other packages bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, Final

from sftprep.errors import UsageError
from sftprep.evaluate import behaviour_scorers as behaviour
from sftprep.evaluate import json_scorers, text_scorers
from sftprep.evaluate.answer import Answer, Score
from sftprep.evaluate.scorer_specs import PlugIn, ScorerSpec

ENTRY_POINTS: Final = "sftprep.scorers"

_SCORERS: Final[Mapping[str, Callable[[Any, Answer], Score]]] = {
    "exact": text_scorers.exact,
    "normalised": text_scorers.normalised_match,
    "token-f1": text_scorers.token_f1,
    "choice": text_scorers.choice,
    "numeric": text_scorers.numeric,
    "regex": text_scorers.regex,
    "json-fields": json_scorers.json_fields,
    "tool-calls": json_scorers.tool_calls,
    "instructions": behaviour.instructions,
    "stops": behaviour.stops,
    "repetition": behaviour.repetition,
    "refusal": behaviour.refusal,
    "no-leak": behaviour.no_leak,
    "tone": behaviour.tone,
    "grounded": behaviour.grounded,
}


def score(spec: ScorerSpec, answer: Answer) -> Score:
    """What one scorer says of an answer.

    Raises:
        UsageError: `no-such-scorer`, `bad-score`: of a plug-in.
    """
    if not isinstance(spec, PlugIn):
        return _SCORERS[spec.kind](spec, answer)
    found = plug_in(spec.name)(answer, dict(spec.options))
    if not isinstance(found, Score) or not 0 <= found.value <= 1:
        raise UsageError(
            f"the scorer {spec.name!r} gave no Score with a value from 0 to 1",
            code="bad-score",
            hint="return sftprep.evaluate.answer.Score(value, passed, note)",
        )
    return found


@lru_cache(maxsize=64)
def plug_in(name: str) -> Callable[[Answer, dict[str, Any]], Score]:
    """The scorer of an entry point `sftprep.scorers`: a function of an answer and the options of the suite."""
    known = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in known:
        raise UsageError(
            f"no installed package has a scorer called {name!r}",
            code="no-such-scorer",
            hint=f"entry points of {ENTRY_POINTS}: {', '.join(sorted(known)) or 'none'}",
        )
    found: Callable[[Answer, dict[str, Any]], Score] = known[name].load()
    return found
