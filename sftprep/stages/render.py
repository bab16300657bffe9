"""Conversation to samples: text in which every trained turn sees exactly its inference context."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from sftprep.data import Conversation, Role, Sample, Segment, SpanKind, TrainedTurn
from sftprep.errors import MaskError, TemplateError
from sftprep.templates.adapt import adapt_messages, probe_form
from sftprep.templates.contract import TurnResolver
from sftprep.templates.control import (
    formed_token,
    refuse_control_tokens,
    refuse_formed_tokens,
    written_tokens,
)
from sftprep.templates.exact import ExactTurn, refuse_typed_stops
from sftprep.templates.generation import tag_remarks
from sftprep.templates.masking import masked_fields, masked_stretches, says_more_than
from sftprep.templates.merge import merge_consecutive
from sftprep.templates.policy import ControlTokens, History, Mask, RenderPolicy, TrainOn
from sftprep.templates.runs import Run
from sftprep.templates.tagged import tagged_turns
from sftprep.templates.template import ChatTemplate, Request, TracedText
from sftprep.templates.turns import is_template_text, lost_context, owner

Recall = Callable[[Sequence[ExactTurn], Hashable, Callable[[], Sample]], Sample]
"""What is known of the same turns and the same of all else that decides their sample; else the sample that is made."""

_KIND_OF_ROLE: Mapping[str, SpanKind] = {
    Role.SYSTEM: SpanKind.SYSTEM,
    Role.DEVELOPER: SpanKind.SYSTEM,
    Role.USER: SpanKind.USER,
    Role.TOOL: SpanKind.TOOL_RESULT,
}


@dataclass(frozen=True, slots=True)
class RenderedConversation:
    """The samples of one row; `classes` counts its trained turns by class, `untrained` those left as context.

    `remarks` counts what is exact and still worth knowing: `context-lost` (the template shows nothing of a message
    that is no answer), `control-token-split`, `merged`, and how generation blocks differ (`tags-…`).
    """

    samples: tuple[Sample, ...]
    classes: Mapping[str, int]
    untrained: int
    remarks: Mapping[str, int] = field(default_factory=dict)


def render(
    conversation: Conversation,
    *,
    template: ChatTemplate,
    policy: RenderPolicy,
    resolver: type[TurnResolver] = TurnResolver,
    recall: Recall | None = None,
) -> RenderedConversation:
    """The fewest samples that train each turn once, each in exactly its inference context.

    Samples of one conversation that share a prefix are neighbours and numbered in the order of their last turns.
    `recall` is given the turns of each sample, what else decides it, and what makes it.

    Raises:
        MaskError: the row cannot be exact; `code` says why and `place` where.
        TemplateLimitError: the template takes more than any conversation explains.
    """
    if not policy.merge_consecutive:
        return _rendered(conversation, template, policy, resolver, recall)
    merged, origin = merge_consecutive(conversation)
    try:
        rendered = _rendered(merged, template, policy, resolver, recall)
    except MaskError as error:
        place = re.sub(r"(?<=^/messages/)\d+", lambda found: str(origin[int(found.group())]), error.place)
        raise MaskError(error.message, code=error.code, place=place, hint=error.hint) from error
    num_merged = len(conversation.messages) - len(merged.messages)
    samples = tuple(_renumbered(sample, origin) for sample in rendered.samples)
    return replace(rendered, samples=samples, remarks={**rendered.remarks, "merged": num_merged})


def _rendered(
    conversation: Conversation,
    template: ChatTemplate,
    policy: RenderPolicy,
    resolver: type[TurnResolver],
    recall: Recall | None,
) -> RenderedConversation:
    if policy.control_tokens is ControlTokens.ERROR and template.control_tokens:
        refuse_control_tokens(conversation, template.control_pattern)
    messages = adapt_messages(conversation.messages, probe_form(template))
    request = Request(tools=conversation.tools, kwargs=conversation.template_kwargs)
    trained = _trained_messages(conversation, policy)
    if not trained:
        raise MaskError("no assistant message is to be trained", code="nothing-trained", place="/messages")
    remarks: Counter[str] = Counter()
    try:
        if policy.mask is Mask.GENERATION_TAGS:
            groups = [tagged_turns(template, messages, request, trained)]
        else:
            groups = resolver(template, messages, request, policy.allow).resolve_all(trained)
    except TemplateError as error:
        raise MaskError(error.message, code=error.code, place="/messages", hint=error.hint) from error
    _refuse_lost_tools(conversation, groups[0][-1])
    _refuse_double_bos(template, groups, policy)
    _refuse_typed(template, groups, policy)
    kept = groups if policy.history is History.EXPAND else groups[:1]
    if policy.mask is Mask.CONTRACT and template.has_generation_blocks:
        remarks.update(remark for group in kept for remark in tag_remarks(template, messages, group))
    remarks["context-lost"] += lost_context(groups[0][-1].traced, groups[0][-1].message)
    samples = list(_samples(conversation, kept, policy, recall))
    pattern = template.control_pattern
    traces = [group[-1].traced for group in reversed(kept)]
    splits = policy.control_tokens is ControlTokens.SPLIT and bool(template.control_tokens)
    if splits and any(formed_token(traced, pattern) for traced in traces):
        remarks["control-token-split"] += 1
        samples = [
            replace(s, written_tokens=written_tokens(traced, pattern))
            for s, traced in zip(samples, traces, strict=True)
        ]
    untrained = len(trained) - sum(len({turn.message for turn in group}) for group in kept)
    return RenderedConversation(tuple(samples), _classes(kept), untrained, +remarks)


def _refuse_typed(template: ChatTemplate, groups: Sequence[Sequence[ExactTurn]], policy: RenderPolicy) -> None:
    """MaskError where a control token that is none of the template's would be read as one."""
    if policy.control_tokens is ControlTokens.ERROR and template.control_tokens:
        for group in groups:
            refuse_formed_tokens(group[-1].traced, template.control_pattern)
    if policy.control_tokens is ControlTokens.ALLOW and policy.mask is Mask.CONTRACT and template.stop_tokens:
        for turn in (turn for group in groups for turn in group):
            refuse_typed_stops(turn, template.stop_pattern)


def _renumbered(sample: Sample, origin: Sequence[int]) -> Sample:
    """The sample with the messages' numbers from before they were merged."""
    segments = [s._replace(message=origin[s.message] if s.message >= 0 else s.message) for s in sample.segments]
    turns = [replace(turn, message=origin[turn.message]) for turn in sample.turns]
    return replace(sample, segments=tuple(segments), turns=tuple(turns))


def _trained_messages(conversation: Conversation, policy: RenderPolicy) -> list[int]:
    fields = masked_fields(policy)
    trained = [
        index
        for index, message in enumerate(conversation.messages)
        if message.get("role") == Role.ASSISTANT and conversation.weights[index] > 0 and says_more_than(message, fields)
    ]
    last_only = policy.train_on is TrainOn.LAST or policy.history is History.LAST_TURN
    return trained[-1:] if last_only else trained


def _classes(groups: Sequence[Sequence[ExactTurn]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for number, group in enumerate(groups):
        for turn in {turn.message: turn for turn in group}.values():
            counts["rewritten" if turn.kind == "packed" and number > 0 else turn.kind] += 1
    return dict(counts)


def _samples(
    conversation: Conversation, groups: Sequence[Sequence[ExactTurn]], policy: RenderPolicy, recall: Recall | None
) -> Iterator[Sample]:
    for number, group in enumerate(reversed(groups)):
        make = partial(_sample, conversation, number, group, policy)
        about = (number, *conversation.weights[: group[-1].message + 1])
        yield make() if recall is None else recall(group, about, make)


def _sample(conversation: Conversation, number: int, group: Sequence[ExactTurn], policy: RenderPolicy) -> Sample:
    turns = [TrainedTurn(turn.message, turn.start, turn.end.stop, conversation.weights[turn.message]) for turn in group]
    return Sample(
        address=conversation.address,
        index=number,
        text=group[-1].traced.text,
        segments=tuple(_segments(conversation, group, masked_fields(policy))),
        turns=tuple(turns),
        template_kwargs=dict(group[-1].request.kwargs or {}),
        is_exact=policy.mask is Mask.CONTRACT,
    )


def _segments(conversation: Conversation, group: Sequence[ExactTurn], masked: Sequence[str]) -> Iterator[Segment]:
    """Who wrote what, with the trained turns laid over it; the segments cover the text."""
    traced = group[-1].traced
    position = 0
    ended = -1
    for turn in group:
        yield from _context(conversation, traced, (position, turn.start), ended=ended)
        yield from _completion(turn, masked)
        if turn.end.stop_start < turn.end.stop:
            yield Segment(turn.end.stop_start, turn.end.stop, SpanKind.STOP, turn.message)
        position, ended = turn.end.stop, turn.message
    yield from _context(conversation, traced, (position, len(traced.text)), ended=ended)


def _completion(turn: ExactTurn, masked: Sequence[str]) -> Iterator[Segment]:
    """What the model must emit before the stop token, with what policy masks of it."""
    position = turn.start
    for start, stop in masked_stretches(turn, masked) if masked else ():
        if position < start:
            yield Segment(position, start, SpanKind.COMPLETION, turn.message)
        yield Segment(start, stop, SpanKind.MASKED, turn.message)
        position = stop
    if position < turn.end.stop_start:
        yield Segment(position, turn.end.stop_start, SpanKind.COMPLETION, turn.message)


def _context(conversation: Conversation, traced: TracedText, span: tuple[int, int], *, ended: int) -> Iterator[Segment]:
    """The untrained segments of `[start, stop)`, neighbours of one kind and message joined.

    What the template writes at first in the turn of `ended`, a message that its stop token has ended, is a separator.
    """
    begin, stop = span
    current: tuple[SpanKind, int] | None = None
    is_ended = False
    for at in traced.within(begin, stop):
        own = _kind(conversation, traced, at.run)
        if own == current:
            continue
        if current is not None:
            yield Segment(begin, at.start, SpanKind.SEPARATOR if is_ended else current[0], current[1])
            begin = at.start
        is_ended = current is None and ended >= 0 and own == (SpanKind.HEADER, ended)
        current = own
    if current is not None:
        yield Segment(begin, stop, SpanKind.SEPARATOR if is_ended else current[0], current[1])


def _kind(conversation: Conversation, traced: TracedText, run: Run) -> tuple[SpanKind, int]:
    message = owner(traced, run)
    if run.source < 0 or is_template_text(traced, run):
        return SpanKind.HEADER, message
    if message < 0:
        is_schema = traced.sources[run.source].path.startswith("/tools")
        return (SpanKind.TOOL_SCHEMA if is_schema else SpanKind.HEADER), message
    role = str(conversation.messages[message].get("role"))
    if role == Role.ASSISTANT:
        weighted = conversation.weights[message] > 0
        return (SpanKind.HISTORY if weighted else SpanKind.WEIGHT_ZERO), message
    return _KIND_OF_ROLE.get(role, SpanKind.USER), message


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


def _refuse_double_bos(template: ChatTemplate, groups: Sequence[Sequence[ExactTurn]], policy: RenderPolicy) -> None:
    bos = template.special_tokens.get("bos_token")
    if not bos or "double-bos" in policy.allow:
        return
    if any(group[-1].traced.text.lstrip().startswith((bos + bos, f"{bos} {bos}")) for group in groups):
        raise MaskError(
            f"the text begins with {bos!r} twice",
            code="double-bos",
            place="/messages",
            hint="the template or the row writes it once too often; --allow double-bos trains it as it is",
        )
