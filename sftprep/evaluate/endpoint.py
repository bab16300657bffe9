"""An OpenAI-compatible server: asked by several threads, retried, no faster than allowed, and never twice the same."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final
from urllib.parse import urlsplit

from sftprep.data import Json
from sftprep.errors import DataError, UsageError
from sftprep.evaluate.answer import Answer
from sftprep.evaluate.journal import Journal

API_KEY: Final = "OPENAI_API_KEY"
_RETRIED: Final = frozenset({408, 409, 429, 500, 502, 503, 504})
_LONGEST_WAIT: Final = 30.0
_LONGEST_TOLD_WAIT: Final = 600.0
_STOPPED: Final = frozenset({"stop", "tool_calls"})

Question = Mapping[str, Json]
"""The body of a chat completion request, without the model's name."""


@dataclass(slots=True)
class Endpoint:
    """A server's address (up to and including `/v1`) and how it may be asked.

    `per_second` 0 means no limit; a failed request is tried `num_tries` times in all, the waits doubling from
    `first_wait` seconds. Where a server says how long to wait (`Retry-After`), all requests wait so long.
    """

    url: str
    concurrency: int = 8
    per_second: float = 0.0
    num_tries: int = 7
    first_wait: float = 0.5
    timeout: float = 300.0
    journal: Journal = field(default_factory=Journal)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)
    _next_slot: float = 0.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(
                f"not an address of a server: {self.url}",
                code="bad-option",
                hint="give the address up to /v1, such as http://127.0.0.1:8000/v1",
            )

    def answers(self, model: str, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order. DataError `endpoint-failed` where the server keeps failing."""
        self._ended.clear()
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(self._answer, {"model": model, **question}) for question in questions]
            try:
                return [future.result() for future in futures]
            except BaseException:
                # Those who wait for a busy server would hold up the end by minutes.
                self._ended.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _answer(self, body: dict[str, Json]) -> Answer:
        content = json.dumps(body, sort_keys=True)
        key = hashlib.sha256(content.encode()).hexdigest()
        known = self.journal.get(key)
        if known is None:
            known = self._asked(content)
            answer = _read(known, self.url)
            self.journal.keep(key, known)
            return answer
        return _read(known, self.url)

    def _asked(self, content: str) -> Json:
        wait, why = self.first_wait, ""
        for attempt in range(self.num_tries):
            if attempt:
                self._wait(min(wait, _LONGEST_WAIT))
                wait *= 2
            self._take_slot()
            try:
                status, told_wait, text = self._post(content)
            except (OSError, HTTPException) as error:
                why = str(error) or type(error).__name__
                continue
            if status < 300:
                return _json(text, self.url)
            why = f"HTTP {status}: {text[:200].decode('utf-8', 'replace')}"
            if status not in _RETRIED:
                break
            self._hold_back(told_wait)
        raise DataError(
            f"the server gave no answer: {why}",
            code="endpoint-failed",
            place=self.url,
            hint=f"what was answered is kept with --answers; {API_KEY} is sent where it is set",
        )

    def _take_slot(self) -> None:
        """Wait until the next request is allowed."""
        with self._lock:
            now = time.monotonic()
            slot = max(now, self._next_slot)
            self._next_slot = slot + (1 / self.per_second if self.per_second else 0.0)
        self._wait(slot - now)

    def _hold_back(self, seconds: float) -> None:
        """No request before so many seconds are over."""
        with self._lock:
            self._next_slot = max(self._next_slot, time.monotonic() + seconds)

    def _wait(self, seconds: float) -> None:
        """Sleep, unless another request's failure ends the run."""
        if self._ended.wait(seconds):
            raise DataError("the run ends", code="endpoint-failed", place=self.url)

    def _post(self, content: str) -> tuple[int, float, bytes]:
        """Status, seconds that the server asks to wait, and body."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=self.timeout)
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(API_KEY):
            headers["Authorization"] = f"Bearer {key}"
        try:
            connection.request("POST", f"{parts.path.rstrip('/')}/chat/completions", content, headers)
            response = connection.getresponse()
            return response.status, _told_wait(response.getheader("Retry-After")), response.read()
        finally:
            connection.close()


def _told_wait(header: str | None) -> float:
    """Seconds that `Retry-After` asks for, as a number or as a date; 0 where it says nothing that can be read."""
    if not header:
        return 0.0
    if header.replace(".", "", 1).isdecimal():
        return min(float(header), _LONGEST_TOLD_WAIT)
    try:
        seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_TOLD_WAIT)


def _json(text: bytes, place: str) -> Json:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _strange(place) from error


def _read(found: Any, place: str) -> Answer:
    try:
        choice = found["choices"][0]
        message = choice["message"]
        calls = tuple(_call(call["function"]) for call in message.get("tool_calls") or ())
        text, reason = message.get("content") or "", choice["finish_reason"]
        used = (found.get("usage") or {}).get("completion_tokens", 0)
        return Answer(str(text), int(used), reason in _STOPPED, calls or None)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise _strange(place) from error


def _call(function: Mapping[str, Json]) -> Json:
    """Name and arguments; arguments that are not JSON stay the text that they are."""
    arguments = function["arguments"]
    try:
        return {"name": function["name"], "arguments": json.loads(arguments)}
    except ValueError:
        return {"name": function["name"], "arguments": arguments}


def _strange(place: str) -> DataError:
    return DataError(
        "what the server answered is no chat completion",
        code="endpoint-failed",
        place=place,
        hint="is the address the one before /chat/completions?",
    )
