"""The Jinja environment of a server: equal to that of transformers' `apply_chat_template` (5.24), and metered.

Sandboxed and immutable, block trimming on, loop controls, `{% generation %}` accepted, `tojson` without HTML escapes,
`raise_exception`, `strftime_now`. A test holds texts equal. The clock is the caller's: `strftime_now` is a function of
`now`. What a template can make large is charged to `meter`, which is set anew for each render.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

from sftprep.templates.codegen import MeteredCodeGenerator, meter_tree
from sftprep.templates.limits import Meter, check_spec
from sftprep.templates.values import dumps

_REFUSED_METHODS = frozenset({"translate", "maketrans"})
"""Text methods whose cost cannot be told before; no real template has them."""
_DICT_ATTRIBUTES = frozenset(dir(dict))
_PLAIN = (bool, int, str)
_LOOP_NUMBERS = frozenset({"first", "last", "index", "index0", "length", "revindex", "revindex0"})


class GenerationExtension(Extension):
    """Accepts `{% generation %}` blocks, which some templates carry, and renders their body unchanged."""

    def parse(self, parser: Parser) -> nodes.Node:
        """The body as a call block, which scopes assignments as transformers' extension does."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("render_body"), [], [], body).set_lineno(line)

    def render_body(self, caller: Callable[[], str]) -> str:
        """The body's text, between the environment's marks where it has some."""
        body = caller()
        marks = getattr(self.environment, "generation_marks", None)
        return body if marks is None else f"{marks[0]}{body}{marks[1]}"


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


class TemplateDict:
    """`dict` as a template may use it: to build one, and nothing else."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """`dict(…)`."""
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


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """Renders what a server renders at the moment `now`, as far as `meter` allows. RenderLimitError beyond it."""

    code_generator_class = MeteredCodeGenerator
    intercepted_binops = frozenset({"%", "*", "**", "+"})

    def __init__(self, now: datetime) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationExtension, loopcontrols])
        self.meter = Meter()
        self.generation_marks: tuple[str, str] | None = None
        self.written: dict[int, tuple[Any, int, str]] | None = None
        """Where it is not None, JSON is written once: by what it is of and how, that value, its charge and its text."""
        self.filters["tojson"] = _tojson
        for name, function in list(self.filters.items()):
            self.filters[name] = self.metered(name, function)
        self.filters["tojson"] = self._written_once(self.filters["tojson"])
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = now.strftime
        self.globals["dict"] = TemplateDict()
        self.globals["namespace"] = TemplateNamespace
        del self.globals["lipsum"]  # text by chance, as much as is asked for

    def metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that is charged before and after it runs."""
        takes_state = hasattr(function, "jinja_pass_arg")

        @functools.wraps(function)
        def filtered(*args: Any, **kwargs: Any) -> Any:
            self.meter.before_filter(name, [*args[takes_state:], *kwargs.values()])
            result = function(*args, **kwargs)
            self.meter.made(result)
            return result

        return filtered

    def _written_once(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter `tojson`; the same value costs a look the second time, and is charged as it was."""

        @functools.wraps(function)
        def write(value: Any, *args: Any, **kwargs: Any) -> Any:
            if self.written is None or args or kwargs or type(value) not in (dict, list):
                return function(value, *args, **kwargs)
            known = self.written.get(id(value))
            if known is not None:
                self.meter.charge(known[1])
                return known[2]
            before = self.meter.size
            text = function(value)
            self.written[id(value)] = (value, self.meter.size - before, text)  # that keeps the value, and so its id
            return text

        return write

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        meter_tree(tree)
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What the sandbox allows, without methods whose cost cannot be told."""
        if isinstance(obj, str):
            # All that the sandbox asks of a text: texts do not change, and have no insides.
            return attr not in _REFUSED_METHODS and not attr.startswith("_")
        return super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`; what templates ask for all the time goes the shortest way to the same answer."""
        kind = type(obj)
        if kind is dict and attribute not in _DICT_ATTRIBUTES:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        if kind is LoopContext and attribute in _LOOP_NUMBERS:
            return getattr(obj, attribute)
        if kind is TemplateNamespace:
            value = object.__getattribute__(obj, "_Namespace__attrs").get(attribute)
            if type(value) in _PLAIN:
                return value  # no namespace has a name that the sandbox refuses
        return super().getattr(obj, attribute)

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what the compiled template yields."""
        return "".join(self.charged(pieces))

    def charged(self, pieces: Iterable[str]) -> list[str]:
        """The pieces, each charged as it comes: they are joined only when all of them fit."""
        kept: list[str] = []
        charge, keep = self.meter.charge, kept.append
        for piece in pieces:
            charge(str.__len__(piece))
            keep(piece)
        return kept

    def meter_step(self) -> None:
        """In a loop, once a pass."""
        self.meter.step()

    def meter_look(self, value: Any) -> Any:
        """A value that is about to be compared or hashed."""
        if isinstance(value, (list, tuple, dict)):
            self.meter.looked_through(value)
        return value

    def print_value(self, value: Any) -> str:
        """A printed expression."""
        if type(value) is not str:
            self.meter_look(value)
        return str(value)

    def join_values(self, values: Iterable[object]) -> str:
        """`a ~ b`."""
        return self.concat(self.print_value(value) for value in values)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call, charged before and after."""
        owner = getattr(obj, "__self__", None)
        given = [*args, *kwargs.values()]
        name = getattr(obj, "__name__", "") if isinstance(owner, (str, bytes)) else ""
        self.meter.before_call(name, owner, given)
        if name == "join" and args:
            items = list(args[0])
            self.meter.looked_through(items)
            self.meter.charge(len(items) * len(str(owner)))
            args = (items, *args[1:])
        result = super().call(context, obj, *args, **kwargs)
        self.meter.made(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, charged before; two texts, which templates put together all the time, at once."""
        if operator == "+" and type(left) is str and type(right) is str:
            self.meter.charge(len(left) + len(right))
            return left + right
        self.meter.before_binop(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` in the sandbox, charged before."""
        if super().wrap_str_format(value) is None:
            return None
        template = value.__self__
        if value.__name__ == "format_map":
            return lambda mapping: self.format_text(template, (), mapping)
        return lambda *args, **kwargs: self.format_text(template, args, kwargs)

    def format_text(self, template: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """`template.format(*args, **kwargs)`."""
        self.meter.looked_through([*args, *kwargs.values()])
        return MeteredFormatter(self).vformat(template, args, kwargs)


class MeteredFormatter(SandboxedFormatter):
    """The sandbox's formatter, without enormous widths."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Format one value. RenderLimitError where the specification is too wide."""
        check_spec(format_spec)
        return super().format_field(value, format_spec)
