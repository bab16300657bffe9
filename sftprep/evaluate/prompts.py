"""The ids that a model is asked with: rendered as for packing, and proven equal to those of transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from sftprep.config.places import shown
from sftprep.data import Conversation
from sftprep.engines.model import ModelFiles
from sftprep.engines.reference import ReferenceEngine
from sftprep.errors import MaskError, TemplateError
from sftprep.prepare.chat_templates import ChatTemplates
from sftprep.templates.adapt import adapt_messages, probe_form
from sftprep.templates.control import refuse_control_tokens, refuse_formed_tokens
from sftprep.templates.template import ChatTemplate, Request

OTHER_IDS: Final = (
    "the model's tokenizer files do not agree with each other: save them again with transformers; "
    "before 5.22 it reads some (DeepSeek-V3's) otherwise than they are: upgrade it"
)
"""What to do where transformers makes other ids of a model's files."""


def prompt_ids(
    model: ModelFiles, directory: Path, conversations: Sequence[Conversation], *, now: datetime
) -> list[list[int]]:
    """The ids of each conversation with the generation prompt.

    Raises:
        TemplateError: `template-raised`, `template-syntax`.
        MaskError: `prompt-differs` where transformers would send other ids; `control-token`.
    """
    templates = ChatTemplates.of(model, now, ChatTemplate)
    engine = ReferenceEngine(model.tokenizer_json)
    served = _opened_by_transformers(directory)
    found = []
    for conversation in conversations:
        template = templates.for_tools(conversation.tools)
        if template.control_tokens:
            refuse_control_tokens(conversation, template.control_pattern)
        messages = adapt_messages(conversation.messages, probe_form(template))
        request = Request(tools=conversation.tools, kwargs=conversation.template_kwargs)
        try:
            traced = template.trace(messages, request, prompt=True)
        except TemplateError as error:
            raise TemplateError(
                error.message, code=error.code, place=str(conversation.address), hint=error.hint
            ) from error
        if template.control_tokens:
            refuse_formed_tokens(traced, template.control_pattern)
        ids = [int(i) for i in engine.encode([traced.text])[0].ids]
        if ids != _served(served, messages, conversation):
            raise MaskError(
                "transformers would send other ids for this conversation",
                code="prompt-differs",
                place=str(conversation.address),
                hint=OTHER_IDS,
            )
        found.append(ids)
    return found


def _opened_by_transformers(directory: Path) -> Any:
    """The tokenizer as a server has it; a path that is not UTF-8, which the library cannot open, is read by a link."""
    if shown(directory) == str(directory):
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    with tempfile.TemporaryDirectory(prefix="sftprep-model-") as folder:
        link = Path(folder) / "model"
        link.symlink_to(directory.absolute(), target_is_directory=True)
        return AutoTokenizer.from_pretrained(link, local_files_only=True)


def _served(tokenizer: Any, messages: Sequence[Any], conversation: Conversation) -> list[int]:
    ids = tokenizer.apply_chat_template(
        list(messages),
        tools=conversation.tools,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        **conversation.template_kwargs,
    )
    return [int(i) for i in ids]
