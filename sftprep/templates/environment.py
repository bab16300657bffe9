"""The twin of a server's Jinja environment: the same texts, in which every string knows its writer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import datetime
from typing import Any, Final, Protocol

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context

from sftprep.templates.codegen import TracingCodeGenerator, stamp_loops
from sftprep.templates.formatting import format_percent, make_formatter, mentions_field
from sftprep.templates.sandbox import MeteredEnvironment, MeteredFormatter
from sftprep.templates.symbols import Guard
from sftprep.templates.trace import TracedStr, Tracer
from sftprep.templates.values import JsonWriter, dumps

_OWN_FILTERS: Final = frozenset({"tojson", "join", "indent", "safe"})


class Mark(str):
    """Written between two pieces of a text: how far the template has come, and what it has asked and read until then.

    `message` is the one that a pass of the loop over messages has just ended with, -1 for the ending.
    """

    message: int
    num_guards: int
    has_read: int
    asked: Mapping[Guard, Any]
    """By the pass."""
    seen: Set[int]
    """Messages of which the pass has read anything."""


class Marker(Protocol):
    """Puts marks into a template, and takes them out of what it writes."""

    def parsed(self, tree: nodes.Template) -> None:
        """Put them in, in place."""

    def mark(self, items: Sequence[object]) -> Mark:
        """The mark of a pass of a loop that is at these items; of the ending where there are none."""

    def taken(self, pieces: Iterable[str]) -> Iterable[str]:
        """The pieces without their marks, which are remembered."""


class TracingEnvironment(MeteredEnvironment):
    """The same texts as `MeteredEnvironment`, as `TracedStr`. `tracer` is set anew for each render."""

    code_generator_class = TracingCodeGenerator

    def __init__(self, now: datetime) -> None:
        super().__init__(now)
        self.tracer = Tracer()
        self.marker: Marker | None = None
        for name, function in list(self.filters.items()):
            if name not in _OWN_FILTERS:
                self.filters[name] = self._followed(function)
        self.filters["tojson"] = self.metered("tojson", self.traced_json)
        self.filters["join"] = self.metered("join", self.traced_join)
        self.filters["indent"] = self.metered("indent", self._traced_indent)
        # Nothing is ever escaped here, so marking text as safe changes no text that is only printed.
        self.filters["safe"] = lambda value: value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        stamp_loops(tree)
        if self.marker is not None:
            self.marker.parsed(tree)
        tree.set_environment(self)
        return tree

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what the compiled template yields."""
        return self.tracer.concat(self.charged(pieces if self.marker is None else self.marker.taken(pieces)))

    def mark(self, *items: object) -> str:
        """What `marker` writes here."""
        return "" if self.marker is None else self.marker.mark(items)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`; a traced string has the attributes of `str` and no others."""
        if isinstance(obj, TracedStr) and not hasattr(str, attribute):
            return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`, with the same rule."""
        if isinstance(obj, TracedStr) and isinstance(argument, str) and not hasattr(str, argument):
            return self.undefined(obj=obj, name=argument)
        return super().getitem(obj, argument)

    def trace_literal(self, text: str) -> TracedStr:
        """Template text."""
        return self.tracer.literal(text)

    def contains(self, item: Any, container: Any) -> bool:
        """`item in container`."""
        self.tracer.before_search(item, container)
        return item in container

    def print_value(self, value: Any) -> str:
        """A printed expression; marks stay what they are."""
        if isinstance(value, (Mark, TracedStr)):
            return value
        self.meter_look(value)
        return self.tracer.concat((value,))

    def trace_push(self) -> None:
        """Before a loop: remember the turn."""
        self.tracer.loops.append(self.tracer.stamp)

    def trace_pop(self) -> None:
        """After a loop: back to the turn before it."""
        self.tracer.stamp = self.tracer.loops.pop()

    def trace_enter(self, *items: object) -> None:
        """In a loop: the turn is that of the message that the loop is at, if it is at one."""
        for item in items:
            message = self.tracer.message_of(item)
            if message is not None:
                self.tracer.stamp = message

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call; a method of a plain string that is given traced text becomes the method of a traced literal."""
        self.tracer.before_call(obj, [*args, *kwargs.values()])
        owner = getattr(obj, "__self__", None)
        if type(owner) is str and mentions_field([*args, *kwargs.values()]):
            obj = getattr(self.tracer.literal(owner), obj.__name__)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`%` on text; other operands as they are."""
        if operator == "%" and isinstance(left, str):
            self.meter.before_format(left, right)
            return format_percent(self.tracer, left, right)
        return super().call_binop(context, operator, left, right)

    def format_text(self, template: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """`template.format(*args, **kwargs)`, traced."""
        self.meter.looked_through([*args, *kwargs.values()])
        return make_formatter(self.tracer, template, MeteredFormatter(self))(args, kwargs)

    def _followed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose plain text results are known to come from its traced arguments."""

        @functools.wraps(function)
        def filtered(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if type(result) is str and mentions_field([*args, *kwargs.values()]):
                return self.tracer.derived(result, [*args, *kwargs.values()])
            return result

        return filtered

    def traced_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> TracedStr:
        """The filter `tojson`."""
        options: dict[str, Any] = {"ensure_ascii": ensure_ascii, "indent": indent}
        options |= {"separators": separators, "sort_keys": sort_keys}
        text = dumps(value, **options)
        traced = JsonWriter(self.tracer, **options).write(value)
        return traced if traced == text else self.tracer.derived(text, value)

    def traced_join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> TracedStr:
        """The filter `join`."""
        if attribute is not None:
            value = map(jinja2.filters.make_attrgetter(self, attribute), value)
        return self.tracer.concat([piece for item in value for piece in (d, item)][1:])

    def _traced_indent(self, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> TracedStr:
        text = jinja2.filters.do_indent(str.__str__(s) if isinstance(s, TracedStr) else s, width, first, blank)
        margin = width if isinstance(width, str) else " " * width
        lines = self.tracer.concat((s, "\n")).splitlines()
        pieces: list[object] = [margin if first else ""]
        for number, line in enumerate(lines):
            pieces += ["\n" if number else "", margin if number and (line or blank) else "", line]
        traced = self.tracer.concat(pieces)
        return traced if traced == text else self.tracer.derived(text, s)
