"""Scorers that other packages bring, by entry points of the group `sftprep.scorers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, Final

from sftprep.errors import UsageError
from sftprep.evaluate.answer import Answer, Score

ENTRY_POINTS: Final = "sftprep.scorers"

PlugInScorer = Callable[[Answer, dict[str, Any]], Score]
"""A function of an answer and the options that the suite gives."""

_RETURN: Final = "return sftprep.evaluate.answer.Score(value, passed, note)"


@lru_cache(maxsize=64)
def plug_in(name: str) -> PlugInScorer:
    """The scorer of an entry point.

    Raises:
        UsageError: `no-such-scorer`: no installed package has one of that name, or it cannot be imported.
    """
    known = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in known:
        raise UsageError(
            f"no installed package has a scorer called {name!r}",
            code="no-such-scorer",
            hint=f"entry points of {ENTRY_POINTS}: {', '.join(sorted(known)) or 'none'}",
        )
    try:
        found: PlugInScorer = known[name].load()
    # Whatever another package does when it is imported is a fault of that package, and named as one.
    except Exception as error:
        raise UsageError(
            f"the scorer {name!r} cannot be imported: {type(error).__name__}: {error}",
            code="no-such-scorer",
            hint=f"its entry point is {known[name].value}",
        ) from error
    return found


def plug_in_score(name: str, answer: Answer, options: Mapping[str, Any]) -> Score:
    """What a plug-in says of an answer.

    Raises:
        UsageError: `no-such-scorer`; `bad-score`: it failed, or gave something else than a score.
    """
    scorer = plug_in(name)
    try:
        found = scorer(answer, dict(options))
    # As above: the run ends in a named error, not in a traceback through two packages.
    except Exception as error:
        raise UsageError(
            f"the scorer {name!r} failed: {type(error).__name__}: {error}", code="bad-score", hint=_RETURN
        ) from error
    if not isinstance(found, Score) or not 0 <= found.value <= 1:
        raise UsageError(f"the scorer {name!r} gave no Score with a value from 0 to 1", code="bad-score", hint=_RETURN)
    return found
