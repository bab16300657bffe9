"""A Ray cluster of two nodes compiles what local processes compile, also when it loses workers and a node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sftprep.config.pack import PackConfig
from sftprep.engines.load import load_model
from sftprep.errors import DataError, EngineDiffersError, SftprepError, TemplateLimitError, UsageError
from sftprep.prepare import ray_runner
from sftprep.prepare.inputs import InputChunk
from sftprep.prepare.pack import pack
from sftprep.prepare.workers import Crew, compile_chunks
from sftprep.sources import lines
from sftprep.sources.blocks import LineBlock
from tests.prepare.test_pack_workers import lines_of
from tests.prepare.test_resume import bytes_of, options, rows

COMPILE = ray_runner._compile_in_worker
PATIENCE = 150
"""Seconds that the cluster may take to say what is so: it calls a node dead when several of its questions failed."""

pytestmark = pytest.mark.timeout(480)


class TwoNodes:
    """A cluster of the test's own on this machine; its second node may be lost, and is replaced when asked for."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster  # an extra that the fast tests here do without

        settings = {"object_store_memory": 80 << 20}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **settings})
        self.settings = settings
        self.second: Any = None

    def whole(self) -> str:
        """The address of the cluster, once it says itself that it has both nodes and no other."""
        if self.second is None:
            self.second = self.cluster.add_node(num_cpus=2, wait=False, **self.settings)
        nodes = {self.cluster.head_node.node_id, self.second.node_id}
        waited_for(lambda: self.told() == (nodes, 3), what="both nodes, and none that is lost", seen=self.told)
        return str(self.cluster.address)

    def told(self) -> tuple[set[str], float]:
        """Nodes that the cluster takes to be alive, and the CPUs that it counts."""
        state = self.cluster.global_state
        return {node["NodeID"] for node in state.node_table() if node["Alive"]}, state.cluster_resources().get("CPU", 0)

    def lose(self) -> None:
        """End the second node and all its workers by SIGKILL."""
        lost, self.second = self.second, None
        self.cluster.remove_node(lost, allow_graceful=False)


def waited_for(is_so: Callable[[], bool], *, what: str, seen: Callable[[], object]) -> None:
    """Until it is so; a test that waited in vain says what for, and what there was instead."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            pytest.fail(f"not in {PATIENCE} seconds: {what}; there is {seen()}")
        time.sleep(0.05)


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = TwoNodes()
        # Connected once: the runner uses the connection that it finds, and workers start once.
        ray.init(address=found.whole(), logging_level="ERROR", log_to_driver=False)
        yield found
        ray.shutdown()
        found.cluster.shutdown()


@pytest.fixture
def job(samples: Path, tmp_path: Path) -> dict[str, Any]:
    model = str(samples / "model")
    config = PackConfig(files=(Path("chats"),), model=model, out=tmp_path / "out", max_length=4096, runner="ray")
    directory = tmp_path / "spool"
    directory.mkdir()
    return {"model": load_model(model), "crew": Crew(config), "directory": directory}


def asking(job: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {**job, "crew": Crew(job["crew"].config.model_copy(update=options))}


def on(nodes: TwoNodes, job: dict[str, Any], **options: Any) -> dict[str, Any]:
    return asking(job, ray_address=nodes.whole(), **options)


def chunks(count: int, *, before: dict[int, Callable[[], object]] | None = None) -> Iterator[InputChunk]:
    """Chunks of one row; what stands in `before` is called before the chunk of that number is given away."""
    for line in range(1, count + 1):
        (before or {}).get(line, int)()
        messages = [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": "and so on " * line}]
        yield InputChunk(0, "chats", LineBlock(json.dumps({"messages": messages}).encode(), line, 0), 1)


class Diary:
    """What workers write into a file that all nodes see: which chunk was begun and ended, where."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, *, fault: Callable[..., None]) -> None:
        self.path = path
        compile_, place = COMPILE, str(path)

        # A function in a function is sent to the workers as it is, not by its name.
        def noted(job: list[Any], chunk: InputChunk) -> object:
            import os  # this runs in another process
            import time  # this runs in another process

            import ray  # this runs in another process

            def note(what: str) -> None:
                line = f"{what} {chunk.block.first} {os.getpid()} {ray.get_runtime_context().get_node_id()}\n"
                handle = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(handle, line.encode())
                os.close(handle)

            note("begun")
            fault(chunk, time.sleep)
            done = compile_(job, chunk)
            note("ended")
            return done

        monkeypatch.setattr(ray_runner, "_compile_in_worker", noted)

    def entries(self, what: str) -> list[tuple[int, int, str]]:
        """Chunk, process and node of each entry."""
        if not self.path.exists():
            return []
        entries = [line.split() for line in self.path.read_text(encoding="ascii").splitlines()]
        return [(int(line), int(pid), node) for found, line, pid, node in entries if found == what]

    def torn(self) -> list[tuple[int, int, str]]:
        """What was begun and has not ended there."""
        ended = self.entries("ended")
        return [entry for entry in self.entries("begun") if entry not in ended]

    def begun(self) -> Counter[int]:
        return Counter(line for line, _, _ in self.entries("begun"))


@pytest.mark.slow
def test_the_bytes_are_those_of_local_workers(nodes: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # H5: neither the runner nor the number of workers is in the fingerprint, and neither decides a byte.
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 13)
    call = options(tmp_path / "chats.jsonl", tmp_path / "out", rows(400))
    published = {}
    for workers in (1, 2, 8):
        pack(PackConfig(**{**call, "out": tmp_path / f"local{workers}", "workers": workers}))
        published[workers] = bytes_of(tmp_path / f"local{workers}")
    place, patience = tmp_path / "diary", PATIENCE

    def both(chunk: InputChunk, sleep: Callable[[float], None]) -> None:
        """A node that is there first leaves something for the other."""
        for _ in range(20 * patience):
            if len({line.split()[-1] for line in place.read_text(encoding="ascii").splitlines()}) > 1:
                break
            sleep(0.05)

    diary = Diary(place, monkeypatch, fault=both)
    result = pack(PackConfig(**call, runner="ray", ray_address=nodes.whole()))
    assert len({node for _, _, node in diary.entries("ended")}) == 2, "both nodes had a share"
    assert len(diary.begun()) == len(diary.entries("begun")) >= 5, "each chunk was given away once"
    assert result.shards.manifest.left_out.num_rows
    assert published[1] == published[2] == published[8] == bytes_of(tmp_path / "out")


@pytest.mark.slow
def test_chunks_of_a_killed_worker_and_of_a_lost_node_are_compiled_by_others(
    nodes: TwoNodes, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # H4: nothing lost, nothing twice.
    go, patience = str(tmp_path / "go"), PATIENCE

    def held(chunk: InputChunk, sleep: Callable[[float], None]) -> None:
        import os  # this runs in another process

        for _ in range(50 * patience):
            if not 8 <= chunk.block.first <= 11 or os.path.exists(go):
                break
            sleep(0.02)

    diary, lost = Diary(tmp_path / "diary", monkeypatch, fault=held), []

    def strike() -> None:
        # What is held stays begun; what came before it may end at any moment.
        waited_for(lambda: sum(line >= 8 for line, _, _ in diary.torn()) == 3, what="3 held chunks", seen=diary.torn)
        lost.append(nodes.second.node_id)
        nodes.lose()
        # A machine that is gone takes its processes with it, which here may outlive their node a little.
        for _, pid, _ in diary.torn():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        Path(go).touch()

    compiled = compile_chunks(chunks(24, before={12: strike}), **on(nodes, job))
    assert lines_of(compiled, job["directory"]) == [[line] for line in range(1, 25)]
    assert {line for line, _, _ in diary.entries("ended")} == set(range(1, 25))
    torn = Counter(node in lost for _, _, node in diary.torn())
    assert torn == {True: 2, False: 1}, "the node took two chunks with it, and the killed worker one"


@pytest.mark.slow
def test_a_chunk_that_ends_every_worker_is_an_error_that_names_its_rows(
    nodes: TwoNodes, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(chunk: InputChunk, sleep: Callable[[float], None]) -> None:
        import os  # this runs in another process

        if chunk.block.first == 5:
            os.kill(os.getpid(), 9)

    diary = Diary(tmp_path / "diary", monkeypatch, fault=die)
    done = []
    with pytest.raises(DataError) as caught:  # H4: no hang
        done.extend(lines_of(compile_chunks(chunks(12), **on(nodes, job)), job["directory"]))
    assert (caught.value.code, caught.value.place) == ("worker-died", "chats:5, or rows after it")
    assert diary.begun()[5] == ray_runner.TRIES
    assert max(count for line, count in diary.begun().items() if line != 5) == 1


@pytest.mark.slow
def test_a_chunk_whose_worker_could_not_fetch_what_it_needs_is_given_away_again(
    nodes: TwoNodes, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"

    def lost(chunk: InputChunk, sleep: Callable[[float], None]) -> None:
        import ray  # this runs in another process

        from sftprep.prepare.ray_runner import _Worker  # this runs in another process

        def failing(*_: object) -> None:
            ray.get = get
            raise ray.exceptions.ObjectLostError("0" * 56, owner_address=None, call_site="")

        if chunk.block.first == 2 and not gone.exists():
            gone.touch()
            get, ray.get, _Worker.job = ray.get, failing, ""

    diary = Diary(tmp_path / "diary", monkeypatch, fault=lost)
    assert lines_of(compile_chunks(chunks(4), **on(nodes, job)), job["directory"]) == [[1], [2], [3], [4]]
    assert diary.begun() == Counter({2: 2, 1: 1, 3: 1, 4: 1})


@pytest.mark.slow
def test_what_the_data_deserves_is_told_once_and_no_worker_tries_it_again(
    nodes: TwoNodes, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary(tmp_path / "diary", monkeypatch, fault=lambda *_: None)
    hostile = replace(job["model"], template="{{ messages[0].content * 10000000000 }}")
    with pytest.raises(TemplateLimitError):
        list(compile_chunks(chunks(3), **{**on(nodes, job), "model": hostile}))
    assert diary.begun()[1] == 1


@pytest.mark.slow
def test_an_engine_that_differs_on_a_worker_has_the_reference_do_all_again(
    nodes: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 13)
    call = options(tmp_path / "chats.jsonl", tmp_path / "out", rows(200))
    pack(PackConfig(**{**call, "out": tmp_path / "local", "tokenizer_engine": "reference"}))
    compile_, differs, place = COMPILE, EngineDiffersError, str(tmp_path / "diary")

    def differing(job: list[Any], chunk: InputChunk) -> object:
        import ray  # this runs in another process

        engine = ray.get(job[0]).config.tokenizer_engine
        with open(place, "a", encoding="ascii") as diary:
            diary.write(f"{engine}\n")
        if engine == "auto" and chunk.block.first > 50:
            raise differs("other ids", code="engine-differs", place=f"{chunk.name}:{chunk.block.first}")
        return compile_(job, chunk)

    monkeypatch.setattr(ray_runner, "_compile_in_worker", differing)
    result = pack(PackConfig(**call, runner="ray", ray_address=nodes.whole()))
    assert result.engine_differed.startswith(str(tmp_path / "chats.jsonl"))
    engines = Counter((tmp_path / "diary").read_text(encoding="ascii").split())
    assert engines["reference"] == sum(1 for _ in lines.read_blocks(tmp_path / "chats.jsonl", name="chats"))
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "local")


@pytest.mark.slow
def test_a_slow_chunk_holds_up_no_other_worker(
    nodes: TwoNodes, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # H1: who is free takes the next chunk. Given out in turn, every third would wait behind the first one.
    place, patience = tmp_path / "diary", PATIENCE

    def held(chunk: InputChunk, sleep: Callable[[float], None]) -> None:
        for _ in range(20 * patience):
            if chunk.block.first != 1 or place.read_bytes().count(b"ended") >= 5:
                break
            sleep(0.05)

    diary = Diary(place, monkeypatch, fault=held)
    assert lines_of(compile_chunks(chunks(9), **on(nodes, job)), job["directory"]) == [[line] for line in range(1, 10)]
    assert [line for line, _, _ in diary.entries("ended")].index(1) == 5, "all that were given out with it"


@pytest.mark.slow
def test_few_chunks_are_in_the_cluster_at_once(nodes: TwoNodes, job: dict[str, Any]) -> None:
    # H2: what is in memory is bounded by the workers, however long the input is.
    given = 0

    def counted() -> Iterator[InputChunk]:
        nonlocal given
        for chunk in chunks(30):
            given += 1
            yield chunk

    ahead = [given - done for done, _ in enumerate(compile_chunks(counted(), **on(nodes, job, workers=3)))]
    assert max(ahead) == 6
    ahead = [given - 30 - done for done, _ in enumerate(compile_chunks(counted(), **on(nodes, job)))]
    assert max(ahead) == 6, "without --workers, by the three CPUs that the two nodes have"


@pytest.mark.slow
def test_a_node_that_joins_in_mid_run_has_its_share_of_chunks(nodes: TwoNodes, job: dict[str, Any]) -> None:
    given, ahead = 0, []
    nodes.whole()

    def counted() -> Iterator[InputChunk]:
        nonlocal given
        for chunk in chunks(30):
            given += 1
            yield chunk

    for done, _ in enumerate(compile_chunks(counted(), **on(nodes, job))):
        ahead.append(given - done)
        if done == 10:
            third = nodes.cluster.add_node(num_cpus=4, wait=False, **nodes.settings)
            waited_for(lambda: nodes.told()[1] == 7, what="a third node", seen=nodes.told)
    nodes.cluster.remove_node(third, allow_graceful=False)
    assert (max(ahead[:11]), max(ahead[11:])) == (6, 14)


@pytest.mark.slow
def test_a_worker_with_other_versions_is_refused(
    nodes: TwoNodes, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {**ray_runner.versions(), "tokenizers": "0.0.1"}
    monkeypatch.setattr(ray_runner, "versions", lambda: wanted)
    with pytest.raises(UsageError, match=r"tokenizers .*, not 0\.0\.1") as caught:
        list(compile_chunks(chunks(3), **on(nodes, job)))
    assert caught.value.code == "worker-differs"


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["of its own", "that is there"])
def test_the_command_starts_a_cluster_or_finds_one(nodes: TwoNodes, tmp_path: Path, cluster: str) -> None:
    call = options(tmp_path / "chats.jsonl", tmp_path / "out", rows(50))
    words = ["--source", call["sources"][0], "--model", call["model"], "--out", str(tmp_path / "out")]
    address = ["--ray-address", nodes.whole()] if cluster == "that is there" else []
    limits = ["--max-length", "2048", "--max-drop", "10%", "--runner", "ray", "--workers", "1", *address]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "sftprep", "pack", *words, *limits]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    pack(PackConfig(**{**call, "out": tmp_path / "local"}))
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "local")


def test_where_nothing_is_left_to_do_no_cluster_is_asked_for(job: dict[str, Any]) -> None:
    assert list(compile_chunks(iter(()), **asking(job, ray_address="127.0.0.1:1"))) == []


def test_an_address_where_nothing_answers_is_named_at_once(job: dict[str, Any]) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError) as caught:
        list(compile_chunks(chunks(1), **asking(job, ray_address="127.0.0.1:1")))
    assert (caught.value.code, caught.value.place) == ("cluster-unreachable", "127.0.0.1:1")


def test_the_missing_extra_is_named(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SftprepError) as caught:
        list(compile_chunks(chunks(1), **job))
    assert (caught.value.code, caught.value.exit_code) == ("missing-extra", 2)
    assert "sftprep[ray]" in caught.value.hint


def test_an_address_needs_the_runner_and_is_a_host_and_a_port() -> None:
    with pytest.raises(ValidationError, match="--ray-address needs --runner ray"):
        PackConfig(files=("a",), model="m", out="o", max_length=8, ray_address="head:6379")
    with pytest.raises(ValidationError, match="ray_address"):
        PackConfig(files=("a",), model="m", out="o", max_length=8, runner="ray", ray_address="ray://head:10001")
