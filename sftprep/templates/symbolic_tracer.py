"""What a symbolic render has asked of a conversation, and comparisons of what it wrote, piece by piece."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, field
from typing import Any, Final

from jinja2.runtime import Macro

from sftprep.templates.runs import DERIVED, Run, Source, new_tuple
from sftprep.templates.sandbox import TemplateDict, TemplateNamespace
from sftprep.templates.symbolic_layout import Reads
from sftprep.templates.symbols import Field, Guard, JsonOptions, Op, OpaqueError, Watched, answer, write_json
from sftprep.templates.trace import TracedStr, Tracer

_LOOKED_AT: Final = 64
"""Characters of the template's words that are compared with the beginning of a field."""

Part = tuple[int, str]
"""A piece of a text: its source where it is a field, else -1, and its characters, never none."""


@dataclass(slots=True)
class SymbolicTracer(Tracer):
    """The tracer of all symbolic renders of one conversation; its sources are those of the whole conversation."""

    fields: dict[int, Field] = field(default_factory=dict)
    """Of each source that is not the same in every conversation of the shape."""
    values: dict[int, Any] = field(default_factory=dict)
    """The JSON value of each field that the conversation itself has."""
    guards: dict[Guard, Any] = field(default_factory=dict)
    asked: dict[Guard, Any] = field(default_factory=dict)
    """The same since somebody began to look, also what was asked before."""
    rendering: bool = False
    """Whether the template runs: positions in a text mean nothing to it, and something to who reads what it wrote."""
    parts: dict[int, tuple[TracedStr, list[Part]]] = field(default_factory=dict)
    """By its `id`, a text that was compared, and its pieces."""
    derived_sources: dict[tuple[int, Op], int] = field(default_factory=dict)
    reads: Reads = field(default_factory=Reads)
    """Of the messages, by the render that runs."""

    def forget_texts(self) -> None:
        """Let go of every text, each of which knows this tracer: then nothing is left for the garbage collector."""
        self.parts.clear()
        self.keep.clear()

    def printed(self, value: object) -> str:
        """The text of a value that is no traced text: of one that holds fields, Python's own form is not known."""
        if mentions_symbol(value):
            raise OpaqueError("it prints a list or an object as Python writes it")
        return str(value)

    def before_search(self, item: object, container: object) -> None:
        """OpaqueError where a field is looked for in a text that does not ask it."""
        is_plain = isinstance(container, str) and not isinstance(container, TracedStr)
        if is_plain and mentions_symbol(item):
            raise OpaqueError("it looks for a field in its own words")

    def before_call(self, function: object, given: list[object]) -> None:
        """OpaqueError where a field is handed to what is no macro, no method, and does not just keep it."""
        keeps = isinstance(function, (Macro, TemplateDict)) or function is TemplateNamespace
        is_method = isinstance(getattr(function, "__self__", None), (str, list, dict))
        if not keeps and not is_method and mentions_symbol(given):
            raise OpaqueError("it hands a field to a function")

    def derived(self, text: str, origin: object) -> TracedStr:
        """A text computed from constants."""
        if mentions_symbol(origin):
            raise OpaqueError("it computes a text from a field")
        return Tracer.derived(self, text, origin)

    def message_of(self, item: object) -> int | None:
        """The message that a loop's item is, or was made from."""
        known = self.containers.get(id(item))
        if known is None:
            return Tracer.message_of(self, item)
        message = self.sources[known].message
        return None if message < 0 else message

    def is_symbol(self, run: Run) -> bool:
        """Whether other conversations of the shape have another text there."""
        return run.source in self.fields

    def whole(self, text: TracedStr) -> int | None:
        """The source that is all of a text; None where it is not one whole field."""
        if len(text.runs) != 1 or not self.is_symbol(text.runs[0]):
            return None
        run = text.runs[0]
        return run.source if run.offset == 0 and run.length == len(self.sources[run.source].text) else None

    def ask(self, source: int, question: str, args: tuple[Any, ...]) -> Any:
        """The answer to a question about a field, noted."""
        guard = new_tuple(Guard, (self.fields[source], question, args))
        if guard not in self.guards:
            self.guards[guard] = answer(self.sources[source].text, question, args)
        said = self.asked[guard] = self.guards[guard]
        return said

    def of_field(self, source: int) -> TracedStr:
        """The text of a source."""
        text = self.sources[source].text
        return TracedStr.of(self, text, (new_tuple(Run, (len(text), source, 0)),) if text else ())

    def as_json(self, source: int, options: JsonOptions) -> TracedStr:
        """A JSON value, or a text, of the conversation as the JSON filter writes it."""
        known = self.derived_sources.get((source, ("json", options)))
        if known is not None:
            self.ask(known, "shape", ())
            return self.of_field(known)
        text = write_json(self.values.get(source, self.sources[source].text), options)
        return self.operated(source, ("json", options), text, DERIVED)

    def operated(self, source: int, op: Op, text: str, shift: int) -> TracedStr:
        """What an operation makes of a field; whether that is empty is asked."""
        key = (source, op)
        if key not in self.derived_sources:
            parent = self.sources[source]
            of = self.fields[source]
            made = Source(parent.message, parent.path, text, structure=parent.structure, parent=source, shift=shift)
            self.sources.append(made)
            self.derived_sources[key] = len(self.sources) - 1
            self.fields[len(self.sources) - 1] = Field(of.message, of.keys, (*of.ops, op))
        made_source = self.derived_sources[key]
        self.ask(made_source, "shape", ())
        return self.of_field(made_source)


def mentions_symbol(value: object) -> bool:
    """Whether a field, or a JSON value of the conversation, is anywhere inside."""
    if isinstance(value, TracedStr):
        tracer = value.tracer
        return isinstance(tracer, SymbolicTracer) and any(run.source in tracer.fields for run in value.runs)
    if isinstance(value, Watched):
        return True
    if isinstance(value, dict):
        return any(mentions_symbol(key) or mentions_symbol(item) for key, item in value.items())
    return isinstance(value, (list, tuple)) and any(map(mentions_symbol, value))


def first_part(text: str) -> Part:
    """The first piece of a text, constants joined; no characters where it is empty."""
    tracer = text.tracer if isinstance(text, TracedStr) else None
    if not isinstance(text, TracedStr) or not isinstance(tracer, SymbolicTracer):
        return -1, text
    size = sum(run.length for run in itertools.takewhile(lambda run: run.source not in tracer.fields, text.runs))
    return (-1, str.__getitem__(text, slice(size))) if size or not text.runs else parts_of(text)[0]


def parts_of(text: str) -> list[Part]:
    """The pieces of a text, constants joined. OpaqueError where it holds a part of a field."""
    if not isinstance(text, TracedStr) or not isinstance(text.tracer, SymbolicTracer):
        return [(-1, text)] if text else []
    known = text.tracer.parts.get(id(text))
    if known is None:
        known = text.tracer.parts[id(text)] = (text, _parts(text, text.tracer))
    return known[1]


def keep_beginning(text: TracedStr, of: TracedStr) -> None:
    """Know the pieces of a text that another one begins with from those of that one, if they are known."""
    tracer = of.tracer
    known = tracer.parts.get(id(of)) if isinstance(tracer, SymbolicTracer) else None
    if known is None or not isinstance(tracer, SymbolicTracer):
        return
    ends = list(itertools.accumulate([len(piece) for _, piece in known[1]]))
    count = bisect.bisect_right(ends, str.__len__(text))
    parts = known[1][:count]
    left = str.__len__(text) - (ends[count - 1] if count else 0)
    if left and known[1][count][0] >= 0:
        return
    tracer.parts[id(text)] = (text, [*parts, (-1, known[1][count][1][:left])] if left else parts)


def _parts(text: TracedStr, tracer: SymbolicTracer) -> list[Part]:
    parts: list[Part] = []
    words: list[str] = []
    position = 0
    for run in text.runs:
        piece = str.__getitem__(text, slice(position, position + run.length))
        position += run.length
        if not tracer.is_symbol(run):
            words.append(piece)
            continue
        if run.offset == DERIVED or run.length != len(tracer.sources[run.source].text):
            raise OpaqueError("a text holds a part of a field")
        parts += [(-1, "".join(words))] if words else []
        words = []
        parts.append((run.source, piece))
    return [*parts, (-1, "".join(words))] if words else parts


def begins(text: str, prefix: str) -> bool:
    """Whether a text begins with another for every conversation of the shape; False where it does for none.

    Where words of the template meet a field, it is noted that one does not begin as the other.
    OpaqueError where it does.
    """
    source, words = first_part(text)
    if type(prefix) is str and source < 0 and (len(words) >= len(prefix) or not prefix.startswith(words)):
        return words.startswith(prefix)
    return _begins(text, prefix)


def _begins(text: str, prefix: str) -> bool:
    left, right = parts_of(text), parts_of(prefix)
    first = len(right) - 1 if left[: len(right) - 1] == right[:-1] else 0
    pairs = zip(left[first:], right[first:], strict=False)
    same = next((i for i, (a, b) in enumerate(pairs, first) if a != b), min(len(left), len(right)))
    if same == len(right):
        return True
    if same == len(left):
        return False
    (a, mine), (b, other) = left[same], right[same]
    if a >= 0 or b >= 0:
        _refuse_like(text if a >= 0 else prefix, (a, b), (mine, other))
        return False
    size = min(len(mine), len(other))
    if mine[:size] != other[:size]:
        return False
    # One word is longer: what follows the other one is a field, or nothing.
    if len(other) == size:
        return same + 1 == len(right) or _meets(prefix, right[same + 1], mine[size:])
    return same + 1 < len(left) and _meets(text, left[same + 1], other[size:])


def _meets(owner: str, part: Part, word: str) -> bool:
    """A field stands where the other text goes on with a word: noted that they differ."""
    _refuse_like(owner, (part[0], -1), (part[1], word))
    return False


def _refuse_like(owner: str, sources: tuple[int, int], pieces: tuple[str, str]) -> None:
    """Note that a field does not begin as the template's words do. OpaqueError where it does."""
    tracer = owner.tracer if isinstance(owner, TracedStr) else None
    if not isinstance(tracer, SymbolicTracer) or min(sources) >= 0:
        raise OpaqueError("two fields stand in one place")
    word = pieces[0] if sources[0] < 0 else pieces[1]
    if tracer.ask(max(sources), "begins", (word[:_LOOKED_AT],)):
        raise OpaqueError("a field begins as the template's words do")
