"""What goes wrong with a store is named by every command, with the place and what to do, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner, Result

from sftprep.cli.app import app
from sftprep.config.pack import PackConfig
from sftprep.config.places import place_of
from sftprep.errors import SftprepError
from sftprep.prepare.pack import pack
from sftprep.stores import access

if TYPE_CHECKING:
    from tests.stores.s3 import Server

pytest_plugins = ("tests.stores.s3",)

PACK = ["--model", "MODEL", "--max-length", "512", "--work-dir", "DIR/work"]
READS = {
    "pack": ["pack", "s3://bucket/chats.jsonl", *PACK, "--out", "DIR/out"],
    "validate": ["validate", "s3://bucket/chats.jsonl", "--good", "DIR/out"],
    "validate --against": ["validate", "IN/chats.jsonl", "--against", "s3://bucket/chats.jsonl"],
    "split": ["split", "s3://bucket/chats.jsonl", "--eval", "3", "--out", "DIR/out"],
    "evaluate --suite": ["evaluate", "--suite", "s3://bucket/chats.jsonl", "--model", "MODEL", "--json", "DIR/out"],
    "evaluate --against": [
        *["evaluate", "--held-out", "IN/packed", "--model", "MODEL", "--json", "DIR/out"],
        *["--against", "s3://bucket/chats.jsonl"],
    ],
}
"""Calls that read the file of a URL."""

SETS = {
    "append": ["pack", "IN/more.jsonl", *PACK, "--append", "--out", "s3://bucket/packed"],
    "audit": ["audit", "s3://bucket/packed", "--json", "DIR/out", "--cache-dir", "DIR/cache"],
    "audit --diff": ["audit", "IN/packed", "--diff", "s3://bucket/packed", "--json", "DIR/out"],
    "train": ["train", "s3://bucket/packed", "--model", "MODEL", "--out", "DIR/out", "--cache-dir", "DIR/cache"],
    "evaluate": [
        *["evaluate", "--suite", "tone", "--trained-on", "s3://bucket/packed", "--model", "MODEL"],
        *["--json", "DIR/out", "--cache-dir", "DIR/cache"],
    ],
}
"""Calls that read the set of a URL."""

WRITES = {
    "pack --out": ["pack", "IN/chats.jsonl", *PACK, "--out", "s3://bucket/out"],
    "validate --good": ["validate", "IN/chats.jsonl", "--good", "s3://bucket/out"],
    "audit --json": ["audit", "IN/packed", "--json", "s3://bucket/out"],
}
"""Calls that write to a URL."""


@pytest.fixture(scope="module")
def given(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with chats, more chats, and a set of the first."""
    place = tmp_path_factory.mktemp("given")
    for name, source in {"chats.jsonl": "openai.jsonl", "more.jsonl": "tools.jsonl"}.items():
        (place / name).write_bytes((samples / "good" / source).read_bytes())
    options: dict[str, Any] = {"model": str(samples / "model"), "out": place / "packed", "max_length": 512}
    pack(PackConfig(files=[place / "chats.jsonl"], **options))
    return place


@dataclass
class Place:
    """A store and a directory that hold the same chats and the same set, and what is done with them."""

    store: Any
    server: Server
    directory: Path
    names: dict[str, str]
    monkeypatch: pytest.MonkeyPatch

    def run(self, command: str, **changed: str) -> Result:
        """The result of a command of the tables; `changed` replaces parts of its words."""
        words = {**READS, **SETS, **WRITES}[command]
        for name, value in {**changed, **self.names}.items():
            words = [word.replace(name, value) for word in words]
        return CliRunner().invoke(app, words)

    def mend(self) -> None:
        """The server serves again, and lets us in."""
        self.server.fault = lambda method, path: ""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            self.monkeypatch.setenv(name, "test")
        type(self.store).clear_instance_cache()

    def objects(self) -> dict[str, str]:
        """All that is in the bucket, by what the store calls its bytes."""
        store: Any = place_of("s3://bucket").fs  # type: ignore[attr-defined]
        store.invalidate_cache()
        return {name: info["ETag"] for name, info in store.find("bucket", detail=True).items()}

    def files(self) -> list[str]:
        """All that was written here, but for copies and what packs keep to go on with."""
        names = (str(path.relative_to(self.directory)) for path in self.directory.rglob("*"))
        return sorted(name for name in names if not name.startswith(("cache", "work", "home")))


@pytest.fixture
def place(store: Any, server: Server, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in given.rglob("*"):
        if path.is_file():
            store.pipe_file(f"bucket/{path.relative_to(given)}", path.read_bytes())
    model = Path(__file__).resolve().parents[2] / "data_samples" / "model"
    return Place(
        store, server, tmp_path, {"MODEL": str(model), "IN/": f"{given}/", "DIR/": f"{tmp_path}/"}, monkeypatch
    )


def named(found: Result) -> tuple[str, str, int]:
    """Code, place and exit code of what a command said, which has a hint; validate says it as a finding."""
    if isinstance(found.exception, SftprepError):
        error = found.exception
        assert error.hint, "what to do about it"
        return error.code, error.place, error.exit_code
    assert found.exit_code == 1, f"{found.output}{found.exception!r}"
    line = next(line for line in found.output.splitlines() if line.startswith("s3://"))
    assert "hint: " in found.output
    return line.rpartition("[")[2].rstrip("]"), line.partition(": ")[0], found.exit_code


def refusing(place: Place) -> None:
    place.server.fault = lambda method, path: "refuse"


def without_credentials(place: Place) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        place.monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        place.monkeypatch.setenv(name, "/nowhere")
    type(place.store).clear_instance_cache()


def slow_down(place: Place) -> None:
    place.server.fault = lambda method, path: "fail"


def broken_bodies(place: Place) -> None:
    place.monkeypatch.setattr(access, "TRIES", 2)
    names = ("chats.jsonl", "manifest.json")
    place.server.fault = lambda method, path: "break" if method == "GET" and path.endswith(names) else ""


STOPPED = {"read-failed", "store-failed"}


@pytest.mark.parametrize(
    ("breaks", "command"),
    [(refusing, command) for command in (*READS, *SETS, *WRITES)]
    + [(without_credentials, command) for command in ("validate", "audit", "pack --out", "validate --good")],
)
def test_a_store_that_lets_nobody_in_is_named(place: Place, breaks: Callable[[Place], None], command: str) -> None:
    before = place.objects(), place.files()
    breaks(place)
    code, where, exit_code = named(place.run(command))
    assert (code, exit_code) == ("no-access", 2)
    assert where.startswith("s3://bucket")
    place.mend()
    assert (place.objects(), place.files()) == before


@pytest.mark.parametrize(
    ("breaks", "command"),
    [(slow_down, command) for command in (*READS, *SETS, *WRITES)]
    # Rows of --against are read when the models have answered; that they are there is seen before.
    + [(broken_bodies, command) for command in (*READS, *SETS) if command != "evaluate --against"],
)
def test_a_store_that_does_not_answer_is_named(place: Place, breaks: Callable[[Place], None], command: str) -> None:
    before = place.objects(), place.files()
    breaks(place)
    code, where, exit_code = named(place.run(command))
    assert code == "store-failed" if command in WRITES else code in STOPPED
    assert exit_code == (1 if code == "read-failed" else 2)
    assert where.startswith("s3://bucket")
    place.mend()
    assert (place.objects(), place.files()) == before


@pytest.mark.parametrize(
    ("command", "code", "exit_code"),
    [(command, "missing-file", 2) for command in READS]
    + [(command, "no-manifest", 1) for command in SETS if command != "audit --diff"]
    + [("audit --diff", "missing-file", 2)],
)
@pytest.mark.parametrize("bucket", ["bucket/none/", "none/"])
def test_what_is_not_there_is_named(place: Place, command: str, code: str, exit_code: int, bucket: str) -> None:
    before = place.objects(), place.files()
    found = place.run(command, **{"s3://bucket/": f"s3://{bucket}"})
    assert (named(found)[0], named(found)[2]) == (code, exit_code)
    assert named(found)[1].startswith(f"s3://{bucket}")
    assert (place.objects(), place.files()) == before


@pytest.mark.parametrize("command", WRITES)
def test_a_bucket_that_is_not_there_is_named_by_who_writes(place: Place, command: str) -> None:
    before = place.objects(), place.files()
    code, where, exit_code = named(place.run(command, **{"s3://bucket/": "s3://none/"}))
    assert (code, exit_code) == ("store-failed", 2)
    assert where.startswith("s3://none")
    assert (place.objects(), place.files()) == before


@pytest.mark.parametrize(
    ("damage", "command"),
    [("gone", command) for command in SETS] + [("other bytes", name) for name in ("audit", "audit --diff", "append")],
)
def test_a_shard_that_is_gone_or_another_is_named(place: Place, damage: str, command: str) -> None:
    (shard,) = (name for name in place.objects() if name.endswith(".parquet"))
    content = place.store.cat_file(shard)
    if damage == "gone":
        place.store.rm_file(shard)
    else:
        place.store.pipe_file(shard, content[:100] + bytes([content[100] ^ 1]) + content[101:])
    before = place.objects(), place.files()
    code = "missing-shard" if damage == "gone" else "shard-checksum"
    assert named(place.run(command)) == (code, f"s3://{shard}", 1)
    assert (place.objects(), place.files()) == before


def test_sources_that_a_store_closed_are_told_before_a_model_is_opened(place: Place) -> None:
    place.run("pack")
    place.server.fault = lambda method, path: "refuse"
    words = {"s3://bucket/packed": f"{place.directory}/out", "DIR/out": "DIR/report.json"}
    assert named(place.run("evaluate", **words)) == ("no-access", "s3://bucket/chats.jsonl", 2)


def test_an_object_that_changes_between_being_listed_and_being_read_is_refused(place: Place) -> None:
    # Its name for the bytes is in the fingerprint already: rows of other bytes would go by it.
    url = "s3://bucket/chats.jsonl"
    asked: list[str] = []

    def changed(method: str, path: str) -> None:
        if path.endswith("/chats.jsonl") and not asked:
            asked.append(method)
            place.server.after = lambda method, path: None
            type(place.store)(skip_instance_cache=True).copy("bucket/more.jsonl", "bucket/chats.jsonl")

    place.server.after = changed
    found = named(place.run("pack"))
    assert asked == ["HEAD"], "what names the bytes, before any of them is read"
    assert found == ("source-changed", url, 1)
    assert "out" not in place.files()


def test_an_object_that_changes_while_it_is_read_is_a_finding_and_no_row_is_kept(place: Place) -> None:
    content = place.store.cat_file("bucket/chats.jsonl")
    place.monkeypatch.setattr("sftprep.stores.read._BLOCK_BYTES", 1 << 10)
    place.store.pipe_file("bucket/chats.jsonl", content * (1 + (3 << 20) // len(content)))
    asked: list[str] = []

    def changed(method: str, path: str) -> None:
        if method == "GET" and path.endswith("/chats.jsonl"):
            asked.append(path)
        if len(asked) == 2:  # the first looks whether it is a table
            place.server.after = lambda method, path: None
            type(place.store)(skip_instance_cache=True).pipe_file("bucket/chats.jsonl", content)

    place.server.after = changed
    code, where, exit_code = named(place.run("validate"))
    assert (code, exit_code) == ("source-changed", 1)
    assert where.startswith("s3://bucket/chats.jsonl:")
    assert "out" not in place.files()


@pytest.mark.parametrize("command", [*WRITES, "append"])
def test_a_write_whose_answer_is_lost_once_is_made_again_and_whole(place: Place, command: str) -> None:
    lost: list[str] = []

    def once(method: str, path: str) -> str:
        if method != "PUT" or path in lost:
            return ""
        lost.append(path)
        return "break"

    place.server.fault = once
    assert place.run(command).exit_code == 0
    assert lost
    assert "bucket/packing.json" not in place.objects()
    place.mend()
    audited = {"pack --out": "out", "append": "packed"}.get(command)
    if audited is not None:
        assert place.run("audit", **{"bucket/packed": f"bucket/{audited}"}).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in WRITES if name != "pack --out"])
def test_a_command_that_is_killed_while_it_uploads_leaves_nothing_and_does_it_again(place: Place, command: str) -> None:
    before = place.objects()
    words = WRITES[command]
    for name, value in place.names.items():
        words = [word.replace(name, value) for word in words]
    killed: list[subprocess.Popen[bytes]] = []

    def kill(method: str, path: str) -> str:
        if method != "PUT":
            return ""
        place.server.fault = lambda method, path: ""
        killed[0].kill()
        killed[0].wait()
        return "fail"

    place.server.fault = kill
    killed.append(subprocess.Popen([sys.executable, "-m", "sftprep", *words], stdout=subprocess.DEVNULL))
    assert killed[0].wait(timeout=100) == -signal.SIGKILL
    assert place.objects() == before
    assert place.run(command).exit_code == 0
    assert place.objects().keys() == {*before, "bucket/out"}
