"""Which format a file's rows are in, from the keys that they have; two answers are no answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

from sftprep.data import Json
from sftprep.errors import SourceError
from sftprep.records.draft import Format

NUM_EVIDENCE_ROWS: Final = 100
"""Rows that decide; later rows of another format are findings of their own."""

SIGNATURES: Final = (
    (Format.OPENAI, frozenset({"messages"})),
    (Format.SHAREGPT, frozenset({"conversations"})),
    (Format.ALPACA, frozenset({"instruction", "output"})),
    (Format.PROMPT_RESPONSE, frozenset({"prompt", "response"})),
    (Format.PROMPT_RESPONSE, frozenset({"prompt", "completion"})),
)
"""The keys that a row of a format must have."""

_HINT: Final = f"name it with --format {{{','.join(Format)}}}"


def signatures_of(row: Mapping[str, Json]) -> list[Format]:
    """The formats whose keys a row has, one entry a signature: more than one is ambiguous."""
    return [known for known, keys in SIGNATURES if row.keys() >= keys]


def detect_format(rows: Iterable[Mapping[str, Json]], *, place: str) -> Format | None:
    """The one format of the first rows; None where there is no row at all.

    SourceError `ambiguous-format` where a row has the keys of two formats or rows differ, `unknown-format` where no
    row has those of any.
    """
    seen: Counter[Format] = Counter()
    first: Mapping[str, Json] | None = None
    for row in islice(rows, NUM_EVIDENCE_ROWS):
        first = row if first is None else first
        found = signatures_of(row)
        if len(found) > 1:
            what = f"a row has the keys of several formats: {', '.join(sorted(row))}"
            raise SourceError(what, code="ambiguous-format", place=place, hint=_HINT)
        seen.update(found)
    if len(seen) > 1:
        what = "rows of several formats are mixed: " + ", ".join(f"{n} × {known}" for known, n in seen.items())
        hint = f"split the file, or {_HINT}"
        raise SourceError(what, code="ambiguous-format", place=place, hint=hint)
    if first is not None and not seen:
        what = f"no row has the keys of a known format; the first has: {', '.join(map(repr, first)) or 'none'}"
        raise SourceError(what, code="unknown-format", place=place, hint=_HINT)
    return next(iter(seen), None)
