"""The templates of a model, and which one a row goes through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from sftprep.data import Json
from sftprep.engines.model import ModelFiles
from sftprep.templates.template import ChatTemplate

Kind = TypeVar("Kind", bound=ChatTemplate)


@dataclass(frozen=True, slots=True)
class ChatTemplates(Generic[Kind]):
    """`default` renders every row, but those with tools where the model has a template of their own."""

    default: Kind
    tool_use: Kind | None

    @classmethod
    def of(cls, model: ModelFiles, now: datetime, kind: type[Kind]) -> ChatTemplates[Kind]:
        """Compile them. TemplateError `template-syntax`."""
        tool_use = None if model.tool_template is None else _compiled(kind, model.tool_template, model, now)
        return ChatTemplates(_compiled(kind, model.template, model, now), tool_use)

    def for_tools(self, tools: Sequence[Json] | None) -> Kind:
        """The template that a server takes for a request with these tools, as transformers and vLLM choose it."""
        return self.tool_use if tools is not None and self.tool_use is not None else self.default


def _compiled(make: type[Kind], text: str, model: ModelFiles, now: datetime) -> Kind:
    return make(
        text,
        special_tokens=model.special_tokens,
        stop_tokens=model.stop_tokens,
        control_tokens=model.control_tokens,
        now=now,
    )
