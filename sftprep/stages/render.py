"""Conversation to samples: text in which every trained turn sees exactly its inference context."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sftprep.data import Conversation, Json, Role, Sample, Segment, SpanKind, TrainedTurn
from sftprep.errors import MaskError, TemplateError
from sftprep.templates.adapt import adapt_messages, probe_form
from sftprep.templates.contract import TurnResolver
from sftprep.templates.exact import ExactTurn
from sftprep.templates.policy import ControlTokens, History, RenderPolicy, TrainOn
from sftprep.templates.runs import Run
from sftprep.templates.template import ChatTemplate, Request, TracedText
from sftprep.templates.turns import is_template_text, owner, placed

_KIND_OF_ROLE: Mapping[str, SpanKind] = {
    Role.SYSTEM: SpanKind.SYSTEM,
    Role.DEVELOPER: SpanKind.SYSTEM,
    Role.USER: SpanKind.USER,
    Role.TOOL: SpanKind.TOOL_RESULT,
}


@dataclass(frozen=True, slots=True)
class RenderedConversation:
    """The samples of one row; `classes` counts its trained turns by class, `untrained` those left as context."""

    samples: tuple[Sample, ...]
    classes: Mapping[str, int]
    untrained: int


def render(conversation: Conversation, *, template: ChatTemplate, policy: RenderPolicy) -> RenderedConversation:
    """The fewest samples that train each turn once, each in exactly its inference context.

    Raises:
        MaskError: the row cannot be exact; `code` says why and `place` where.
    """
    _refuse_control_tokens(conversation, template, policy)
    messages = adapt_messages(conversation.messages, probe_form(template))
    request = Request(tools=conversation.tools, kwargs=conversation.template_kwargs)
    trained = _trained_messages(conversation, policy)
    if not trained:
        raise MaskError("no assistant message is to be trained", code="nothing-trained", place="/messages")
    resolver = TurnResolver(template, messages, request, policy.allow)
    try:
        groups = resolver.resolve_all(trained)
    except TemplateError as error:
        raise MaskError(error.message, code=error.code, place="/messages", hint=error.hint) from error
    _refuse_lost_tools(conversation, groups[0][-1])
    kept = groups if policy.history is History.EXPAND else groups[:1]
    samples = tuple(_sample(conversation, number, group) for number, group in enumerate(reversed(kept)))
    return RenderedConversation(samples, _classes(kept), len(trained) - sum(len(group) for group in kept))


def _trained_messages(conversation: Conversation, policy: RenderPolicy) -> list[int]:
    trained = [
        index
        for index, message in enumerate(conversation.messages)
        if message.get("role") == Role.ASSISTANT and conversation.weights[index] > 0
    ]
    last_only = policy.train_on is TrainOn.LAST or policy.history is History.LAST_TURN
    return trained[-1:] if last_only else trained


def _classes(groups: Sequence[Sequence[ExactTurn]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for number, group in enumerate(groups):
        for turn in group:
            counts["rewritten" if turn.kind == "packed" and number > 0 else turn.kind] += 1
    return dict(counts)


def _sample(conversation: Conversation, number: int, group: Sequence[ExactTurn]) -> Sample:
    turns = [TrainedTurn(turn.message, turn.start, turn.end.stop, conversation.weights[turn.message]) for turn in group]
    return Sample(
        address=conversation.address,
        index=number,
        text=group[-1].traced.text,
        segments=tuple(_segments(conversation, group)),
        turns=tuple(turns),
        template_kwargs=dict(group[-1].request.kwargs or {}),
    )


def _segments(conversation: Conversation, group: Sequence[ExactTurn]) -> Iterator[Segment]:
    """Who wrote what, with the trained turns laid over it; the segments cover the text."""
    position = 0
    ended = -1
    for turn in group:
        yield from _after(ended, _context(conversation, group[-1].traced, (position, turn.start)))
        if turn.start < turn.end.stop_start:
            yield Segment(turn.start, turn.end.stop_start, SpanKind.COMPLETION, turn.message)
        if turn.end.stop_start < turn.end.stop:
            yield Segment(turn.end.stop_start, turn.end.stop, SpanKind.STOP, turn.message)
        position, ended = turn.end.stop, turn.message
    yield from _after(ended, _context(conversation, group[-1].traced, (position, len(group[-1].traced.text))))


def _after(ended: int, segments: Iterator[Segment]) -> Iterator[Segment]:
    """What the template writes in a turn that its stop token has ended is a separator."""
    for number, segment in enumerate(segments):
        is_separator = number == 0 and segment.kind is SpanKind.HEADER and 0 <= ended == segment.message
        yield replace(segment, kind=SpanKind.SEPARATOR) if is_separator else segment


def _context(conversation: Conversation, traced: TracedText, span: tuple[int, int]) -> Iterator[Segment]:
    """The untrained segments of `[start, stop)`, neighbours of one kind and message joined."""
    start, stop = span
    current: Segment | None = None
    for at in placed(traced.runs):
        begin, end = max(at.start, start), min(at.stop, stop)
        if begin >= end:
            continue
        kind, message = _kind(conversation, traced, at.run)
        if current is not None and (current.kind, current.message) == (kind, message):
            current = Segment(current.start, end, kind, message)
            continue
        if current is not None:
            yield current
        current = Segment(begin, end, kind, message)
    if current is not None:
        yield current


def _kind(conversation: Conversation, traced: TracedText, run: Run) -> tuple[SpanKind, int]:
    message = owner(traced, run)
    if is_template_text(traced, run):
        return SpanKind.HEADER, message
    if message < 0:
        is_schema = traced.sources[run.source].path.startswith("/tools")
        return (SpanKind.TOOL_SCHEMA if is_schema else SpanKind.HEADER), message
    role = str(conversation.messages[message].get("role"))
    if role == Role.ASSISTANT:
        weighted = conversation.weights[message] > 0
        return (SpanKind.HISTORY if weighted else SpanKind.WEIGHT_ZERO), message
    return _KIND_OF_ROLE.get(role, SpanKind.USER), message


def _refuse_control_tokens(conversation: Conversation, template: ChatTemplate, policy: RenderPolicy) -> None:
    if policy.control_tokens is ControlTokens.ALLOW or not template.control_tokens:
        return
    pattern = template.control_pattern
    for index, message in enumerate(conversation.messages):
        for path, text in _strings(message, f"/messages/{index}"):
            found = pattern.search(text)
            if found:
                _raise_control_token(found, path)
    for path, text in _strings(list(conversation.tools or ()), "/tools"):
        found = pattern.search(text)
        if found:
            _raise_control_token(found, path)


def _raise_control_token(found: re.Match[str], path: str) -> None:
    raise MaskError(
        f"the text holds the control token {found.group()!r}, which the tokenizer would not read as text",
        code="control-token",
        place=path,
        hint="clean the row; --control-tokens allow encodes it as a control token, as a server does",
    )


def _strings(value: Json, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{path}/{key}", key
            yield from _strings(item, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _strings(item, f"{path}/{index}")


def _refuse_lost_tools(conversation: Conversation, turn: ExactTurn) -> None:
    """A row that calls tools of which the template shows none teaches calls out of nothing."""
    if not conversation.tools or not any(message.get("tool_calls") for message in conversation.messages):
        return
    traced = turn.traced
    shown = {traced.sources[run.source].path for run in traced.runs if run.source >= 0}
    if not any(path.startswith("/tools") for path in shown):
        raise MaskError(
            "the row calls tools, and the template shows the model none of them",
            code="tools-lost",
            place="/tools",
            hint="use the template variant that renders tools",
        )
