"""A local OpenAI-compatible server, started here: retries, order, journal, rate; and a judge that is known to cheat."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.config.evaluate import EvaluateConfig
from sftprep.errors import DataError, UsageError
from sftprep.evaluate import endpoint
from sftprep.evaluate.answer import Answer
from sftprep.evaluate.endpoint import Endpoint
from sftprep.evaluate.journal import Journal
from sftprep.evaluate.judge import Pair, length_controlled, questions, win_rate
from sftprep.evaluate.run import evaluate

Reply = Callable[[dict[str, Any]], Any]


class Served:
    """What a test server was asked, and how many requests it held at once."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.asked: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.active = self.most = 0
        self.lock = threading.Lock()


def completion(text: str, reason: str = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **more}
    return {"choices": [{"message": message, "finish_reason": reason}], "usage": {"completion_tokens": len(text)}}


@contextmanager
def serving(reply: Reply) -> Iterator[tuple[str, Served]]:
    served = Served(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with served.lock:
                served.asked.append(body | {"path": self.path})
                served.headers.append(dict(self.headers))
                served.times.append(time.monotonic())
                served.active += 1
                served.most = max(served.most, served.active)
            found = served.reply(body)
            status, headers, content = found if isinstance(found, tuple) else (200, {}, found)
            with served.lock:
                served.active -= 1
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


class Waits:
    """Stands in for the clock of an endpoint, which stands still, and keeps how long it would have waited."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds: list[float] = []
        monkeypatch.setattr(endpoint, "time", self)
        monkeypatch.setattr(Endpoint, "_wait", lambda _, seconds: self.seconds.append(seconds))

    def monotonic(self) -> float:
        return 1000.0


def test_answers_come_in_order_from_several_requests_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "abc")
    # Looks, not seconds: a machine that stands still meanwhile takes none away.
    looks_for_four, looks_for_a_fifth = iter(range(300)), iter(range(50))

    def held(body: dict[str, Any]) -> Any:
        while served.most < 4 and next(looks_for_four, None) is not None:
            time.sleep(0.01)
        while served.most < 5 and next(looks_for_a_fifth, None) is not None:
            time.sleep(0.01)
        return completion(f"re: {body['messages'][-1]['content']}")

    with serving(held) as (url, served):
        found = Endpoint(url, concurrency=4).answers("m", [asked(f"q{i}") for i in range(12)])
    assert [answer.text for answer in found] == [f"re: q{i}" for i in range(12)]
    assert served.most == 4
    assert {body["model"] for body in served.asked} == {"m"}
    assert {body["path"] for body in served.asked} == {"/v1/chat/completions"}
    assert {headers["Authorization"] for headers in served.headers} == {"Bearer abc"}


def test_a_busy_server_is_asked_again_and_told_waits_are_kept() -> None:
    failures = iter([(503, {}, b"busy"), (429, {"Retry-After": "1"}, b"slow down"), (500, {}, b"oops")])
    with serving(lambda body: next(failures, None) or completion("done")) as (url, served):
        found = Endpoint(url, first_wait=0.01).answers("m", [asked("q")])
    assert found == [Answer("done", 4, True)]
    assert len(served.asked) == 4
    assert served.times[2] - served.times[1] >= 1


@pytest.mark.parametrize(
    ("reply", "count"),
    [((400, {}, b"no such model"), 1), ((503, {}, b"busy"), 3), ((200, {}, b"<html>"), 1), ({"choices": []}, 1)],
)
def test_a_server_that_gives_no_answer_is_an_error_with_a_name(reply: Any, count: int) -> None:
    with serving(lambda body: reply) as (url, served), pytest.raises(DataError) as caught:
        Endpoint(url, num_tries=3, first_wait=0.01).answers("m", [asked("q")])
    assert caught.value.code == "endpoint-failed"
    assert len(served.asked) == count


def test_a_server_that_is_not_there_and_an_address_that_is_none_are_named() -> None:
    with pytest.raises(DataError, match="refused"):
        Endpoint("http://127.0.0.1:9/v1", num_tries=2, first_wait=0.01).answers("m", [asked("q")])
    with pytest.raises(UsageError):
        Endpoint("file:///etc")


def test_an_interrupted_run_asks_only_what_is_missing(tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    broken = {"q2"}

    def reply(body: dict[str, Any]) -> Any:
        text = body["messages"][-1]["content"]
        return (400, {}, b"no") if text in broken else completion(text)

    wanted = [asked(f"q{i}") for i in range(4)]
    with serving(reply) as (url, served):
        with pytest.raises(DataError):
            Endpoint(url, concurrency=1, journal=Journal(journal)).answers("m", wanted)
        with journal.open("a") as file:
            file.write('{"request": "cut sho')
        broken.clear()
        served.asked.clear()
        found = Endpoint(url, concurrency=1, journal=Journal(journal)).answers("m", wanted)
        assert [answer.text for answer in found] == ["q0", "q1", "q2", "q3"]
        again = [body["messages"][-1]["content"] for body in served.asked]
        # q3 may have been answered while the failure of q2 was on its way.
        assert again in (["q2"], ["q2", "q3"])
        served.asked.clear()
        assert Endpoint(url, journal=Journal(journal)).answers("m", wanted) == found
        assert served.asked == []


def test_requests_are_no_faster_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits(monkeypatch)
    with serving(lambda body: completion("x")) as (url, _):
        Endpoint(url, concurrency=8, per_second=4).answers("m", [asked(f"q{i}") for i in range(8)])
    assert sorted(waits.seconds) == [number / 4 for number in range(8)]


def test_calls_and_a_cut_answer_are_read_as_the_server_tells_them() -> None:
    call = {"function": {"name": "get_tide", "arguments": '{"place": "Skarv"}'}}
    replies = iter([completion("", "tool_calls", tool_calls=[call]), completion("on and", "length")])
    with serving(lambda body: next(replies)) as (url, _):
        told, cut = (Endpoint(url).answers("m", [asked("q")])[0] for _ in range(2))
    assert told.calls == ({"name": "get_tide", "arguments": {"place": "Skarv"}},)
    assert (told.stopped, cut.stopped) == (True, False)


def sides(body: dict[str, Any]) -> tuple[str, str]:
    found = re.search(r"\[answer A\]\n(.*)\n\n\[answer B\]\n(.*)\n\n\[end\]", body["messages"][0]["content"], re.DOTALL)
    assert found is not None
    return found[1], found[2]


def judged(reply: Callable[[str, str], str], pairs: list[Pair]) -> Any:
    with serving(lambda body: completion(reply(*sides(body)))) as (url, _):
        verdicts = Endpoint(url).answers("judge", questions(pairs))
    return win_rate(pairs, verdicts, judge="judge", against="old", seed=1)


def test_a_judge_that_always_takes_the_first_is_seen_and_decides_nothing() -> None:
    found = judged(lambda first, second: "A", [Pair("q", f"new {i}", f"old {i}") for i in range(10)])
    assert (found.win_rate, found.first_position, found.ties) == (0.5, 1.0, 10)


def test_a_fair_judge_finds_the_better_answers() -> None:
    pairs = [Pair("q", "good" if i % 4 else "bad", "fair") for i in range(40)]
    rank = {"good": 2, "fair": 1, "bad": 0}
    found = judged(lambda first, second: "A" if rank[first] > rank[second] else "B.", pairs)
    assert (found.wins, found.losses, found.first_position) == (30, 10, 0.5)
    assert found.win_rate == 0.75
    assert 0.5 < found.low < 0.75 < found.high < 1


def test_what_cannot_be_read_is_counted_and_left_out() -> None:
    pairs = [Pair("q", "new", "old"), Pair("q", "odd", "old")]
    found = judged(lambda first, second: "Both are fine" if "odd" in (first, second) else "tie", pairs)
    assert (found.num_cases, found.num_unreadable, found.ties) == (1, 1, 1)


def test_length_control_takes_away_what_length_alone_won() -> None:
    generator = np.random.default_rng(2)
    lengths = generator.normal(300, 400, 400)
    by_length = (lengths > 0).astype(float)
    assert by_length.mean() > 0.7
    assert 0.3 < length_controlled(by_length, lengths) < 0.6
    by_merit = (generator.random(400) < 0.8).astype(float)
    assert length_controlled(by_merit, lengths) == pytest.approx(0.8, abs=0.06)
    assert length_controlled(np.ones(5), np.zeros(5)) > 0.9


def test_a_whole_evaluation_by_servers(write_suite: Callable[..., str], tmp_path: Path) -> None:
    cases = [
        {
            **asked(f"Say {i}"),
            "id": f"c{i}",
            "tags": ["asked"],
            "scorers": [{"kind": "exact", "expected": [f"re: Say {i}"]}],
        }
        for i in range(6)
    ]
    suite = write_suite(cases)

    def reply(body: dict[str, Any]) -> Any:
        if body["model"] == "judge":
            first, _ = sides(body)
            return completion("A" if first.startswith("re:") else "B")
        text = body["messages"][-1]["content"]
        return completion(f"re: {text}" if body["model"] == "good" else "no idea at all, sorry")

    with serving(reply) as (url, served):
        config = EvaluateConfig(
            model="good", baseline="bad", suite=(suite,), endpoint=url, judge="judge", judge_endpoint=url
        )
        report = evaluate(config)
        assert {body["max_tokens"] for body in served.asked if body["model"] != "judge"} == {8}
        gate = ["--fail-on", "win-rate=0.5", "--html", str(tmp_path / "page.html")]
        swapped = ["--model", "bad", "--baseline", "good", "--suite", suite, "--endpoint", url]
        worse = CliRunner().invoke(
            app,
            ["evaluate", *swapped, "--judge", "judge", "--judge-endpoint", url, *gate],
        )
    assert report.suites[0].against_baseline.verdict == "better"
    assert report.win_rate.win_rate == 1
    assert report.model.num_prompts_proven == 0
    assert worse.exit_code == 1
    assert "FAILED  win-rate=0.5" in worse.output
    assert "FAILED  regression" in worse.output
    assert "which renders prompts itself" in " ".join(worse.output.split())
    assert "Win-rate" in (tmp_path / "page.html").read_text(encoding="utf-8")
