"""One conversation to its documents: the stages from row to tokens, joined once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sftprep.config.pack import PackConfig
from sftprep.data import Conversation, Document
from sftprep.engines.model import ModelFiles
from sftprep.engines.reference import ReferenceEngine
from sftprep.stages.encode import encode
from sftprep.stages.render import render
from sftprep.templates.policy import ControlTokens, History, RenderPolicy, TrainOn
from sftprep.templates.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class CompiledRow:
    """The documents of one row; `classes` counts its trained turns by class."""

    documents: tuple[Document, ...]
    classes: Mapping[str, int]


CompileRow = Callable[[Conversation], CompiledRow]
"""Raises MaskError or TemplateError where the row cannot be exact."""


def compiler(model: ModelFiles, config: PackConfig) -> CompileRow:
    """Render with the model's own template, encode with its own tokenizer.

    Raises:
        TemplateError: `template-syntax`.
    """
    template = ChatTemplate(
        model.template,
        special_tokens=model.special_tokens,
        stop_tokens=model.stop_tokens,
        control_tokens=model.control_tokens,
        now=config.now,
    )
    policy = RenderPolicy(
        control_tokens=ControlTokens(config.control_tokens),
        history=History(config.history),
        train_on=TrainOn(config.train_on),
        allow=frozenset(config.allow),
    )
    engine = ReferenceEngine(model)
    stop_ids = frozenset(model.stop_ids)

    def compile_row(conversation: Conversation) -> CompiledRow:
        kwargs = {**config.template_kwargs, **conversation.template_kwargs}
        rendered = render(replace(conversation, template_kwargs=kwargs), template=template, policy=policy)
        documents = encode(rendered.samples, engine=engine, stop_ids=stop_ids)
        return CompiledRow(documents=tuple(documents), classes=rendered.classes)

    return compile_row
