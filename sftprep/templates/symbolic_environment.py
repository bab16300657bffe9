"""The twin of the tracing environment for symbolic renders: what is not known to ask nothing of a text is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import jinja2.filters
from jinja2 import nodes
from jinja2.compiler import Frame
from jinja2.runtime import Context, Macro
from jinja2.tests import TESTS

from sftprep.templates.codegen import TracingCodeGenerator
from sftprep.templates.environment import TracingEnvironment
from sftprep.templates.limits import Meter
from sftprep.templates.symbolic import SymbolicStr
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


class SymbolicCodeGenerator(TracingCodeGenerator):
    """The same with `in` asked by the environment: Python would look into a text that is asked for in another."""

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """Write `a in b` as a call of the environment."""
        if len(node.ops) != 1 or node.ops[0].op not in {"in", "notin"}:
            super().visit_Compare(node, frame)
            return
        self.write("(not " if node.ops[0].op == "notin" else "(")
        self.write("environment.contains(")
        self.visit(node.expr, frame)
        self.write(", ")
        self.visit(node.ops[0].expr, frame)
        self.write("))")


class SymbolicEnvironment(TracingEnvironment):
    """Renders symbolic texts. OpaqueError where the template does what is not followed."""

    code_generator_class = SymbolicCodeGenerator
    tracer: SymbolicTracer

    def __init__(self, now: datetime) -> None:
        super().__init__(now)
        self.meter = _Unmetered()
        own = {"tojson": self._json, "join": self._traced_join, "safe": lambda value: value}
        for name, plain in jinja2.filters.FILTERS.items():
            self.filters[name] = _guarded(own.get(name, plain), is_known=name in _FILTERS | own.keys())
        tests: Mapping[str, Any] = TESTS
        for name, test in tests.items():
            self.tests[name] = _walkable(test) if name in _WALKABLE else _guarded(test, is_known=name in _TESTS)

    def charged(self, pieces: Iterable[str]) -> list[str]:
        """The pieces, not charged."""
        return list(pieces)

    def contains(self, item: Any, container: Any) -> bool:
        """`item in container`."""
        if isinstance(container, str) and not isinstance(container, SymbolicStr) and mentions_symbol(item):
            raise OpaqueError("it looks for a field in its own words")
        return item in container

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a macro, a method, or a function that keeps what it is given; no other is given a field."""
        keeps = isinstance(obj, Macro) or obj in (self.globals["namespace"], self.globals["dict"])
        owner = getattr(obj, "__self__", None)
        if not keeps and not isinstance(owner, (str, list, dict)) and mentions_symbol([*args, *kwargs.values()]):
            raise OpaqueError("it hands a field to a function")
        return super().call(context, obj, *args, **kwargs)

    def _json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> TracedStr:
        options = (ensure_ascii, indent, None if separators is None else tuple(separators), sort_keys)
        source = self._source_of(value)
        if source is None:
            if mentions_symbol(value):
                raise OpaqueError("it writes JSON of fields that it put together")
            return self._traced_json(value, ensure_ascii, indent, separators, sort_keys)
        return self.tracer.as_json(source, options)

    def _source_of(self, value: Any) -> int | None:
        if isinstance(value, SymbolicStr):
            return self.tracer.whole(value)
        return self.tracer.containers.get(id(value)) if isinstance(value, (dict, list)) else None


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
