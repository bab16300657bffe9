"""The template's own `{% generation %}` blocks: where they lie, and how that differs from the contract."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sftprep.data import Json
from sftprep.errors import TemplateError
from sftprep.templates.exact import ExactTurn
from sftprep.templates.template import ChatTemplate, Request

_OPEN, _CLOSE = "\U0010fffd", "\U000ffffd"
"""Private-use characters that stand at a block's ends for one render."""

Span = tuple[int, int]


def generation_spans(template: ChatTemplate, messages: Sequence[Mapping[str, Json]], request: Request) -> list[Span]:
    """`[start, stop)` of each generation block in the render of these messages, in order.

    Raises:
        TemplateError: `template-raised`; `trace-differs` where the blocks' ends cannot be seen without changing the
            text (a block whose text is trimmed or counted afterwards).
    """
    plain = template.render(messages, request, prompt=False)
    marked = template.render(messages, request, prompt=False, marks=(_OPEN, _CLOSE))
    if marked.replace(_OPEN, "").replace(_CLOSE, "") != plain:
        raise TemplateError(
            "the ends of the generation blocks cannot be seen in the text", code="trace-differs", place="chat_template"
        )
    spans: list[Span] = []
    starts: list[int] = []
    position = 0
    for piece in re.split(f"([{_OPEN}{_CLOSE}])", marked):
        if piece == _OPEN:
            starts.append(position)
        elif piece == _CLOSE:
            spans.append((starts.pop(), position))
        else:
            position += len(piece)
    return sorted(spans)


def tag_remarks(
    template: ChatTemplate, messages: Sequence[Mapping[str, Json]], group: Sequence[ExactTurn]
) -> list[str]:
    """How the blocks differ from each turn of a group: `tags-agree`, or where they begin or end otherwise."""
    base = group[-1]
    try:
        spans = generation_spans(template, messages[: base.message + 1], base.request)
    except TemplateError:
        return ["tags-unclear"] * len(group)
    # The base's own text may be longer (a stop token that the next turn would open) or another one (spliced).
    if base.kind not in {"packed", "switched"}:
        return ["tags-not-compared"] * len(group)
    return [_remark(spans, (turn.start, turn.end.stop)) for turn in group]


def _remark(spans: Sequence[Span], turn: Span) -> str:
    own = [span for span in spans if span[0] < turn[1] and span[1] > turn[0]]
    if not own:
        return "tags-absent"
    start, stop = own[0][0], own[-1][1]
    found = {start < turn[0]: "tags-begin-early", start > turn[0]: "tags-begin-late"}.get(True)
    found = found or {stop > turn[1]: "tags-end-late", stop < turn[1]: "tags-end-early"}.get(True)
    return found or "tags-agree"
