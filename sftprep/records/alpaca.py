"""Alpaca: `{"instruction": ..., "input": ..., "output": ...}`, with optional `system` and `history`.

The user message is instruction and input joined by a blank line, or the instruction alone where there is no input.
`history` is a list of `[question, answer]`; its answers are trained like the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from sftprep.data import Json
from sftprep.records.draft import Draft, Reading, metadata_of

Exchange = Annotated[list[str], Field(min_length=2, max_length=2)]


class AlpacaRow(BaseModel):
    """One instruction a line. Other keys of the row are kept as metadata."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    instruction: str
    input: str | None = None
    output: str
    system: str | None = None
    history: list[Exchange] | None = None


ROW_KEYS: Final = frozenset(AlpacaRow.model_fields)


def read_alpaca(value: Mapping[str, Json]) -> Reading:
    """A row that `AlpacaRow` accepts, as a draft."""
    texts = []
    if value.get("system"):
        texts.append(("system", value["system"], "/system"))
    for index, (question, answer) in enumerate(value.get("history") or ()):
        texts.append(("user", question, f"/history/{index}/0"))
        texts.append(("assistant", answer, f"/history/{index}/1"))
    prompt = "\n\n".join(part for part in (value["instruction"], value.get("input")) if part)
    texts.append(("user", prompt, "/instruction"))
    texts.append(("assistant", value["output"], "/output"))
    draft = Draft(
        messages=[{"role": role, "content": content} for role, content, _ in texts],
        weights=[1.0] * len(texts),
        metadata=metadata_of(value, known=ROW_KEYS),
        places=[place for _, _, place in texts],
    )
    return Reading(draft, ())
