"""The plans of a run: for each shape of conversation that was seen, how its rows are rendered without the template."""

from __future__ import annotations

import itertools
import json
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from sftprep.collector import uncollected
from sftprep.config.pack import PackConfig
from sftprep.data import Conversation
from sftprep.engines.model import ModelFiles
from sftprep.errors import MaskError, TemplateError
from sftprep.prepare.chat_templates import ChatTemplates
from sftprep.prepare.input_rows import InputRows
from sftprep.records.plain_lines import PlainChat
from sftprep.stages.render import render
from sftprep.stages.replay import Refusal, RowPlan, plan_refusal, plan_row
from sftprep.templates.adapt import adapt_messages, probe_form
from sftprep.templates.control import TokenSearch, may_hold_tokens
from sftprep.templates.policy import ControlTokens, Mask, Part, RenderPolicy
from sftprep.templates.shape import shape_of
from sftprep.templates.symbolic_beginnings import Beginnings, Path
from sftprep.templates.symbolic_template import SymbolicTemplate
from sftprep.templates.symbolic_tracer import SymbolicTracer
from sftprep.templates.symbolic_turns import PlannedResolver
from sftprep.templates.symbols import OpaqueError

_MAX_FAILURES: Final = 8
"""Rows of one shape that found no plan, after which none is looked for."""
_MAX_SHAPES: Final = 4096
"""Shapes whose plans are kept: a run sees any number of them, and its memory stays bounded."""


_AT_ONCE: Final = 64
"""Rows whose texts are searched at once."""

Found = tuple[RowPlan, list[bytes]] | MaskError | None
"""A row's plan and what its samples are made of, or what is wrong with it; None where it has no plan."""


@dataclass(slots=True)
class _Known:
    """What is known of a shape."""

    plans: list[RowPlan | Refusal] = field(default_factory=list)
    failures: int = 0


class PlanBook:
    """Finds and keeps the plans of one model and policy."""

    def __init__(self, model: ModelFiles, config: PackConfig, policy: RenderPolicy) -> None:
        self._templates = ChatTemplates.of(model, config.now, SymbolicTemplate)
        self._kwargs = config.template_kwargs
        self._policy = policy
        self._known: dict[Hashable, _Known] = {}
        self._known_roles: dict[tuple[str, ...], _Known] = {}
        """Of plain chats, of which their roles are the whole shape."""
        self._searches: dict[SymbolicTemplate, TokenSearch] = {}
        self._beginnings: dict[SymbolicTemplate, Beginnings] = {}

    @staticmethod
    def serves(policy: RenderPolicy) -> bool:
        """Whether rows under a policy can be planned."""
        trains_all = policy.reasoning is Part.TRAIN and policy.tool_calls is Part.TRAIN
        is_plain = policy.control_tokens is not ControlTokens.SPLIT and policy.mask is Mask.CONTRACT
        return trains_all and is_plain and not policy.merge_consecutive

    def replay_all(self, rows: InputRows) -> Iterator[Found]:
        """Of each row its plan and what its samples are made of, or what is wrong; None where it has no plan."""
        template = self._templates.for_tools(None)
        for first in range(0, len(rows), _AT_ONCE):
            chats = rows.chats[first : first + _AT_ONCE]
            encoded = [() if chat is None else list(map(str.encode, chat.texts)) for chat in chats]
            typed = self._typed(template, encoded)
            for number, chat in enumerate(chats):
                found = None if chat is None or number in typed else self._replayed(chat, encoded[number])
                if found is None:
                    conversation = rows[first + number].conversation
                    roles = () if chat is None else chat.roles
                    found = None if conversation is None else self.replay(conversation, roles=roles)
                yield found

    def _typed(self, template: SymbolicTemplate, encoded: Sequence[Sequence[bytes]]) -> set[int]:
        """The rows of which a text may hold a control token."""
        if not template.control_tokens:
            return set()
        found = self._search(template).holding(list(itertools.chain.from_iterable(encoded)))
        if not found:
            return set()
        stops = list(itertools.accumulate(map(len, encoded)))
        return {bisect_right(stops, number) for number in found}

    def _replayed(self, chat: PlainChat, encoded: Sequence[bytes]) -> Found:
        """The same of a chat without control tokens; None also where no chat of these roles was planned yet."""
        known = self._known_roles.get(chat.roles)
        if known is None:
            return None
        for plan in known.plans:
            fields = plan.guarded.of_chat(chat.texts, encoded)
            if fields is not None:
                return plan.of_fields(fields)
        return None

    def replay(self, conversation: Conversation, *, roles: tuple[str, ...] = ()) -> Found:
        """The same of a conversation, `roles` being those of its messages where it is a plain chat."""
        template = self._templates.for_tools(conversation.tools)
        if template.has_generation_blocks or self._has_typed_tokens(conversation, template):
            return None
        adapted = self._adapted(conversation, template)
        if len(self._known) >= _MAX_SHAPES:
            self._known.clear()  # what is forgotten is planned again where it is needed
            self._known_roles.clear()
        known = self._known.setdefault(_key(adapted), _Known())
        if roles:
            self._known_roles[roles] = known
        for plan in known.plans:
            found = _answered(plan, plan.guarded.texts(adapted))
            if found is not None:
                return found
        made = self._planned(adapted, template) if known.failures < _MAX_FAILURES else None
        found = None if made is None else _answered(made, made.guarded.texts(adapted))
        if made is None or found is None:
            known.failures += 1
            return None
        known.plans.append(made)
        return found

    def _has_typed_tokens(self, conversation: Conversation, template: SymbolicTemplate) -> bool:
        if not template.control_tokens:
            return False
        if self._search(template).clears(conversation):
            return False
        return may_hold_tokens(conversation, template.control_pattern)

    def _search(self, template: SymbolicTemplate) -> TokenSearch:
        if template not in self._searches:
            self._searches[template] = TokenSearch(template.control_tokens)
        return self._searches[template]

    def _adapted(self, conversation: Conversation, template: SymbolicTemplate) -> Conversation:
        """The conversation in the form that the template wants, with the run's own arguments."""
        form = probe_form(template)
        messages = conversation.messages
        if form.wrap_text or any(len(message) != 2 or type(message.get("content")) is not str for message in messages):
            messages = adapt_messages(messages, form)
        kwargs = {**self._kwargs, **conversation.template_kwargs}
        if messages is conversation.messages and kwargs == conversation.template_kwargs:
            return conversation
        return replace(conversation, messages=messages, template_kwargs=kwargs)

    def _planned(self, conversation: Conversation, template: SymbolicTemplate) -> RowPlan | Refusal | None:
        """A plan of the conversation, made with what is known of those that began alike where that makes one."""
        # What is made for a plan lives until that is finished: to look for garbage is a quarter of the work.
        with uncollected():
            path = None if template.has_passes else self._path(conversation, template)
            made = self._tried(conversation, template, path)
            if made is None and path is not None and path.is_shared:
                made = self._tried(conversation, template, None)
        return made

    def _path(self, conversation: Conversation, template: SymbolicTemplate) -> Path:
        known = self._beginnings.setdefault(template, Beginnings())
        return known.path(conversation.messages, conversation.tools, shape_of(conversation.messages))

    def _tried(
        self, conversation: Conversation, template: SymbolicTemplate, path: Path | None
    ) -> RowPlan | Refusal | None:
        try:
            tracer = template.at(conversation.messages, conversation.tools, path=path)
            made = self._rendered(conversation, template, tracer)
            if path is not None:
                self._beginnings[template].keep(path)
            return made
        except (TemplateError, OpaqueError):
            # The slow path says what is wrong with the row, or finds its exact form.
            return None
        finally:
            template.leave()

    def _rendered(
        self, conversation: Conversation, template: SymbolicTemplate, tracer: SymbolicTracer
    ) -> RowPlan | Refusal | None:
        path = template.path
        recall, recall_cut = (None, None) if path is None else (path.recall_of, path.recall_cut)
        try:
            # It was looked for control tokens before.
            policy = replace(self._policy, control_tokens=ControlTokens.ALLOW)
            rendered = render(conversation, template=template, policy=policy, resolver=PlannedResolver, recall=recall)
        except MaskError as error:
            # Without its traceback, which would keep the whole conversation.
            bare = MaskError(error.message, code=error.code, place=error.place, hint=error.hint)
            return plan_refusal(bare, tracer)
        if set(rendered.classes) - {"packed", "switched", "rewritten"} or not rendered.samples:
            return None
        return plan_row(rendered.samples, tracer, counts=(rendered.classes, rendered.remarks), recall=recall_cut)


def _answered(plan: RowPlan | Refusal, texts: Sequence[str] | None) -> Found:
    """What a plan makes of a conversation whose fields are these; None where that answers otherwise than the plan's."""
    if texts is None:
        return None
    if isinstance(plan, Refusal):
        return plan.error
    return plan.of_fields([text.encode() for text in texts[: plan.num_written]])


def _key(conversation: Conversation) -> Hashable:
    """All that decides which plans may serve a conversation: that it has tools decides the template too."""
    kwargs = conversation.template_kwargs
    tools = conversation.tools
    return (
        shape_of(conversation.messages),
        tuple(conversation.weights),
        None if tools is None else len(tools),
        json.dumps(kwargs, sort_keys=True) if kwargs else "",
    )
