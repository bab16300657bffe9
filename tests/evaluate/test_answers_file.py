"""`--answers` and a server that is busy: nothing is asked twice, nothing too early, nothing is waited for in vain."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.errors import DataError, OutputError, UsageError
from sftprep.evaluate import endpoint
from sftprep.evaluate.endpoint import Endpoint, _told_wait
from sftprep.evaluate.journal import Journal
from tests.evaluate.test_endpoint_judge import Waits, asked, completion, serving

WriteSuite = Callable[..., str]
QUESTIONS = [f"How deep is berth {number}?" for number in range(6)]


def cases() -> list[dict[str, Any]]:
    return [
        {**asked(text), "id": text, "tags": ["asked"], "scorers": [{"kind": "exact", "expected": [text]}]}
        for text in QUESTIONS
    ]


def report(place: Path) -> list[str]:
    return [case["answer"]["text"] for case in json.loads(place.read_bytes())["cases"]]


def said(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def test_a_command_that_was_interrupted_asks_only_what_is_missing_and_reports_all(
    write_suite: WriteSuite, tmp_path: Path
) -> None:
    broken = {QUESTIONS[3]}
    command = ["evaluate", "--model", "m", "--suite", write_suite(cases()), "--concurrency", "1", "--fail-on"]
    command += ["pass-rate=1", "--answers", str(tmp_path / "answers.jsonl"), "--json", str(tmp_path / "r.json")]

    def reply(body: dict[str, Any]) -> Any:
        return (400, {}, b"no") if said(body) in broken else completion(said(body))

    with serving(reply) as (url, served):
        failed = CliRunner().invoke(app, [*command, "--endpoint", url])
        assert getattr(failed.exception, "code", "") == "endpoint-failed"
        assert not (tmp_path / "r.json").exists()
        # Those behind the fourth may have been answered while its failure was on its way.
        kept = [json.loads(line)["answer"] for line in (tmp_path / "answers.jsonl").read_bytes().splitlines()]
        answered = [one["choices"][0]["message"]["content"] for one in kept]
        assert answered[:3] == QUESTIONS[:3]
        assert QUESTIONS[3] not in answered
        broken.clear()
        served.asked.clear()
        done = CliRunner().invoke(app, [*command, "--endpoint", url])
        assert done.exit_code == 0, done.output
        assert report(tmp_path / "r.json") == QUESTIONS
        assert [said(body) for body in served.asked] == [text for text in QUESTIONS if text not in answered]
        served.asked.clear()
        again = CliRunner().invoke(app, [*command, "--endpoint", url])
    assert (again.exit_code, served.asked) == (0, [])


def test_a_file_of_something_else_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "chats.jsonl"
    for content in (b'{"messages": []}\n', b"no JSON\n", b"[1]\n", b"a note without a line end"):
        other.write_bytes(content)
        with pytest.raises(UsageError) as caught:
            Journal(other)
        assert (caught.value.code, caught.value.place) == ("bad-answers", str(other))
        assert other.read_bytes() == content


def test_a_file_that_cannot_be_written_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        Journal(tmp_path / "nowhere" / "answers.jsonl")
    assert caught.value.code == "output-not-writable"


def test_what_a_server_says_of_waiting_holds_for_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, told = Waits(monkeypatch), iter([(429, {"Retry-After": "8"}, b"slow down")])
    with serving(lambda body: next(told, None) or completion(said(body))) as (url, _):
        found = Endpoint(url, concurrency=1, first_wait=0.5).answers("m", [asked(text) for text in QUESTIONS])
    assert [answer.text for answer in found] == QUESTIONS
    # Before the first request, before it is tried again, and then before every one, as the clock stands still.
    assert waits.seconds == [0, 0.5, 8, *[8] * (len(QUESTIONS) - 1)]


def test_a_wait_is_told_in_seconds_or_as_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=500), usegmt=True)
    assert 200 < _told_wait(soon) <= 500
    told = {"2": 2.0, "1.5": 1.5, "99999999": 600.0, "": 0.0, "soon": 0.0, "-3": 0.0, "nan": 0.0}
    assert {header: _told_wait(header) for header in told} == told
    assert _told_wait(format_datetime(datetime.now(UTC) - timedelta(seconds=60), usegmt=True)) == 0


def test_a_failure_ends_the_run_while_others_wait_for_a_busy_server(monkeypatch: pytest.MonkeyPatch) -> None:
    others = threading.Semaphore(0)

    def reply(body: dict[str, Any]) -> Any:
        if said(body) != "bad":
            others.release()
            return 503, {}, b"busy"
        for _ in range(3):
            others.acquire()
        return 400, {}, b"no"

    # Those who wait would do so for hours: that the run ends at all is what is asked for.
    monkeypatch.setattr(endpoint, "_LONGEST_WAIT", 1e5)
    with serving(reply) as (url, _), pytest.raises(DataError, match="HTTP 400"):
        Endpoint(url, concurrency=4, first_wait=1e5).answers("m", [asked(text) for text in ("bad", "a", "b", "c")])
