"""The Jinja environments: one equal to a server's, and its twin in which every string knows its writer.

Both are equal to the environment of transformers' `apply_chat_template` (5.24): sandboxed and immutable, block
trimming on, loop controls, `{% generation %}` accepted, `tojson` without HTML escapes, `raise_exception`,
`strftime_now`. A test holds texts equal. The clock is the caller's: `strftime_now` is a function of `now`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

from sftprep.templates.codegen import TracingCodeGenerator, stamp_loops
from sftprep.templates.formatting import format_percent, make_formatter, mentions_field
from sftprep.templates.trace import TracedStr, Tracer
from sftprep.templates.values import JsonWriter, dumps

_OWN_FILTERS: Final = frozenset({"tojson", "join", "indent", "safe"})


class GenerationExtension(Extension):
    """Accepts `{% generation %}` blocks, which some templates carry, and renders their body unchanged."""

    def parse(self, parser: Parser) -> nodes.Node:
        """The body as a call block, which scopes assignments as transformers' extension does."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("render_body"), [], [], body).set_lineno(line)

    def render_body(self, caller: Callable[[], str]) -> str:
        """The body's text."""
        return caller()


GenerationExtension.tags = {"generation"}


class TemplateNamespace(Namespace):
    """A namespace that stores no underscore names, as transformers' does."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=…) works
        self, positional = args[0], args[1:]
        values = dict(*positional, **kwargs)
        for name in values:
            _refuse_underscore(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace stores no underscore name such as {name!r}")


class _TemplateDict:
    """`dict` as a template may use it: to build one, and nothing else."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """`dict.fromkeys`."""
        return dict.fromkeys(*args, **kwargs)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def plain_environment(now: datetime) -> ImmutableSandboxedEnvironment:
    """An environment that renders what a server renders at the moment `now`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationExtension, loopcontrols]
    )
    _equip(environment, now)
    return environment


def _equip(environment: ImmutableSandboxedEnvironment, now: datetime) -> None:
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = now.strftime
    environment.globals["dict"] = _TemplateDict()
    environment.globals["namespace"] = TemplateNamespace


class TracingEnvironment(ImmutableSandboxedEnvironment):
    """The twin: the same texts as `plain_environment`, as `TracedStr`. `tracer` is set anew for each render."""

    code_generator_class = TracingCodeGenerator
    intercepted_binops = frozenset({"%"})

    def __init__(self, now: datetime) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationExtension, loopcontrols])
        _equip(self, now)
        self.tracer = Tracer()
        for name, function in list(self.filters.items()):
            if name not in _OWN_FILTERS:
                self.filters[name] = self._followed(function)
        self.filters["tojson"] = self._traced_json
        self.filters["join"] = self._traced_join
        self.filters["indent"] = self._traced_indent
        # Nothing is ever escaped here, so marking text as safe changes no text that is only printed.
        self.filters["safe"] = lambda value: value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        stamp_loops(tree)
        tree.set_environment(self)
        return tree

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what the compiled template yields."""
        return self.tracer.concat(pieces)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`; a traced string has the attributes of `str` and no others."""
        if type(obj) is TracedStr and not hasattr(str, attribute):
            return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`, with the same rule."""
        if type(obj) is TracedStr and isinstance(argument, str) and not hasattr(str, argument):
            return self.undefined(obj=obj, name=argument)
        return super().getitem(obj, argument)

    def trace_literal(self, text: str) -> TracedStr:
        """Template text."""
        return self.tracer.literal(text)

    def trace_value(self, value: object) -> TracedStr:
        """A printed expression."""
        return self.tracer.concat((value,))

    def trace_concat(self, values: Iterable[object]) -> TracedStr:
        """`a ~ b`."""
        return self.tracer.concat(values)

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
        owner = getattr(obj, "__self__", None)
        if type(owner) is str and mentions_field([*args, *kwargs.values()]):
            obj = getattr(self.tracer.literal(owner), obj.__name__)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`%` on text; other operands as they are."""
        if operator == "%" and isinstance(left, str):
            return format_percent(self.tracer, left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` in the sandbox, traced."""
        if super().wrap_str_format(value) is None:
            return None
        run = make_formatter(self.tracer, value.__self__, SandboxedFormatter(self))
        if value.__name__ == "format_map":
            return lambda mapping: run((), mapping)
        return lambda *args, **kwargs: run(args, kwargs)

    def _followed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose plain text results are known to come from its traced arguments."""

        @functools.wraps(function)
        def filtered(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if type(result) is str and mentions_field([*args, *kwargs.values()]):
                return self.tracer.derived(result, [*args, *kwargs.values()])
            return result

        return filtered

    def _traced_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> TracedStr:
        options: dict[str, Any] = {"ensure_ascii": ensure_ascii, "indent": indent}
        options |= {"separators": separators, "sort_keys": sort_keys}
        text = dumps(value, **options)
        traced = JsonWriter(self.tracer, **options).write(value)
        return traced if traced == text else self.tracer.derived(text, value)

    def _traced_join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> TracedStr:
        if attribute is not None:
            value = map(jinja2.filters.make_attrgetter(self, attribute), value)
        return self.tracer.concat([piece for item in value for piece in (d, item)][1:])

    def _traced_indent(self, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> TracedStr:
        text = jinja2.filters.do_indent(str.__str__(s) if type(s) is TracedStr else s, width, first, blank)
        margin = width if isinstance(width, str) else " " * width
        lines = self.tracer.concat((s, "\n")).splitlines()
        pieces: list[object] = [margin if first else ""]
        for number, line in enumerate(lines):
            pieces += ["\n" if number else "", margin if number and (line or blank) else "", line]
        traced = self.tracer.concat(pieces)
        return traced if traced == text else self.tracer.derived(text, s)
