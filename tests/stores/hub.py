"""A server that speaks as much of the Hugging Face hub's protocol as reading and writing a dataset's files needs.

Large files (here: Parquet) go by LFS and not by Xet, which it does not speak.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import unquote

import pytest
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from sftprep.stores import access

Answer = Response | None


class Hub:
    """Datasets by id: the files of their one branch, `main`, each change a commit."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: list[str] = []
        """The path that each commit wrote, or removed with a minus before it."""
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int] = lambda method, path: 0
        """Told the method and the path of a request: 0 where it is served, else the status that it is refused with."""
        self._large: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        self.requests.append((request.method, request.path))
        status = self.fault(request.method, request.path)
        response = Response("not now", status=status) if status else self._answered(request)
        return response(environ, start_response)

    def _answered(self, request: Request) -> Response:
        if request.path.startswith("/large/"):
            self._large[request.path.removeprefix("/large/")] = request.get_data()
            return Response()
        parts = request.path.strip("/").split("/")
        if parts[0] == "api":
            parts = parts[1:]
        name = "/".join(parts[1:3]).removesuffix(".git")
        if parts[0] != "datasets" or name not in self.repositories:
            return _missing("RepoNotFound")
        action, rest = (parts[3] if len(parts) > 3 else ""), [unquote(part) for part in parts[4:]]
        if rest and action != "info" and rest[0] not in {"main", self._head(name)}:
            return _missing("RevisionNotFound")
        routes: dict[str, Callable[[], Response]] = {
            "": lambda: _json({"id": name, "sha": self._head(name), "private": False}),
            "revision": lambda: _json({"id": name, "sha": self._head(name), "private": False}),
            "tree": lambda: self._tree(
                name, "/".join(rest[1:]), recursive=request.args.get("recursive", "").lower() == "true"
            ),
            "paths-info": lambda: self._infos(name, request),
            "resolve": lambda: self._content(name, "/".join(rest[1:]), request),
            "preupload": lambda: _json({"files": [_mode(file["path"]) for file in request.get_json()["files"]]}),
            "commit": lambda: self._commit(name, request),
            "info": lambda: self._batch(request),
        }
        return routes[action]() if action in routes else Response(status=501)

    def _head(self, name: str) -> str:
        state = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.repositories[name].items())
        return hashlib.sha1(json.dumps(state).encode()).hexdigest()

    def _tree(self, name: str, folder: str, *, recursive: bool) -> Response:
        root = f"{folder}/" if folder else ""
        below = [path for path in self.repositories[name] if path.startswith(root)]
        if folder and not below:
            return _missing("EntryNotFound")
        depths = {path: path.removeprefix(root).count("/") for path in below}
        files = [path for path in below if recursive or not depths[path]]
        folders = {path[:at] for path in below for at in range(len(root), len(path)) if path[at] == "/"}
        if not recursive:
            folders = {path for path in folders if "/" not in path.removeprefix(root)}
        entries = [self._entry(name, path) for path in sorted(files)]
        return _json(
            [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)] + entries
        )

    def _infos(self, name: str, request: Request) -> Response:
        data = request.get_json(silent=True) or {"paths": request.form.getlist("paths")}
        paths = [data["paths"]] if isinstance(data["paths"], str) else data["paths"]
        return _json([self._entry(name, path) for path in paths if path in self.repositories[name]])

    def _entry(self, name: str, path: str) -> dict[str, Any]:
        data = self.repositories[name][path]
        entry = {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": path}
        if path.endswith(".parquet"):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def _content(self, name: str, path: str, request: Request) -> Response:
        data = self.repositories[name].get(path)
        if data is None:
            return _missing("EntryNotFound")
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self._head(name)}
        asked = request.range
        if asked is None:
            return Response(data, headers=headers)
        start, stop = asked.ranges[0]
        headers["Content-Range"] = f"bytes {start}-{min(stop or len(data), len(data)) - 1}/{len(data)}"
        return Response(data[start:stop], status=206, headers=headers)

    def _batch(self, request: Request) -> Response:
        objects = [
            {**asked, "actions": {"upload": {"href": f"{self.url}/large/{asked['oid']}"}}}
            for asked in request.get_json(force=True)["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, request: Request) -> Response:
        with self._lock:
            files = self.repositories[name]
            for line in request.get_data().splitlines():
                operation = json.loads(line)
                key, value = operation["key"], operation["value"]
                if key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    files[value["path"]] = self._large[value["oid"]]
                elif key == "deletedFile":
                    if value["path"] not in files:
                        return _missing("EntryNotFound")
                    files.pop(value["path"])
                if key != "header":
                    self.commits.append(f"{'-' if key == 'deletedFile' else ''}{value['path']}")
            head = self._head(name)
        return _json({"success": True, "commitOid": head, "commitUrl": f"{self.url}/datasets/{name}/commit/{head}"})


def _json(value: Any) -> Response:
    return Response(json.dumps(value), content_type="application/json")


def _missing(code: str) -> Response:
    return Response(status=404, headers={"X-Error-Code": code, "X-Error-Message": "not there"})


def _mode(path: str) -> dict[str, Any]:
    return {"path": path, "uploadMode": "lfs" if path.endswith(".parquet") else "regular", "shouldIgnore": False}


@pytest.fixture(scope="session")
def _hub() -> Hub:
    return Hub()


@pytest.fixture
def hub(_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one empty dataset, `us/chats`; tries do not wait."""
    # The hub's client takes 0.3 s to import, which tests of other stores do without.
    from huggingface_hub import HfFileSystem, constants

    _hub.repositories = {"us/chats": {}}
    _hub.commits, _hub.requests = [], []
    _hub.fault = lambda method, path: 0
    monkeypatch.setattr(constants, "ENDPOINT", _hub.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "".join([_hub.url, *template[1:]]))
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    monkeypatch.setattr(access, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    HfFileSystem.clear_instance_cache()
    yield _hub
    HfFileSystem.clear_instance_cache()
