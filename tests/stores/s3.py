"""A server that speaks S3, which can be told to misbehave, and an empty bucket in it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

from sftprep.config.places import place_of
from sftprep.stores import access

Fault = Callable[[str, str], str]
"""Told the method and the path of a request: '' where it is served; `refuse`, `fail`, or `break` in mid-answer."""

_ANSWERS = {"refuse": ("AccessDenied", 403), "fail": ("SlowDown", 503)}


class Server:
    """What it stores outlives a stop, as it does in a store whose line is down."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._store: Any = DomainDispatcherApplication(create_backend_app)
        self._port = 0
        self.fault: Fault = lambda method, path: ""
        self.after: Callable[[str, str], object] = lambda method, path: None
        """Told of a request when the store has done what it asks for."""
        self.requests: list[tuple[str, str]] = []
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = make_server("127.0.0.1", self._port, self, threaded=True)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        fault = self.fault(method, path)
        if fault in _ANSWERS:
            code, status = _ANSWERS[fault]
            return Response(f"<Error><Code>{code}</Code></Error>", status=status)(environ, start_response)
        response = Response.from_app(self._store, environ)
        self.after(method, path)
        if fault != "break":
            return response(environ, start_response)
        start_response(response.status, list(response.headers))
        return self._broken(response.get_data())

    def _broken(self, body: bytes) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        raise ConnectionError("the line is cut here")


@pytest.fixture(scope="session")
def _server() -> Iterator[Server]:
    started = Server()
    yield started
    started.stop()


@pytest.fixture
def server(_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A store that is empty but for one bucket, by the variables that its clients read; tries do not wait."""
    _server.fault = _server.after = lambda method, path: ""
    urlopen(Request(f"{_server.url}/moto-api/reset", method="POST")).close()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    settings = {"AWS_ENDPOINT_URL": _server.url, "AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in {**keys, **settings}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(access, "FIRST_PAUSE_SECONDS", 0.01)
    # Its own tries, with pauses of seconds between them, stand below ours.
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    return _server


@pytest.fixture
def store(server: Server) -> Iterator[Any]:
    """The file system with the empty bucket."""
    found: Any = place_of("s3://bucket")
    type(found.fs).clear_instance_cache()
    found = place_of("s3://bucket")
    found.fs.mkdir("bucket")
    server.requests.clear()
    yield found.fs
    type(found.fs).clear_instance_cache()
