"""Which characters of a completion are masked by policy: reasoning, tool calls, and what the template puts around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sftprep.data import Json
from sftprep.templates.exact import ExactTurn
from sftprep.templates.policy import Part, RenderPolicy
from sftprep.templates.turns import is_supervised


def masked_fields(policy: RenderPolicy) -> tuple[str, ...]:
    """The fields of a message that are not trained."""
    fields = (("reasoning_content", policy.reasoning), ("tool_calls", policy.tool_calls))
    return tuple(name for name, part in fields if part is Part.MASK)


def says_more_than(message: Mapping[str, Json], fields: Sequence[str]) -> bool:
    """Whether a message says anything outside of these fields; an empty answer is an answer."""
    if not any(message.get(name) for name in fields):
        return True
    said = ("reasoning_content", "content", "tool_calls")
    return any(message.get(name) for name in said if name not in fields)


def masked_stretches(turn: ExactTurn, fields: Sequence[str]) -> list[tuple[int, int]]:
    """The stretches `[start, stop)` of a completion that are masked.

    Each reaches from the last character that is trained to the next that is, so the tags around a masked field are
    masked with it; the stop token is never masked.
    """
    prefixes = tuple(f"/{name}" for name in fields)
    traced, begin, end = turn.traced, turn.start, turn.end.stop_start
    stretches: list[tuple[int, int]] = []
    kept, has_masked = begin, False
    for at in traced.within(begin, end):
        start, stop = max(at.start, begin), min(at.stop, end)
        if start >= stop or not is_supervised(traced, at.run.source, turn.message):
            continue
        if traced.sources[at.run.source].path.startswith(prefixes):
            has_masked = True
            continue
        if has_masked:
            stretches.append((kept, start))
        kept, has_masked = stop, False
    return [*stretches, (kept, end)] if has_masked else stretches
