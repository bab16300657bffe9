"""One run of a template on symbols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jinja2

from sftprep.data import Json
from sftprep.templates.environment import TracingEnvironment
from sftprep.templates.runs import Run
from sftprep.templates.symbolic_environment import Marks
from sftprep.templates.symbolic_layout import Reads, WatchedMessages
from sftprep.templates.symbolic_session import SymbolicSession
from sftprep.templates.symbols import OpaqueError
from sftprep.templates.template import GENERATION_PROMPT, raised
from sftprep.templates.trace import TracedStr

Symbolic = tuple[TracingEnvironment, Marks, jinja2.Template]
"""The environment of symbolic renders, its marks, and the template as it is compiled for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a template is given beside the messages, and whether it looks at tools at all."""

    special_tokens: Mapping[str, str]
    kwargs: Mapping[str, Json]
    prompt: bool
    shows_tools: bool


def run_symbolic(session: SymbolicSession, symbolic: Symbolic, size: int, given: Given) -> TracedStr:
    """The symbolic text of the first messages.

    Raises:
        TemplateError: `template-raised`, in the template's own words.
        OpaqueError: it does what symbols cannot follow.
    """
    environment, marks, compiled = symbolic
    tracer = session.tracer
    environment.tracer = tracer
    marks.found = []
    tracer.stamp, tracer.loops, tracer.rendering = -1, [], True
    tracer.reads = Reads()
    messages = WatchedMessages(session.wrapped[:size], tracer.reads)
    arguments = {key: _argument(session, key, value) for key, value in given.kwargs.items()}
    arguments = {**given.special_tokens, **arguments, GENERATION_PROMPT: given.prompt}
    tools = session.tools if given.shows_tools else None
    try:
        text = compiled.render(messages=messages, tools=tools, documents=None, **arguments)
    except jinja2.TemplateError as error:
        # A field that is handed to what raises is opaque: the words are the template's own.
        raise raised(str(error) or type(error).__name__) from error
    except Exception as error:
        # This is what symbols cannot do; or the texts of the messages refuse it, which says nothing of others.
        raise OpaqueError(f"{type(error).__name__}: {error}") from error
    finally:
        tracer.rendering = False
    return text if isinstance(text, TracedStr) else tracer.literal(text)


def _argument(session: SymbolicSession, name: str, value: Json) -> Json:
    """A keyword argument of the template: its text is a source, and the same for all that have it."""
    if isinstance(value, (dict, list)):
        raise OpaqueError("an argument of the template is no plain value")
    if not isinstance(value, str):
        return value
    source = session.constant(-1, (name,), value)
    return TracedStr.of(session.tracer, value, (Run(len(value), source, 0),) if value else ())
