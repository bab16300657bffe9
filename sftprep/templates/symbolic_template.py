"""A chat template that renders symbolically, and remembers what it wrote for a shape of messages and for which answers.

The texts of a conversation's beginnings are those of any other with the same beginnings, so that a new shape is
mostly texts that are known.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jinja2

from sftprep.data import Json
from sftprep.errors import TemplateError
from sftprep.templates.environment import TracingEnvironment
from sftprep.templates.runs import Run
from sftprep.templates.shape import shape_of
from sftprep.templates.symbolic_environment import symbolic_environment
from sftprep.templates.symbolic_session import Keys, SymbolicSession
from sftprep.templates.symbolic_tracer import SymbolicTracer
from sftprep.templates.symbols import Field, Guard, OpaqueError
from sftprep.templates.template import GENERATION_PROMPT, ChatTemplate, Request, TracedText, raised
from sftprep.templates.trace import TracedStr

_MAX_ANSWERS: Final = 32
"""Ways through the template that one shape of messages may have; a shape with more is never planned."""


_MAX_SHAPES: Final = 4096
"""Shapes that are remembered: a run sees any number of them, and its memory stays bounded."""


class _Constant(NamedTuple):
    """A run that is the same for all: of the template (`source` < 0), or of a text that is part of the shape."""

    text: str
    source: int
    message: int = -1
    keys: Keys = ()
    offset: int = 0
    whole: str = ""


@dataclass(frozen=True, slots=True)
class _Text:
    """What the template writes where the guards have these answers, or raises; neither where that is opaque."""

    guards: Mapping[Guard, Any]
    pieces: Sequence[Field | _Constant] | None
    error: TemplateError | None = None


class SymbolicTemplate(ChatTemplate):
    """Renders the messages of the conversation that it is told to be at; others as `ChatTemplate` does."""

    _session: SymbolicSession | None = None
    _shape: tuple[Hashable, ...] = ()

    @functools.cached_property
    def _symbolic(self) -> tuple[TracingEnvironment, jinja2.Template]:
        """The environment of symbolic renders, and the template as it is compiled for it."""
        environment = symbolic_environment(self.now)
        return environment, environment.from_string(self.text)

    @functools.cached_property
    def _known(self) -> dict[Hashable, list[_Text]]:
        """What was rendered: for the shape of some messages, the arguments and the prompt, the ways through."""
        return {}

    def at(self, messages: Sequence[Mapping[str, Json]], tools: Sequence[Json] | None) -> SymbolicTracer:
        """Render these messages symbolically from now on; the tracer notes what is asked of them."""
        self._session = SymbolicSession(messages, tools)
        self._shape = shape_of(messages)
        return self._session.tracer

    def leave(self) -> None:
        """Render as `ChatTemplate` does from now on."""
        self._session = None

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        request: Request,
        *,
        prompt: bool,
        marks: tuple[str, str] | None = None,
    ) -> str:
        """The text, symbolic where the messages are a beginning of the conversation."""
        if self._session is None or marks is not None or not self._is_beginning(messages):
            return super().render(messages, request, prompt=prompt, marks=marks)
        return self._text(len(messages), request, prompt=prompt)

    def trace(self, messages: Sequence[Mapping[str, Json]], request: Request, *, prompt: bool) -> TracedText:
        """The text and its runs. OpaqueError where they say nothing of other conversations of the shape."""
        if self._session is None:
            return super().trace(messages, request, prompt=prompt)
        if not self._is_beginning(messages):
            raise OpaqueError("messages are rendered that the conversation does not have")
        text = self._text(len(messages), request, prompt=prompt)
        return TracedText(text=text, runs=text.runs, sources=self._session.tracer.sources)

    def _is_beginning(self, messages: Sequence[Mapping[str, Json]]) -> bool:
        own = self._session.messages if self._session is not None else ()
        return len(messages) <= len(own) and all(a is b or a == b for a, b in zip(messages, own, strict=False))

    def _text(self, size: int, request: Request, *, prompt: bool) -> TracedStr:
        session = self._current()
        key = (self._shape[:size], session.tools is not None and len(session.tools), _as_key(request.kwargs), prompt)
        if len(self._known) >= _MAX_SHAPES:
            self._known.clear()  # what is forgotten is rendered again where it is needed
        known = self._known.setdefault(key, [])
        found = next((text for text in known if session.agrees(text.guards)), None)
        if found is None:
            if len(known) >= _MAX_ANSWERS:
                raise OpaqueError("the shape has too many ways through the template")
            found = self._rendered(size, request, prompt=prompt)
            known.append(found)
        if found.error is not None:
            raise found.error
        if found.pieces is None:
            raise OpaqueError("the template looks into a text")
        return _built(session, found.pieces)

    def _current(self) -> SymbolicSession:
        if self._session is None:
            raise AssertionError("no conversation is rendered symbolically")
        return self._session

    def _rendered(self, size: int, request: Request, *, prompt: bool) -> _Text:
        """Render the first messages, with the guards of this render alone; they are the conversation's as well."""
        session = self._current()
        tracer = session.tracer
        expected = self._plainly(size, request, prompt=prompt)
        asked, tracer.guards = tracer.guards, {}
        pieces, error = None, None
        try:
            text = self._run_symbolic(size, request, prompt=prompt)
            pieces = _pieces(session, text) if str.__str__(text) == expected else None
        except TemplateError as refused:
            error = refused if isinstance(expected, TemplateError) and refused.message == expected.message else None
        except OpaqueError:
            pass
        finally:
            own, tracer.guards = tracer.guards, {**asked, **tracer.guards}
        return _Text(own, pieces, error)

    def _plainly(self, size: int, request: Request, *, prompt: bool) -> str | TemplateError:
        """What a server renders of the first messages, or the template's refusal."""
        try:
            return super().render(self._current().messages[:size], request, prompt=prompt)
        except TemplateError as error:
            return error

    def _run_symbolic(self, size: int, request: Request, *, prompt: bool) -> TracedStr:
        session = self._current()
        tracer = session.tracer
        environment, compiled = self._symbolic
        environment.tracer = tracer
        tracer.stamp, tracer.loops, tracer.rendering = -1, [], True
        arguments = {key: _argument(session, key, value) for key, value in (request.kwargs or {}).items()}
        arguments = {**self.special_tokens, **arguments, GENERATION_PROMPT: prompt}
        try:
            text = compiled.render(messages=session.wrapped[:size], tools=session.tools, documents=None, **arguments)
        except jinja2.TemplateError as error:
            # A field that is handed to what raises is opaque: the words are the template's own.
            raise raised(str(error) or type(error).__name__) from error
        except Exception as error:
            # This is what symbols cannot do; or the texts of the messages refuse it, which says nothing of others.
            raise OpaqueError(f"{type(error).__name__}: {error}") from error
        finally:
            tracer.rendering = False
        return text if isinstance(text, TracedStr) else tracer.literal(text)


def _as_key(kwargs: Mapping[str, Json] | None) -> str:
    return json.dumps(kwargs or {}, sort_keys=True)


def _argument(session: SymbolicSession, name: str, value: Json) -> Json:
    """A keyword argument of the template: its text is a source, and the same for all that have it."""
    if isinstance(value, (dict, list)):
        raise OpaqueError("an argument of the template is no plain value")
    if not isinstance(value, str):
        return value
    source = session.constant(-1, (name,), value)
    return TracedStr.of(session.tracer, value, (Run(len(value), source, 0),) if value else ())


def _pieces(session: SymbolicSession, text: TracedStr) -> list[Field | _Constant]:
    tracer = session.tracer
    pieces: list[Field | _Constant] = []
    position = 0
    for run in text.runs:
        shown = str.__getitem__(text, slice(position, position + run.length))
        position += run.length
        if tracer.is_symbol(run):
            if run.offset != 0 or run.length != len(tracer.sources[run.source].text):
                raise OpaqueError("a part of a field is written")
            pieces.append(tracer.fields[run.source])
        elif run.source < 0:
            pieces.append(_Constant(shown, run.source))
        else:
            message, keys = session.keys_of(run.source)
            pieces.append(_Constant(shown, 0, message, keys, run.offset, tracer.sources[run.source].text))
    return pieces


def _built(session: SymbolicSession, pieces: Sequence[Field | _Constant]) -> TracedStr:
    texts: list[str] = []
    runs: list[Run] = []
    for piece in pieces:
        if isinstance(piece, Field):
            source = session.source_of(piece)
            text = session.tracer.sources[source].text
            runs.append(Run(len(text), source, 0))
        else:
            text = piece.text
            source = piece.source if piece.source < 0 else session.constant(piece.message, piece.keys, piece.whole)
            runs.append(Run(len(text), source, piece.offset))
        texts.append(text)
    return TracedStr.of(session.tracer, "".join(texts), tuple(runs))
