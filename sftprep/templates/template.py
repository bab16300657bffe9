"""A chat template, compiled twice: to render what a server renders, and to say who wrote each character of it."""

from __future__ import annotations

import functools
import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import CodeType
from typing import Final, NamedTuple

import jinja2
import jinja2.meta
from jinja2 import nodes

from sftprep.data import Json
from sftprep.errors import TemplateError, TemplateLimitError
from sftprep.templates.environment import TracingEnvironment
from sftprep.templates.limits import Meter, RenderLimitError
from sftprep.templates.runs import Run, Source, new_tuple
from sftprep.templates.sandbox import MeteredEnvironment
from sftprep.templates.trace import TracedStr, Tracer
from sftprep.templates.values import normalise_messages, size_of, wrap, wrap_messages

_GENERATION: Final = re.compile(r"\{%[-+]?\s*generation\b")
GENERATION_PROMPT: Final = "add_generation_prompt"


@dataclass(frozen=True, slots=True)
class Request:
    """What one call of the template is given, apart from the messages: the same for a prompt and for the full text."""

    tools: Sequence[Json] | None = None
    kwargs: Mapping[str, Json] | None = None

    def with_kwargs(self, more: Mapping[str, Json]) -> Request:
        """The same request with some keyword arguments set."""
        return Request(tools=self.tools, kwargs={**(self.kwargs or {}), **more})


class Placed(NamedTuple):
    """A run and the positions `[start, stop)` of its characters in the text."""

    start: int
    stop: int
    run: Run


@dataclass(frozen=True)
class TracedText:
    """A rendered text, the runs that cover it, and the sources that they name."""

    text: str
    runs: tuple[Run, ...]
    sources: Sequence[Source]

    @functools.cached_property
    def placed(self) -> list[Placed]:
        """The runs with their positions."""
        stops = list(itertools.accumulate([run.length for run in self.runs]))
        return [new_tuple(Placed, at) for at in zip([0, *stops], stops, self.runs, strict=False)]

    @functools.cached_property
    def of_message(self) -> Mapping[int, Sequence[Placed]]:
        """The runs of each message's own fields; of tools and arguments under -1."""
        found: dict[int, list[Placed]] = {}
        for at in self.placed:
            if at.run.source >= 0:
                found.setdefault(self.sources[at.run.source].message, []).append(at)
        return found

    @functools.cached_property
    def _starts(self) -> list[int]:
        return [at.start for at in self.placed]

    def within(self, start: int, stop: int) -> Iterator[Placed]:
        """The runs of which a character is in `[start, stop)`, in order."""
        placed = self.placed
        for number in range(max(bisect_right(self._starts, start) - 1, 0), len(placed)):
            at = placed[number]
            if at.start >= stop:
                break
            if at.stop > start:
                yield at

    def forget_places(self) -> None:
        """Let go of what is found again of the runs where it is asked for."""
        for name in ("placed", "of_message", "_starts"):
            self.__dict__.pop(name, None)

    def before(self, position: int) -> Iterator[Placed]:
        """The runs that begin before a position, the last one first."""
        return map(self.placed.__getitem__, range(bisect_left(self._starts, position) - 1, -1, -1))


class ChatTemplate:
    """The model's own template, unmodified.

    `special_tokens` is what the template sees (`bos_token` …); `stop_tokens` are the texts that end a completion;
    `control_tokens` are the texts that no content may hold; `now` is the moment that `strftime_now` shows.

    Raises:
        TemplateError: `template-syntax` when it does not compile.
    """

    def __init__(
        self,
        text: str,
        *,
        special_tokens: Mapping[str, str],
        stop_tokens: Sequence[str],
        control_tokens: Sequence[str] = (),
        now: datetime,
    ) -> None:
        self.text = text
        self.special_tokens = dict(special_tokens)
        self.stop_tokens = tuple(stop_tokens)
        self.control_tokens = tuple(control_tokens)
        self.now = now
        self._environment = MeteredEnvironment(now)
        self._tracing = TracingEnvironment(now)
        try:
            code, self.variables = _compiled(text)
        except jinja2.TemplateSyntaxError as error:
            raise _does_not_compile(error.message or "", f"chat_template:{error.lineno}") from error
        except (RecursionError, MemoryError, SyntaxError) as error:
            raise _too_deep(error) from error
        globals_ = self._environment.make_globals(None)
        self._plain = jinja2.Template.from_code(self._environment, code, globals_)

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        request: Request,
        *,
        prompt: bool,
        marks: tuple[str, str] | None = None,
    ) -> str:
        """The text that a server renders; with `prompt`, the generation prompt is added.

        `marks` are written before and after the text of each generation block, which no server does.

        Raises:
            TemplateError: `template-raised` when the template refuses the messages.
            TemplateLimitError: `template-limit`.
        """
        self._environment.generation_marks = marks
        return self._run(
            self._plain, normalise_messages(messages), request.tools, self._arguments(request, prompt=prompt)
        )

    def trace(self, messages: Sequence[Mapping[str, Json]], request: Request, *, prompt: bool) -> TracedText:
        """The same text with the writer of every character.

        Raises:
            TemplateError: `template-raised`, or `trace-differs` when the traced text is not the rendered one.
        """
        tracer = Tracer()
        self._tracing.tracer = tracer
        wrapped = wrap_messages(tracer, normalise_messages(messages))
        tools = None if request.tools is None else wrap(tracer, -1, "/tools", request.tools)
        arguments = {key: wrap(tracer, -1, f"/{key}", value) for key, value in (request.kwargs or {}).items()}
        text = self._run(self._traced, wrapped, tools, {**self.special_tokens, **arguments, GENERATION_PROMPT: prompt})
        if not isinstance(text, TracedStr):
            text = tracer.literal(text)
        expected = self.render(messages, request, prompt=prompt)
        if text != expected:
            raise TemplateError("the traced text is not the rendered one", code="trace-differs", place="chat_template")
        return TracedText(text=str.__str__(expected), runs=text.runs, sources=tracer.sources)

    def _arguments(self, request: Request, *, prompt: bool) -> dict[str, Json]:
        return {**self.special_tokens, **(request.kwargs or {}), GENERATION_PROMPT: prompt}

    def _run(
        self,
        compiled: jinja2.Template,
        messages: list[dict[str, Json]],
        tools: Sequence[Json] | None,
        arguments: Mapping[str, Json],
    ) -> str:
        self._environment.meter = self._tracing.meter = Meter(
            lambda: (size_of(messages) + size_of(tools) + size_of(arguments)) * (1 + len(messages))
        )
        try:
            return compiled.render(messages=messages, tools=tools, documents=None, **arguments)
        except RenderLimitError as error:
            raise TemplateLimitError(
                f"the chat template is refused: {error}",
                code="template-limit",
                place="chat_template",
                hint="no conversation explains that; look what the template does before you trust it",
            ) from error
        except RecursionError as error:
            raise raised("it calls itself without end") from error
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise raised(str(error) or type(error).__name__) from error

    @functools.cached_property
    def _traced(self) -> jinja2.Template:
        """Compiled when it is first asked for: replayed rows do without."""
        try:
            return self._tracing.from_string(self.text)
        except (RecursionError, MemoryError, SyntaxError) as error:
            raise _too_deep(error) from error

    @functools.cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches any control token, longer ones first."""
        return _any_of(self.control_tokens)

    @functools.cached_property
    def stop_pattern(self) -> re.Pattern[str]:
        """Matches any stop token, longer ones first."""
        return _any_of(self.stop_tokens)

    @functools.cached_property
    def has_generation_blocks(self) -> bool:
        """Whether the template marks what it takes for the model's text."""
        return _GENERATION.search(self.text) is not None

    @functools.cached_property
    def switches(self) -> tuple[tuple[str, Json], ...]:
        """The keyword arguments that change the prompt of a plain question, found by trying, in name order.

        Candidates are the variables that the template reads and nobody gives it, with true, false and the texts that
        the template compares them with. One that is printed is no switch.
        """
        given = {"messages", "tools", "documents", GENERATION_PROMPT, *self.special_tokens}
        names = sorted(self.variables - given - set(self._tracing.globals))
        texts = _compared_texts(self._environment.parse(self.text))
        question = [{"role": "user", "content": "x"}]
        found: list[tuple[str, Json]] = []
        for name, value in [(n, v) for n in names for v in (True, False, *texts.get(n, ()))]:
            try:
                default = self.render(question, Request(), prompt=True)
                switched = self.render(question, Request(kwargs={name: value}), prompt=True)
            except TemplateError:
                continue
            if switched != default and switched.count(str(value)) == default.count(str(value)):
                found.append((name, value))
        return tuple(found)


@functools.lru_cache(maxsize=4)
def _compiled(text: str) -> tuple[CodeType, frozenset[str]]:
    """A template's code, the same in every metered environment, and the variables that it reads.

    Kept, as a run makes a template several times: to see whether it compiles, for rows and for plans.
    """
    environment = MeteredEnvironment(datetime.min)  # which moment it is is asked when it runs
    tree = environment.parse(text)
    return environment.compile(tree), frozenset(jinja2.meta.find_undeclared_variables(tree))


_MAX_TEXTS: Final = 8


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))


def _compared_texts(tree: nodes.Template) -> dict[str, list[str]]:
    """The texts that each variable is compared with, a few at most."""
    found: dict[str, list[str]] = {}
    for node in tree.find_all(nodes.Compare):
        names = [name.name for name in node.find_all(nodes.Name)]
        texts = [const.value for const in node.find_all(nodes.Const) if isinstance(const.value, str)]
        for name in names:
            found[name] = list(dict.fromkeys([*found.get(name, ()), *texts]))[:_MAX_TEXTS]
    return found


def _too_deep(error: BaseException) -> TemplateError:
    return _does_not_compile(f"it is nested too deeply ({type(error).__name__})", "chat_template")


def _does_not_compile(what: str, place: str) -> TemplateError:
    return TemplateError(
        f"the chat template does not compile: {what}",
        code="template-syntax",
        place=place,
        hint="the template is used as it is; fix the model's chat_template.jinja",
    )


def raised(what: str) -> TemplateError:
    """The error of a template that refuses the messages."""
    return TemplateError(
        f"the chat template refused the messages: {what}",
        code="template-raised",
        hint="the template demands another order of roles, or a field that this row lacks",
    )
