"""What servers answered, kept as it comes: one JSON object a line, so that the next run asks only what is missing."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sftprep.config.places import unwritten
from sftprep.data import Json
from sftprep.errors import UsageError

_BEGINNING: Final = b'{"request": "'
"""Of every line: what is cut short and begins otherwise is somebody else's, and is not ours to take away."""


@dataclass(slots=True)
class Journal:
    """Answers by the request's hash; with `path` None they are remembered for this run only."""

    path: Path | None = None
    _known: dict[str, Json] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Read what is there; a line that an interrupt cut short is taken away: its request is asked again.

        Raises:
            OutputError: `output-not-writable`, `disk-full`.
            UsageError: `bad-answers`: it holds something else.
        """
        if self.path is None:
            return
        try:
            with self.path.open("a+b") as file:
                file.seek(0)
                content = file.read()
                whole = content[: content.rfind(b"\n") + 1]
                self._known = dict(_entry(line, self.path) for line in whole.splitlines() if line.strip())
                cut_short = content[len(whole) :]
                if not cut_short.startswith(_BEGINNING[: len(cut_short)]):
                    raise _bad_answers(self.path)
                file.truncate(len(whole))
        except OSError as error:
            raise unwritten(self.path, error) from error

    def get(self, request: str) -> Json | None:
        """What was answered to a request, if it was."""
        return self._known.get(request)

    def keep(self, request: str, answer: Json) -> None:
        """Remember an answer. OutputError where it cannot be written down."""
        with self._lock:
            self._known[request] = answer
            if self.path is None:
                return
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"request": request, "answer": answer}) + "\n")
            except OSError as error:
                raise unwritten(self.path, error) from error


def _entry(line: bytes, place: Path) -> tuple[str, Json]:
    try:
        entry = json.loads(line)
        return str(entry["request"]), entry["answer"]
    except (ValueError, KeyError, TypeError) as error:
        raise _bad_answers(place) from error


def _bad_answers(place: Path) -> UsageError:
    return UsageError(
        "the file holds something else than answers of servers",
        code="bad-answers",
        place=str(place),
        hint="name a new file for --answers",
    )
