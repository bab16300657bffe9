"""The plain pairs of the literature: `{"prompt": str, "response": str}`, or `completion` for `response`.

An optional `system` is the system prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict

from sftprep.data import Json
from sftprep.records.draft import Draft, Reading, metadata_of


class PromptResponseRow(BaseModel):
    """One pair a line. Other keys of the row are kept as metadata."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    prompt: str
    response: str
    system: str | None = None


class PromptCompletionRow(BaseModel):
    """The same with the other name of the answer."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    prompt: str
    completion: str
    system: str | None = None


_COMMON: Final = frozenset({"prompt", "system"})


def read_prompt_response(value: Mapping[str, Json]) -> Reading:
    """A row that one of the two models accepts, as a draft; `response` is read where it has both names."""
    answer = "response" if "response" in value else "completion"
    texts = [("user", value["prompt"], "/prompt"), ("assistant", value[answer], f"/{answer}")]
    if value.get("system"):
        texts.insert(0, ("system", value["system"], "/system"))
    draft = Draft(
        messages=[{"role": role, "content": content} for role, content, _ in texts],
        weights=[1.0] * len(texts),
        metadata=metadata_of(value, known=_COMMON | {answer}),
        places=[place for _, _, place in texts],
    )
    return Reading(draft, ())
