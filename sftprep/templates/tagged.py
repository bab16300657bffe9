"""Turns as the template's own generation blocks have them: for those who want that mask, proven or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sftprep.data import Json
from sftprep.errors import MaskError
from sftprep.templates.exact import ExactTurn
from sftprep.templates.generation import generation_spans
from sftprep.templates.template import ChatTemplate, Request, TracedText
from sftprep.templates.turns import End, find_end, is_supervised, owner

KIND = "generation-tags"


def tagged_turns(
    template: ChatTemplate, messages: Sequence[Mapping[str, Json]], request: Request, trained: Sequence[int]
) -> list[ExactTurn]:
    """The blocks of the trained messages in one render of the whole conversation, in order.

    A block that goes on behind its stop token gives two.

    Raises:
        MaskError: `no-generation-tags`, or `tags-absent` where a trained message has no block.
        TemplateError: as `generation_spans`.
    """
    if not template.has_generation_blocks:
        raise MaskError(
            "the template has no generation blocks",
            code="no-generation-tags",
            place="chat_template",
            hint="leave --mask at contract, which needs none",
        )
    traced = template.trace(messages, request, prompt=False)
    turns: list[ExactTurn] = []
    for start, stop in generation_spans(template, messages, request):
        message = _author(traced, start, stop)
        if message in trained and start < stop:
            turns += [
                ExactTurn(message, request, KIND, traced, begin, end)
                for begin, end in _cut(find_end(traced, message, start, template.stop_tokens), start, stop)
            ]
    missing = set(trained) - {turn.message for turn in turns}
    if missing:
        raise MaskError(
            "the template has no generation block around the message",
            code="tags-absent",
            place=f"/messages/{min(missing)}",
            hint="leave --mask at contract",
        )
    return turns


def _cut(end: End | None, start: int, stop: int) -> list[tuple[int, End]]:
    if end is None or end.stop > stop:
        return [(start, End(stop, stop))]
    rest = [(end.stop, End(stop, stop))] if end.stop < stop else []
    return [(start, end), *rest]


def _author(traced: TracedText, start: int, stop: int) -> int:
    """The message that speaks in a block, or in whose turn the block was written."""
    inside = list(traced.within(start, stop))
    owners = [owner(traced, at.run) for at in inside]
    said = [o for at, o in zip(inside, owners, strict=True) if is_supervised(traced, at.run.source, o)]
    return next(iter([*said, *owners]), -1)
