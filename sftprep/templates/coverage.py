"""Whether all that a turn says is in a stretch of a traced text, once."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from sftprep.templates.runs import DERIVED, Source, rooted
from sftprep.templates.symbols import OpaqueError
from sftprep.templates.template import TracedText
from sftprep.templates.turns import is_supervised

_MUST_APPEAR: Final = re.compile(
    r"/(content|reasoning_content|content/\d+/text|tool_calls/\d+(/function)?/(name|arguments(/.*)?))$", re.DOTALL
)


class _Cover:
    """Which characters `[start, stop)` of a field were written, and whether any was written twice."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.starts: list[int] = []
        self.stops: list[int] = []
        self.is_repeated = False

    def add(self, start: int, stop: int) -> None:
        """Some characters are written."""
        first = bisect_left(self.stops, start + 1)
        last = bisect_left(self.starts, stop)
        self.is_repeated = self.is_repeated or first < last
        touched = bisect_left(self.stops, start)
        beyond = bisect_left(self.starts, stop + 1)
        begin = min([start, *self.starts[touched : touched + 1]])
        end = max([stop, *self.stops[max(beyond - 1, 0) : beyond]])
        self.starts[touched:beyond] = [begin]
        self.stops[touched:beyond] = [end]

    def add_derived(self) -> None:
        """The field is written in another form: all of it once, if nothing was."""
        self.starts, self.stops = ([0], [self.size]) if self.size else ([], [])

    def gaps(self, text: str) -> Iterator[str]:
        """What was not written, without white space at the edges."""
        for begin, end in zip([0, *self.stops], [*self.starts, self.size], strict=True):
            yield text[begin:end].strip()


def lost_field(traced: TracedText, message: int, span: tuple[int, int], template: str) -> str | None:
    """The path of a supervised field of which characters did not reach `[start, stop)`, if there is one.

    White space at edges may go, and so may a delimiter that the template itself takes out and writes again, where
    something else of the field is there.
    """
    shown = traced.text[slice(*span)]
    covers = _covers(traced, message, span)
    for index, source in enumerate(traced.sources):
        if source.message != message or source.parent >= 0 or not _MUST_APPEAR.match(source.path):
            continue
        cover = covers.get(index) or _Cover(len(source.text))
        for piece in filter(None, cover.gaps(source.text)):
            is_rewritten = cover.starts and piece in template and piece in shown
            if not is_rewritten:
                _refuse_unknown(source)
                return source.path
    return None


def repeated_field(traced: TracedText, message: int, span: tuple[int, int]) -> str | None:
    """The path of a supervised field that the template wrote twice into `[start, stop)`, if there is one."""
    covers = _covers(traced, message, span)
    return next((traced.sources[index].path for index, cover in covers.items() if cover.is_repeated), None)


def _covers(traced: TracedText, message: int, span: tuple[int, int]) -> dict[int, _Cover]:
    """What of each supervised field is in `[start, stop)`; fields of which nothing is are not among them."""
    start, stop = span
    covers: dict[int, _Cover] = {}
    for at in traced.of_message.get(message, ()):
        inside = at.start < stop and at.stop > start
        if not inside or not is_supervised(traced, at.run.source, message):
            continue
        run = rooted(traced.sources, at.run)
        cover = covers.setdefault(run.source, _Cover(len(traced.sources[run.source].text)))
        if run.offset == DERIVED:
            if cover.starts:
                _refuse_unknown(traced.sources[run.source])
            cover.add_derived()
        else:
            cover.add(run.offset + max(start - at.start, 0), run.offset + min(stop, at.stop) - at.start)
    return covers


def _refuse_unknown(source: Source) -> None:
    """OpaqueError where what is lost or repeated is a JSON value of a symbolic render: which text of it is unknown."""
    if source.structure and source.text:
        raise OpaqueError("a JSON value is lost or written twice")
