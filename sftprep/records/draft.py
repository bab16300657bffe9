"""What every format is converted to before the rules of a conversation are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from sftprep.data import Json
from sftprep.records.codes import Fault


class Format(StrEnum):
    """The formats of a row; the values are what `--format` takes."""

    OPENAI = "openai"
    SHAREGPT = "sharegpt"
    ALPACA = "alpaca"
    PROMPT_RESPONSE = "prompt-response"


@dataclass(frozen=True, slots=True)
class Draft:
    """A conversation without an address: messages as a template is given them, and one weight for each.

    `places` are JSON pointers to what each message was made from, where that is not `/messages/<index>`: to a text,
    or, with a slash at the end, to an object that has the message's keys.
    """

    messages: Sequence[Mapping[str, Json]]
    weights: Sequence[float]
    tools: Sequence[Json] | None = None
    template_kwargs: Mapping[str, Json] = field(default_factory=dict)
    metadata: Mapping[str, Json] = field(default_factory=dict)
    places: Sequence[str] | None = None

    def place(self, index: int, key: str = "") -> str:
        """The JSON pointer of a message, or of one of its keys, in the row as it was written."""
        place = f"/messages/{index}/" if self.places is None else self.places[index]
        if place[-1] != "/":
            return place
        return place + key if key else place[:-1]

    @property
    def list_place(self) -> str:
        """The JSON pointer of the list that holds the last message."""
        return "/messages" if self.places is None else f"/{self.places[-1].split('/')[1]}"


def moved(pointer: str, places: Sequence[str] | None) -> str:
    """A pointer into `/messages`, as a pointer into the row as it was written: see `Draft.places`."""
    steps = pointer.split("/", 3)
    if not places or steps[1:2] != ["messages"]:
        return pointer
    if len(steps) == 2:
        return f"/{places[-1].split('/')[1]}"
    place = places[int(steps[2])]
    return place + "".join(steps[3:]) if place[-1] == "/" and steps[3:] else place.removesuffix("/")


class Reading(NamedTuple):
    """A draft, if the row could be read as one, and what is wrong with the row."""

    draft: Draft | None
    faults: tuple[Fault, ...]


def metadata_of(value: Mapping[str, Json], *, known: frozenset[str]) -> Mapping[str, Json]:
    """The row's other keys."""
    if value.keys() <= known:
        return {}
    return {key: item for key, item in value.items() if key not in known}
