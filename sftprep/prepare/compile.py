"""One conversation to its documents: the stages from row to tokens, joined once."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sftprep.config.pack import PackConfig
from sftprep.config.places import is_remote
from sftprep.data import Conversation, Document, Engine
from sftprep.engines.fast import EngineChoice
from sftprep.engines.model import ModelFiles
from sftprep.engines.reference import ReferenceEngine
from sftprep.engines.token_bytes import token_table
from sftprep.engines.tokenizer import tokenizer_of
from sftprep.prepare.batch import BatchCompiler
from sftprep.prepare.chat_templates import ChatTemplates
from sftprep.prepare.plans import PlanBook
from sftprep.sources.paths import total_bytes
from sftprep.stages.encode import encode
from sftprep.stages.render import RenderedConversation, render
from sftprep.templates.policy import ControlTokens, History, Mask, Part, RenderPolicy, TrainOn
from sftprep.templates.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class CompiledRow:
    """The documents of one row; `classes` counts its trained turns by class, `remarks` what is worth knowing."""

    documents: tuple[Document, ...]
    classes: Mapping[str, int]
    remarks: Mapping[str, int]


CompileRow = Callable[[Conversation], CompiledRow]
"""Raises MaskError or TemplateError where the row cannot be exact."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """Compiles a row, and, where `batch` is there, many together that have a plan."""

    compile_row: CompileRow
    batch: BatchCompiler | None = None

    def __call__(self, conversation: Conversation) -> CompiledRow:
        """As CompileRow."""
        return self.compile_row(conversation)


def batch_compiler(model: ModelFiles, config: PackConfig) -> Compiler:
    """A compiler with plans, where the options and the tokenizer allow them.

    Raises:
        TemplateError: `template-syntax`.
    """
    tokenizer, parts = model.opened.take()
    if tokenizer is None:  # another process has it; what is read here once is enough for all of the following
        parts = json.loads(model.tokenizer_json)
        tokenizer = tokenizer_of(parts, model.tokenizer_json)
    reference = ReferenceEngine(model.tokenizer_json, tokenizer)
    compile_row = compiler(model, config, engine=reference)
    policy = _policy(config)
    table = token_table(model, parts) if config.plans and PlanBook.serves(policy) else None
    if table is None:
        return Compiler(compile_row)
    is_fast = config.tokenizer_engine == "auto"
    choice = EngineChoice(model, reference, fast=is_fast, expected=_expected_bytes(config))
    return Compiler(compile_row, BatchCompiler(PlanBook(model, config, policy), choice=choice, table=table))


def _expected_bytes(config: PackConfig) -> int:
    """Bytes of input that this process may expect as one of its workers; 0 where no file here says so."""
    paths = [spec.path for spec in config.inputs]
    total = None if any(map(is_remote, paths)) else total_bytes(paths)
    return (total or 0) // (config.workers or 1)


def compiler(model: ModelFiles, config: PackConfig, *, engine: Engine | None = None) -> CompileRow:
    """Render with the model's own template, encode with its own tokenizer, loaded where no `engine` has it already.

    Raises:
        TemplateError: `template-syntax`.
    """
    templates = ChatTemplates.of(model, config.now, ChatTemplate)
    policy = _policy(config)
    # Who only asks whether the template compiles does not wait for the tokenizer.
    loaded = functools.cache(lambda: ReferenceEngine(model.tokenizer_json) if engine is None else engine)
    stop_ids = frozenset(model.stop_ids)

    def compile_row(conversation: Conversation) -> CompiledRow:
        template = templates.for_tools(conversation.tools)
        kwargs = {**config.template_kwargs, **conversation.template_kwargs}
        rendered = render(replace(conversation, template_kwargs=kwargs), template=template, policy=policy)
        documents = encode(rendered.samples, engine=loaded(), stop_ids=stop_ids)
        return CompiledRow(tuple(documents), rendered.classes, _remarks(rendered, documents))

    return compile_row


def _policy(config: PackConfig) -> RenderPolicy:
    return RenderPolicy(
        control_tokens=ControlTokens(config.control_tokens),
        history=History(config.history),
        train_on=TrainOn(config.train_on),
        allow=frozenset(config.allow),
        reasoning=Part(config.reasoning),
        tool_calls=Part(config.tool_calls),
        merge_consecutive=config.merge_consecutive,
        mask=Mask(config.mask),
    )


def _remarks(rendered: RenderedConversation, documents: Sequence[Document]) -> Mapping[str, int]:
    """The render's remarks, and how many turns have a document of their own because a token straddles its border."""
    straddled = len(documents) - len(rendered.samples)
    return {**rendered.remarks, **({"border-straddled": straddled} if straddled > 0 else {})}
