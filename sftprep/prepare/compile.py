"""One conversation to its documents: the stages from row to tokens, joined once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sftprep.config.pack import PackConfig
from sftprep.data import Conversation, Document
from sftprep.engines.model import ModelFiles
from sftprep.engines.reference import ReferenceEngine
from sftprep.prepare.chat_templates import ChatTemplates
from sftprep.stages.encode import encode
from sftprep.stages.render import RenderedConversation, render
from sftprep.templates.policy import ControlTokens, History, Mask, Part, RenderPolicy, TrainOn


@dataclass(frozen=True, slots=True)
class CompiledRow:
    """The documents of one row; `classes` counts its trained turns by class, `remarks` what is worth knowing."""

    documents: tuple[Document, ...]
    classes: Mapping[str, int]
    remarks: Mapping[str, int]


CompileRow = Callable[[Conversation], CompiledRow]
"""Raises MaskError or TemplateError where the row cannot be exact."""


def compiler(model: ModelFiles, config: PackConfig) -> CompileRow:
    """Render with the model's own template, encode with its own tokenizer.

    Raises:
        TemplateError: `template-syntax`.
    """
    templates = ChatTemplates.of(model, config.now)
    policy = RenderPolicy(
        control_tokens=ControlTokens(config.control_tokens),
        history=History(config.history),
        train_on=TrainOn(config.train_on),
        allow=frozenset(config.allow),
        reasoning=Part(config.reasoning),
        tool_calls=Part(config.tool_calls),
        merge_consecutive=config.merge_consecutive,
        mask=Mask(config.mask),
    )
    engine = ReferenceEngine(model.tokenizer_json)
    stop_ids = frozenset(model.stop_ids)

    def compile_row(conversation: Conversation) -> CompiledRow:
        template = templates.for_tools(conversation.tools)
        kwargs = {**config.template_kwargs, **conversation.template_kwargs}
        rendered = render(replace(conversation, template_kwargs=kwargs), template=template, policy=policy)
        documents = encode(rendered.samples, engine=engine, stop_ids=stop_ids)
        return CompiledRow(tuple(documents), rendered.classes, _remarks(rendered, documents))

    return compile_row


def _remarks(rendered: RenderedConversation, documents: Sequence[Document]) -> Mapping[str, int]:
    """The render's remarks, and how many turns have a document of their own because a token straddles its border."""
    straddled = len(documents) - len(rendered.samples)
    return {**rendered.remarks, **({"border-straddled": straddled} if straddled > 0 else {})}
