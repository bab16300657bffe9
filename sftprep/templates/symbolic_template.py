"""A chat template that renders symbolically, and remembers what it wrote for a shape of messages and for which answers.

The texts of a conversation's beginnings are those of any other with the same beginnings, so that a new shape is
mostly texts that are known.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

from sftprep.data import Json
from sftprep.errors import TemplateError
from sftprep.templates.shape import shape_of
from sftprep.templates.symbolic_beginnings import Path
from sftprep.templates.symbolic_environment import symbolic_environment
from sftprep.templates.symbolic_layout import Layout
from sftprep.templates.symbolic_passes import Joined, PassBook, TurnMemory
from sftprep.templates.symbolic_run import Given, Symbolic, run_symbolic
from sftprep.templates.symbolic_session import SymbolicSession
from sftprep.templates.symbolic_texts import Body, Builder, Piece, bodies, count_at, ends_of, pieces_of
from sftprep.templates.symbolic_tracer import SymbolicTracer
from sftprep.templates.symbols import OpaqueError
from sftprep.templates.template import GENERATION_PROMPT, ChatTemplate, Request, TracedText
from sftprep.templates.trace import TracedStr

_MAX_ANSWERS: Final = 32
"""Ways through the template that one shape of messages may have; a shape with more is never planned."""
_MAX_SHAPES: Final = 4096
"""Shapes that are remembered: a run sees any number of them, and its memory stays bounded."""


class SymbolicTemplate(ChatTemplate):
    """Renders the messages of the conversation that it is told to be at; others as `ChatTemplate` does."""

    _session: SymbolicSession | None = None
    path: Path | None = None
    """What is known of the conversation that it is told to be at; None where nothing is to be known again."""
    _shape: tuple[Hashable, ...] = ()
    _builders: dict[int, Builder]
    _joined: dict[str, Joined | None]
    """The conversation as it is put together, by its arguments; None where it is not."""
    _is_forward = True
    """Whether no render has read of a message what comes after it, so that one tells the texts of all beginnings."""

    @functools.cached_property
    def _symbolic(self) -> Symbolic:
        """The environment of symbolic renders, its marks, and the template as it is compiled for it."""
        environment, marks = symbolic_environment(self.now)
        return environment, marks, environment.from_string(self.text)

    @functools.cached_property
    def _known(self) -> dict[Hashable, list[Body]]:
        """What was rendered: for the shape of some messages and the arguments, the ways through."""
        return {}

    @functools.cached_property
    def turns(self) -> TurnMemory:
        """What was found of turns, by all that decides it."""
        return {}

    @functools.cached_property
    def _passes(self) -> PassBook | None:
        """The passes of the loop that are known; None where one may decide what the next one writes."""
        layout = self._layout
        return PassBook(layout.by_number) if layout is not None and layout.repeats else None

    @functools.cached_property
    def _endings(self) -> dict[str, list[Piece]]:
        """What was rendered behind any messages, by the arguments that the ending reads."""
        return {}

    @property
    def has_passes(self) -> bool:
        """Whether turns are found again by the passes of a loop that write them."""
        return self._passes is not None

    def at(
        self, messages: Sequence[Mapping[str, Json]], tools: Sequence[Json] | None, *, path: Path | None = None
    ) -> SymbolicTracer:
        """Render these messages, whose path is given, symbolically now; the tracer notes what is asked of them."""
        self._session = SymbolicSession(messages, tools)
        self.path = path
        if path is not None:
            path.begin(self._session.tracer)
        self._environment.written = {}
        self._builders, self._joined = {}, {}
        self._shape = shape_of(messages)
        return self._session.tracer

    def leave(self) -> None:
        """Render as `ChatTemplate` does from now on."""
        if self._session is not None:
            self._session.tracer.forget_texts()
        self._session = self._environment.written = self.path = None
        self._builders, self._joined = {}, {}

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
        joined = self.joined(request)
        if joined is not None and joined.first < size:
            return joined.text(size, self._ending(size, request, prompt=prompt))
        body = self._body(size, request, prompt=prompt)
        if body.error is not None:
            raise body.error
        if body.pieces is None:
            raise OpaqueError("the template looks into a text")
        ending = self._ending(size, request, prompt=prompt)
        builder = self._builders.setdefault(id(body.pieces), Builder(session, body.pieces))
        return builder.text(body.count, ending)

    def joined(self, request: Request) -> Joined | None:
        """The conversation put together from passes that are known, which is what a server renders of it."""
        if self._passes is None:
            return None
        key = self._early_arguments(request)
        if key not in self._joined:
            made = self._put_together(request, self._passes)
            self._joined[key] = made if made is not None and self._is_rendered(made, request) else None
        return self._joined[key]

    def _is_rendered(self, made: Joined, request: Request) -> bool:
        """Whether a server renders what was put together."""
        whole = len(self._shape)
        expected = self._plainly(whole, request, prompt=False)
        text = made.text(whole, self._ending(whole, request, prompt=False))
        if isinstance(expected, str) and expected != str.__str__(text):
            self._passes = None  # something else decides what a pass writes: nothing is put together any more
            return False
        return isinstance(expected, str)

    def _put_together(self, request: Request, book: PassBook) -> Joined | None:
        session, whole = self._current(), len(self._shape)
        for first in book.firsts:
            head = self._found(first + 1, request, prompt=False) if first + 1 < whole else None
            passes = [] if head is None else list(book.find(session, head, self._shape, first))
            made = [one for one in passes if one is not None]
            if head is not None and len(made) == len(passes):
                return Joined(session, head, made, first)
        return None

    def _body(self, size: int, request: Request, *, prompt: bool) -> Body:
        """What the template writes of the first messages before its ending; of all of it where that is not known."""
        if len(self._known) >= _MAX_SHAPES:
            self._known.clear()  # what is forgotten is rendered again where it is needed
            if self._passes is not None:
                del self._passes  # its passes follow on what is forgotten
        found = self._found(size, request, prompt=prompt)
        whole = len(self._current().messages)
        if found is None and self._is_forward and self._layout is not None and size < whole:
            told = self._render(whole, request, prompt=False)
            found = self._found(size, request, prompt=prompt)
            self._is_forward = found is not None or told.pieces is None
        if found is None:
            found = self._render(size, request, prompt=prompt)
        return found

    def _found(self, size: int, request: Request, *, prompt: bool) -> Body | None:
        known = self._known.get(self._key(size, request, prompt=prompt), ())
        session = self._current()
        return next((body for body in known if session.agrees(body.guards)), None)

    def _key(self, size: int, request: Request, *, prompt: bool) -> Hashable:
        """All that decides a body: where the ending is known, only the arguments that are read before it."""
        num_tools = self._current().num_tools if self._reads_tools else None
        return self._shape[:size], num_tools, self._early_arguments(request), prompt and self._layout is None

    def _early_arguments(self, request: Request) -> str:
        kwargs = request.kwargs or {}
        if self._layout is not None:
            kwargs = {name: value for name, value in kwargs.items() if name in self._layout.before}
        return _as_key(kwargs)

    @functools.cached_property
    def _layout(self) -> Layout | None:
        return self._symbolic[1].layout

    @functools.cached_property
    def _reads_tools(self) -> bool:
        return self._layout is None or "tools" in self._layout.before

    def _ending(self, size: int, request: Request, *, prompt: bool) -> Sequence[Piece]:
        if self._layout is None:
            return ()
        kwargs = {name: value for name, value in (request.kwargs or {}).items() if name in self._layout.ending}
        key = _as_key({**kwargs, GENERATION_PROMPT: prompt})
        if key not in self._endings:
            self._render(size, request, prompt=prompt)
        if key not in self._endings:
            raise OpaqueError("the template does not come to its ending")
        return self._endings[key]

    def _current(self) -> SymbolicSession:
        if self._session is None:
            raise AssertionError("no conversation is rendered symbolically")
        return self._session

    def _render(self, size: int, request: Request, *, prompt: bool) -> Body:
        """Render the first messages, and remember what that tells of them and of their beginnings.

        The guards of this render are the conversation's as well.
        """
        tracer = self._current().tracer
        expected = self._plainly(size, request, prompt=prompt)
        guards, tracer.guards = tracer.guards, {}
        asked, tracer.asked = tracer.asked, {}
        error, found = None, {}
        try:
            text = self._run_symbolic(size, request, prompt=prompt)
            found = self._told(text, size, request, prompt=prompt) if str.__str__(text) == expected else {}
        except TemplateError as refused:
            error = refused if isinstance(expected, TemplateError) and refused.message == expected.message else None
        except OpaqueError:
            pass
        finally:
            own, tracer.guards = tracer.guards, {**guards, **tracer.guards}
            tracer.asked = {**asked, **own}
        body = found.setdefault(size, Body(own, error=error))
        for number, told in found.items():
            known = self._known.setdefault(self._key(number, request, prompt=prompt), [])
            if number == size or not known:
                known.append(told)
            if len(known) > _MAX_ANSWERS:
                raise OpaqueError("the shape has too many ways through the template")
        self._learn(body, request)
        return body

    def _learn(self, body: Body, request: Request) -> None:
        """Remember the passes of the render that a body is from."""
        if self._passes is None or body.pieces is None or not body.ends:
            return
        first = body.ends[0][1]
        head = self._found(first.message + 1, request, prompt=False) if first.has_read == first.message else None
        if head is not None and head.pieces is not None:
            self._passes.learn(head, self._shape, body.pieces, body.ends)
            self._joined.pop(self._early_arguments(request), None)

    def _told(self, text: TracedStr, size: int, request: Request, *, prompt: bool) -> dict[int, Body]:
        """The bodies that one text tells, by the number of messages; and its ending, which is remembered."""
        session, layout = self._current(), self._layout
        guards = session.tracer.guards
        pieces = pieces_of(session, text)
        if layout is None:
            return {size: Body(guards, pieces, len(pieces))}
        marks = self._symbolic[1].found
        position = next((position for position, mark in marks if mark.message == -1), -1)
        count = count_at(text, position)
        kwargs = {name: value for name, value in (request.kwargs or {}).items() if name in layout.ending}
        self._endings[_as_key({**kwargs, GENERATION_PROMPT: prompt})] = pieces[count:]
        ends = ends_of(text, marks)
        return {**dict(bodies(pieces, guards, ends)), size: Body(guards, pieces, count, ends=ends)}

    def _plainly(self, size: int, request: Request, *, prompt: bool) -> str | TemplateError:
        """What a server renders of the first messages, or the template's refusal."""
        try:
            return super().render(self._current().messages[:size], request, prompt=prompt)
        except TemplateError as error:
            return error

    def _run_symbolic(self, size: int, request: Request, *, prompt: bool) -> TracedStr:
        given = Given(
            special_tokens=self.special_tokens,
            kwargs=request.kwargs or {},
            prompt=prompt,
            shows_tools=self._reads_tools,
        )
        return run_symbolic(self._current(), self._symbolic, size, given)


def _as_key(kwargs: Mapping[str, Json] | None) -> str:
    return json.dumps(kwargs, sort_keys=True) if kwargs else "{}"
