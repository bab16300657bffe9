"""`%` and `str.format` on traced strings: the template's text and the arguments keep their writers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any

from sftprep.templates.trace import TracedStr, Tracer, first_field

_PLAIN_PERCENT = re.compile(r"%(?:s|%)")
_ANY_PERCENT = re.compile(r"%")


def format_percent(tracer: Tracer, left: str, right: object) -> TracedStr:
    """`left % right`; followed piece by piece where every directive is a bare `%s`."""
    text = str.__mod__(left, right)
    values = right if isinstance(right, tuple) else (right,)
    template = left if isinstance(left, TracedStr) else tracer.literal(left)
    pieces: list[object] = []
    position = 0
    remaining = list(values)
    for match in _PLAIN_PERCENT.finditer(left):
        pieces.append(template.piece(position, match.start()))
        if match.group() == "%%":
            pieces.append(template.piece(match.start(), match.start() + 1))
        elif remaining:
            pieces.append(remaining.pop(0))
        position = match.end()
    pieces.append(template.piece(position, len(left)))
    followed = tracer.concat(pieces)
    return followed if followed == text else tracer.derived(text, (left, right))


def make_formatter(
    tracer: Tracer, template: str, formatter: Formatter
) -> Callable[[Sequence[Any], Mapping[str, Any]], TracedStr]:
    """A function of (args, kwargs) that formats `template` as the sandbox's `formatter` does, traced."""

    def run(args: Sequence[Any], kwargs: Mapping[str, Any]) -> TracedStr:
        text = formatter.vformat(str.__str__(template), args, kwargs)
        pieces: list[object] = []
        automatic = 0
        for literal, name, spec, conversion in formatter.parse(template):
            pieces.append(tracer.literal(literal))
            if name is None:
                continue
            field = name or str(automatic)
            automatic += not name
            value, _ = formatter.get_field(field, args, kwargs)
            plain = not spec and not conversion and isinstance(value, TracedStr)
            shown = value if plain else formatter.format_field(value, spec or "")
            pieces.append(shown if plain else tracer.derived(str(shown), value))
        followed = tracer.concat(pieces)
        return followed if followed == text else tracer.derived(text, (template, args, dict(kwargs)))

    return run


def mentions_field(values: object) -> bool:
    """Whether a traced field of the conversation is anywhere inside."""
    return first_field(values) is not None
