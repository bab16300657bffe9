"""The twin of the tracing environment for symbolic renders: what is not known to ask nothing of a text is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import jinja2.filters
from jinja2 import nodes
from jinja2.tests import TESTS

from sftprep.templates.environment import Mark, TracingEnvironment
from sftprep.templates.limits import Meter
from sftprep.templates.runs import Source
from sftprep.templates.symbolic_layout import Layout, marked
from sftprep.templates.symbolic_tracer import SymbolicTracer, mentions_symbol
from sftprep.templates.symbols import OpaqueError, Watched
from sftprep.templates.trace import TracedStr

_FILTERS: Final = frozenset(
    {"trim", "string", "safe", "default", "d", "list", "length", "count", "first", "last", "items", "reverse"}
    | {"map", "select", "selectattr", "reject", "rejectattr", "join"}
)
"""Filters that ask a text only by its own methods."""
_TESTS: Final = frozenset(
    {"defined", "undefined", "none", "string", "mapping", "number", "integer", "float", "boolean", "true", "false"}
    | {"callable", "eq", "==", "equalto", "ne", "!=", "sameas"}
)
"""Tests that ask for a type, or compare."""
_WALKABLE: Final = frozenset({"sequence", "iterable"})


class _Unmetered(Meter):
    """Counts nothing: the same render was metered before it was made symbolic."""

    def step(self, steps: int = 1) -> None:
        """Count nothing."""

    def charge(self, size: int) -> None:
        """Count nothing."""

    def made(self, value: object) -> None:
        """Count nothing."""

    def looked_through(self, value: object) -> None:
        """Count nothing."""

    def before_binop(self, operator: str, left: object, right: object) -> None:
        """Refuse nothing."""

    def before_format(self, template: str, values: object) -> None:
        """Refuse nothing."""

    def before_call(self, name: str, owner: object, args: Sequence[Any]) -> None:
        """Refuse nothing."""

    def before_filter(self, name: str, args: Sequence[Any]) -> None:
        """Refuse nothing."""


class Marks:
    """A `Marker` of symbolic renders: `found` are the marks of the last text, each with its position in it."""

    def __init__(self, environment: TracingEnvironment) -> None:
        self.environment = environment
        self.layout: Layout | None = None
        self.found: list[tuple[int, Mark]] = []

    def parsed(self, tree: nodes.Template) -> None:
        """Mark a template, and know its layout."""
        self.layout = marked(tree)

    def mark(self, items: Sequence[object]) -> Mark:
        """A pass of the loop over messages has ended, or the ending begins."""
        mark, tracer = Mark(), self.environment.tracer
        mark.message = tracer.messages.get(id(items[0]), -2) if items else -1
        if isinstance(tracer, SymbolicTracer):
            mark.num_guards, mark.has_read = len(tracer.guards), tracer.reads.last
            mark.asked, mark.seen = tracer.asked, tracer.reads.seen
            tracer.asked, tracer.reads.seen = {}, set()
        return mark

    def taken(self, pieces: Iterable[str]) -> list[str]:
        """The pieces of a text without its marks."""
        kept: list[str] = []
        position = 0
        for piece in pieces:
            if isinstance(piece, Mark):
                self.found.append((position, piece))
            else:
                kept.append(piece)
                position += str.__len__(piece)
        return kept


def symbolic_environment(now: datetime) -> tuple[TracingEnvironment, Marks]:
    """A tracing environment that is safe for symbols. OpaqueError where the template does what is not followed."""
    environment = TracingEnvironment(now)
    environment.marker = marks = Marks(environment)
    environment.meter = _Unmetered()
    own: dict[str, Callable[..., Any]] = {
        "tojson": _json_filter(environment),
        "join": environment.traced_join,
        "safe": lambda value: value,
    }
    for name, plain in jinja2.filters.FILTERS.items():
        environment.filters[name] = _guarded(own.get(name, plain), is_known=name in _FILTERS | own.keys())
    tests: Mapping[str, Any] = TESTS
    for name, test in tests.items():
        environment.tests[name] = _walkable(test) if name in _WALKABLE else _guarded(test, is_known=name in _TESTS)
    return environment, marks


def _json_filter(environment: TracingEnvironment) -> Callable[..., TracedStr]:
    def write(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> TracedStr:
        tracer = environment.tracer
        if not isinstance(tracer, SymbolicTracer):
            raise TypeError("a symbolic environment has a symbolic tracer")
        options = (ensure_ascii, indent, None if separators is None else tuple(separators), sort_keys)
        source = _source_of(value, tracer)
        if source is not None and _is_walked(value, tracer.sources[source]):
            raise OpaqueError("it writes JSON of a message's texts, of which none is then known to be there")
        if source is not None:
            return tracer.as_json(source, options)
        if mentions_symbol(value):
            raise OpaqueError("it writes JSON of fields that it put together")
        return environment.traced_json(value, ensure_ascii, indent, separators, sort_keys)

    return write


def _is_walked(value: Any, source: Source) -> bool:
    """Whether a value is a list or an object of a message that is no value to be printed whole: texts are in it."""
    return source.message >= 0 and isinstance(value, (dict, list)) and not isinstance(value, Watched)


def _source_of(value: Any, tracer: SymbolicTracer) -> int | None:
    if isinstance(value, TracedStr):
        return tracer.whole(value)
    return tracer.containers.get(id(value)) if isinstance(value, (dict, list)) else None


def _guarded(function: Callable[..., Any], *, is_known: bool) -> Callable[..., Any]:
    """A filter or test that refuses fields unless it is known to ask them nothing."""
    if is_known:
        return function

    def guarded(*args: Any, **kwargs: Any) -> Any:
        if mentions_symbol(_given(args)) or mentions_symbol(kwargs):
            raise OpaqueError("it hands a field to a filter or a test that may look into it")
        return function(*args, **kwargs)

    for name in ("jinja_pass_arg",):
        if hasattr(function, name):
            setattr(guarded, name, getattr(function, name))
    return guarded


def _given(args: Iterable[Any]) -> list[Any]:
    return [arg for arg in args if isinstance(arg, (str, list, tuple, dict, Watched))]


def _walkable(test: Callable[..., bool]) -> Callable[..., bool]:
    """A test whether something can be walked through, which tries to walk through it."""

    def walkable(value: Any) -> bool:
        return True if isinstance(value, (str, Watched)) else test(value)

    return walkable
