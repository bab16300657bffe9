"""Which format a row is in, from the keys that it has; two answers are no answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sftprep.data import Json
from sftprep.records.codes import Fault
from sftprep.records.draft import Format

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


def detect_format(row: Mapping[str, Json]) -> Format | Fault:
    """The one format whose keys a row has; a fault with the evidence where there are several, or none."""
    found = [(known, keys) for known, keys in SIGNATURES if row.keys() >= keys]
    if len(found) == 1:
        return found[0][0]
    if found:
        evidence = "; ".join(f"{', '.join(sorted(keys))}: {known}" for known, keys in found)
        hint = f"{_HINT}; the other keys then count as metadata"
        return Fault("ambiguous-row", "", f"the row has the keys of several formats ({evidence})", hint)
    names = ", ".join(map(repr, row)) or "none"
    return Fault("unknown-format", "", f"the row has the keys of no format: {names:.200}", f"{_known()}; {_HINT}")


def _known() -> str:
    return "; ".join(f"{known} rows have {' and '.join(sorted(keys))}" for known, keys in SIGNATURES)
