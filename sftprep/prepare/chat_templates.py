"""The templates of a model, and which one a row goes through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sftprep.data import Json
from sftprep.engines.model import ModelFiles
from sftprep.templates.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """`default` renders every row, but those with tools where the model has a template of their own."""

    default: ChatTemplate
    tool_use: ChatTemplate | None

    @classmethod
    def of(cls, model: ModelFiles, now: datetime) -> ChatTemplates:
        """Compile them. TemplateError `template-syntax`."""
        texts = (model.template, model.tool_template)
        default, tool_use = (None if text is None else _compiled(text, model, now) for text in texts)
        if default is None:
            raise AssertionError("a model has a template")
        return cls(default, tool_use)

    def for_tools(self, tools: Sequence[Json] | None) -> ChatTemplate:
        """The template that a server takes for a request with these tools, as transformers and vLLM choose it."""
        return self.tool_use if tools is not None and self.tool_use is not None else self.default


def _compiled(text: str, model: ModelFiles, now: datetime) -> ChatTemplate:
    return ChatTemplate(
        text,
        special_tokens=model.special_tokens,
        stop_tokens=model.stop_tokens,
        control_tokens=model.control_tokens,
        now=now,
    )
