"""Where a turn begins and ends in a traced text, and who else speaks in it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sftprep.templates.runs import NO_MESSAGE, Run, Source, rooted, stamp_of
from sftprep.templates.template import Placed, TracedText

_SUPERVISED = ("/content", "/reasoning_content", "/tool_calls")
_CONTEXT = re.compile(r"/content(/\d+/text)?$")


@dataclass(frozen=True, slots=True)
class End:
    """Where a completion ends: its stop token is `text[stop_start:stop]`, empty where it has none."""

    stop_start: int
    stop: int


def is_supervised(traced: TracedText, source: int, message: int) -> bool:
    """Whether a source is something that the message's author says: content, reasoning, a tool call."""
    if source < 0 or traced.sources[source].message != message:
        return False
    return traced.sources[source].path.startswith(_SUPERVISED)


def owner(traced: TracedText, run: Run) -> int:
    """The message in whose turn a run was written, or whose field it is (-1 for none)."""
    return stamp_of(run.source) if run.source < 0 else traced.sources[run.source].message


def is_template_text(traced: TracedText, run: Run) -> bool:
    """Whether the template wrote a run: its literals, and roles, which are a fixed set of words (`<|{{ role }}|>`)."""
    return run.source < 0 or traced.sources[run.source].path == "/role"


def turn_start(traced: TracedText, message: int) -> int | None:
    """The position of the first character written in a message's turn; None where there is none."""
    return next((at.start for at in traced.placed if owner(traced, at.run) == message), None)


def _said(traced: TracedText, message: int) -> Iterator[Placed]:
    """The runs of what a message says, in order."""
    own = traced.of_message.get(message, ())
    return (at for at in own if is_supervised(traced, at.run.source, message))


def last_said(traced: TracedText, message: int, span: tuple[int, int]) -> int:
    """The position after the last character in `[start, stop)` that the message says (else `start`)."""
    start, stop = span
    own = (at for at in _said(traced, message) if at.start < stop and at.stop > start)
    return max((min(at.stop, stop) for at in own), default=start)


def first_said(traced: TracedText, message: int, start: int) -> int:
    """The position of the first character at or after `start` that the message itself says (else the text's end)."""
    return min((max(at.start, start) for at in _said(traced, message)), default=len(traced.text))


def shows(traced: TracedText, message: int, path: str, start: int) -> bool:
    """Whether anything of a message's field is at or after `start`."""
    own = traced.of_message.get(message, ())
    return any(at.stop > start and traced.sources[at.run.source].path.startswith(path) for at in own)


def region_end(traced: TracedText, message: int, start: int) -> int:
    """The position at or after `start` where the turn of a later message begins, or the text's end."""
    later = (at for at in traced.within(start, len(traced.text)) if owner(traced, at.run) > message)
    return next((at.start for at in later if at.start >= start), len(traced.text))


def find_end(traced: TracedText, message: int, start: int, stop_tokens: Sequence[str]) -> End | None:
    """The first stop token that the template wrote after all that the message says.

    Where the turn's own region has none, the token that opens the next turn serves if it is a stop token.
    A stop token that somebody typed is a field's text, never a literal, and is not seen here.
    """
    border = region_end(traced, message, start)
    said = last_said(traced, message, (start, border))
    for begin, end in _literal_stretches(traced, said):
        if begin >= border:
            break
        found = _first_stop(traced.text, begin, min(end, border), stop_tokens)
        if found is not None:
            return found
    return opening_stop(traced, border, stop_tokens)


def opening_stop(traced: TracedText, border: int, stop_tokens: Sequence[str]) -> End | None:
    """The stop token at `border`, after white space at most, if the template wrote it."""
    for begin, end in _literal_stretches(traced, border):
        if begin > border:
            break
        stretch = traced.text[border:end]
        gap = len(stretch) - len(stretch.lstrip())
        opened = [stop for stop in stop_tokens if stretch.startswith(stop, gap)]
        if opened:
            return End(border + gap, border + gap + len(max(opened, key=len)))
    return None


def early_stop(traced: TracedText, span: tuple[int, int], stop_tokens: Sequence[str]) -> str | None:
    """The first stop token that the template wrote inside `[start, stop)`, if there is one."""
    for begin, end in _literal_stretches(traced, span[0]):
        if begin >= span[1]:
            break
        found = _first_stop(traced.text, begin, min(end, span[1]), stop_tokens)
        if found is not None:
            return traced.text[found.stop_start : found.stop]
    return None


def unstamped_tail(traced: TracedText) -> str:
    """The template text at the very end of a text that no message's turn holds: a generation prompt."""
    size = 0
    for run in reversed(traced.runs):
        if run.source >= 0 or stamp_of(run.source) != NO_MESSAGE:
            break
        size += run.length
    return traced.text[len(traced.text) - size :]


def trailing_literal(traced: TracedText) -> str:
    """The template text at the very end of a text; empty where a field ends it."""
    words = itertools.takewhile(lambda at: is_template_text(traced, at.run), reversed(traced.placed))
    return traced.text[min((at.start for at in words), default=len(traced.text)) :]


def _literal_stretches(traced: TracedText, start: int) -> Iterator[tuple[int, int]]:
    """Maximal stretches of template text from `start` on."""
    begin: int | None = None
    for at in traced.within(start, len(traced.text)):
        if is_template_text(traced, at.run):
            begin = max(at.start, start) if begin is None else begin
        elif begin is not None:
            yield begin, at.start
            begin = None
    if begin is not None:
        yield begin, len(traced.text)


def _first_stop(text: str, begin: int, end: int, stop_tokens: Sequence[str]) -> End | None:
    found = [(text.find(stop, begin, end), -len(stop)) for stop in stop_tokens if stop]
    found = [(position, size) for position, size in found if position >= 0]
    if not found:
        return None
    position, size = min(found)
    return End(position, position - size)


def foreign_path(traced: TracedText, message: int, span: tuple[int, int]) -> str | None:
    """The JSON pointer of a field of another author inside `[start, stop)`, if there is one."""
    for at in traced.within(*span):
        if not is_template_text(traced, at.run):
            source = traced.sources[at.run.source]
            if source.message != message:
                return f"/messages/{source.message}{source.path}" if source.message >= 0 else source.path
    return None


def lost_context(traced: TracedText, before: int) -> int:
    """How many messages before an answer say something of which the text shows nothing."""
    shown = {rooted(traced.sources, run).source for run in traced.runs if run.source >= 0}
    lost = {
        source.message
        for index, source in enumerate(traced.sources)
        if index not in shown and _is_context(source) and 0 <= source.message < before and source.text.strip()
    }
    return len(lost)


def _is_context(source: Source) -> bool:
    return source.parent < 0 and _CONTEXT.match(source.path) is not None
