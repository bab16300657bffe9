"""Where a turn begins and ends in a traced text, and whether all that the turn says is there, once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sftprep.templates.runs import DERIVED, NO_MESSAGE, Run, Source, rooted, stamp_of
from sftprep.templates.template import TracedText

_SUPERVISED = ("/content", "/reasoning_content", "/tool_calls")
_MUST_APPEAR = re.compile(
    r"/(content|reasoning_content|content/\d+/text|tool_calls/\d+(/function)?/(name|arguments(/.*)?))$", re.DOTALL
)
_CONTEXT = re.compile(r"/content(/\d+/text)?$")


@dataclass(frozen=True, slots=True)
class Placed:
    """A run and the position of its first character in the text."""

    start: int
    run: Run

    @property
    def stop(self) -> int:
        """The position after the run's last character."""
        return self.start + self.run.length


@dataclass(frozen=True, slots=True)
class End:
    """Where a completion ends: its stop token is `text[stop_start:stop]`, empty where it has none."""

    stop_start: int
    stop: int


def placed(runs: Sequence[Run]) -> Iterator[Placed]:
    """The runs with their positions."""
    position = 0
    for run in runs:
        yield Placed(position, run)
        position += run.length


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
    return next((at.start for at in placed(traced.runs) if owner(traced, at.run) == message), None)


def last_said(traced: TracedText, message: int, span: tuple[int, int]) -> int:
    """The position after the last character in `[start, stop)` that the message says (else `start`)."""
    start, stop = span
    own = (at for at in placed(traced.runs) if is_supervised(traced, at.run.source, message))
    return max((min(at.stop, stop) for at in own if at.start < stop and at.stop > start), default=start)


def first_said(traced: TracedText, message: int, start: int) -> int:
    """The position of the first character at or after `start` that the message itself says (else the text's end)."""
    own = (max(at.start, start) for at in placed(traced.runs) if is_supervised(traced, at.run.source, message))
    return min((position for position in own if position >= start), default=len(traced.text))


def shows(traced: TracedText, message: int, path: str, start: int) -> bool:
    """Whether anything of a message's field is at or after `start`."""
    for at in placed(traced.runs):
        if at.stop > start and at.run.source >= 0:
            source = traced.sources[at.run.source]
            if source.message == message and source.path.startswith(path):
                return True
    return False


def region_end(traced: TracedText, message: int, start: int) -> int:
    """The position at or after `start` where the turn of a later message begins, or the text's end."""
    for at in placed(traced.runs):
        if at.start >= start and owner(traced, at.run) > message:
            return at.start
    return len(traced.text)


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
        found = _first_stop(traced.text, begin, min(end, span[1]), stop_tokens) if begin < span[1] else None
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
    stretches = list(_literal_stretches(traced, 0))
    if not stretches or stretches[-1][1] != len(traced.text):
        return ""
    return traced.text[stretches[-1][0] :]


def _literal_stretches(traced: TracedText, start: int) -> Iterator[tuple[int, int]]:
    """Maximal stretches of template text from `start` on."""
    begin: int | None = None
    for at in placed(traced.runs):
        if is_template_text(traced, at.run) and at.stop > start:
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
    start, stop = span
    for at in placed(traced.runs):
        if not is_template_text(traced, at.run) and at.start < stop and at.stop > start:
            source = traced.sources[at.run.source]
            if source.message != message:
                return f"/messages/{source.message}{source.path}" if source.message >= 0 else source.path
    return None


def lost_field(traced: TracedText, message: int, span: tuple[int, int], template: str) -> str | None:
    """The path of a supervised field of which characters did not reach `[start, stop)`, if there is one.

    White space at edges may go, and so may a delimiter that the template itself takes out and writes again, where
    something else of the field is there.
    """
    start, stop = span
    shown = traced.text[start:stop]
    counts = _coverage(traced, message, span)
    for index, source in enumerate(traced.sources):
        if source.message != message or source.parent >= 0 or not _MUST_APPEAR.match(source.path):
            continue
        count = counts.get(index)
        for piece in filter(None, _uncovered(source.text, count)):
            is_rewritten = count is not None and any(count) and piece in template and piece in shown
            if not is_rewritten:
                return source.path
    return None


def repeated_field(traced: TracedText, message: int, span: tuple[int, int]) -> str | None:
    """The path of a supervised field that the template wrote twice into `[start, stop)`, if there is one."""
    for index, count in _coverage(traced, message, span).items():
        if max(count, default=0) > 1:
            return traced.sources[index].path
    return None


def _coverage(traced: TracedText, message: int, span: tuple[int, int]) -> dict[int, list[int]]:
    """How often each character of each supervised field occurs in `[start, stop)`."""
    start, stop = span
    counts: dict[int, list[int]] = {}
    for at in placed(traced.runs):
        inside = at.start < stop and at.stop > start
        if not inside or not is_supervised(traced, at.run.source, message):
            continue
        run = rooted(traced.sources, at.run)
        count = counts.setdefault(run.source, [0] * len(traced.sources[run.source].text))
        if run.offset == DERIVED:
            count[:] = [max(1, n) for n in count]
            continue
        first = run.offset + max(start - at.start, 0)
        last = run.offset + min(stop, at.stop) - at.start
        count[first:last] = [n + 1 for n in count[first:last]]
    return counts


def _uncovered(text: str, count: list[int] | None) -> list[str]:
    """The pieces of a text that are not covered, without white space at their edges."""
    if count is None:
        return [text.strip()]
    kept = "".join("\0" if n else c for c, n in zip(text, count, strict=True))
    return [piece.strip() for piece in kept.split("\0")]


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
