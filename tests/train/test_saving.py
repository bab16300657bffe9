"""A checkpoint is on the disk before it has its name: no crash and no failing disk leaves one that only looks whole."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from traceback import StackSummary
from typing import Any

import pytest
from rich.console import Console
from torch.distributed.checkpoint.api import CheckpointException

from sftprep.config.train import TrainConfig
from sftprep.errors import OutputError, ShardError, TrainError
from sftprep.shards import claim
from sftprep.train import optimizer_state, run
from sftprep.train.run import train
from sftprep.train.seeds import dropout_seed
from tests.train.runs import interrupted_after, metrics_of

ShardSetFactory = Callable[..., Path]
SETTINGS: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1, "epochs": 2}

KILLED = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from sftprep.config.train import TrainConfig
from sftprep.train.run import train
from tests.train import test_saving

kind, number, *rest = sys.argv[1:]
test_saving.kill_at(kind, int(number))
settings = test_saving.SETTINGS | {"save_every": 1, "keep_last": 1}
train(TrainConfig(data=rest[0], model=rest[1], out=rest[2], **settings), console=Console(quiet=True))
"""


def _run(data: Path, model: Path, **options: Any) -> None:
    train(TrainConfig(data=data, model=str(model), **(SETTINGS | options)), console=Console(quiet=True))


def _parameters(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


class _Disk:
    """What would survive a power cut: the state of each file when it was last synced, and of each directory."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.synced: dict[int, tuple[int, int]] = {}
        self.renamed: list[str] = []
        self._fsync, self._rename = os.fsync, os.rename
        patched.setattr(os, "fsync", self.fsync)
        patched.setattr(os, "rename", self.rename)
        # Path.rename and Path.replace call the function that pathlib found when it was imported.
        patched.setattr(Path, "rename", lambda path, target: self.rename(path, target) or Path(target))
        patched.setattr(Path, "replace", lambda path, target: self.rename(path, target) or Path(target))

    def fsync(self, handle: int) -> None:
        self._fsync(handle)
        self.synced[os.fstat(handle).st_ino] = self._state(os.fstat(handle))

    def rename(self, source: Any, target: Any) -> None:
        name = Path(target).name
        if name.startswith("step-") or name == "out":
            lost = [
                str(path.relative_to(source))
                for path in (Path(source), *Path(source).rglob("*"))
                if self.synced.get(path.stat().st_ino) != self._state(path.stat())
            ]
            assert not lost, f"{name} would have its name and not these: {lost}"
            self.renamed.append(name)
        self._rename(source, target)

    def _state(self, found: os.stat_result) -> tuple[int, int]:
        return found.st_mtime_ns, found.st_size


def test_all_of_a_checkpoint_and_of_the_model_is_synced_before_it_is_renamed(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = _Disk(monkeypatch)
    _run(shard_set(num_rows=9), toy_model, out=tmp_path / "out", save_every=4)
    assert disk.renamed == ["step-00000004", "step-00000008", "out"]


@pytest.mark.parametrize("call", [1, 2, 3, 4, 9])
def test_a_disk_that_fails_while_saving_leaves_the_checkpoint_before_and_says_so(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    data, running = shard_set(num_rows=9), tmp_path / "out.running" / "checkpoints"
    _run(data, toy_model, out=tmp_path / "whole")
    fsync, calls = os.fsync, 0

    def failing(handle: int) -> None:
        nonlocal calls
        if (running / "step-00000003").exists():
            calls += 1
            if calls == call:
                raise OSError(errno.EIO, "Input/output error")
        fsync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(OutputError, match="Input/output") as raised:
            _run(data, toy_model, out=tmp_path / "out", save_every=3)
    assert raised.value.code == "output-not-writable"
    assert [path.name for path in running.glob("step-*")] == ["step-00000003"]
    _run(data, toy_model, out=tmp_path / "out", resume=True)
    assert _parameters(tmp_path / "out") == _parameters(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["emptied", "cut", "gone"])
def test_a_checkpoint_whose_optimizer_state_is_damaged_is_named_and_the_one_before_goes_on(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, damage: str
) -> None:
    data, running = shard_set(num_rows=9), tmp_path / "out.running" / "checkpoints"
    _run(data, toy_model, out=tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "run_steps", interrupted_after(8))
        with pytest.raises(KeyboardInterrupt):
            _run(data, toy_model, out=tmp_path / "out", save_every=3)
    part = next((running / "step-00000006" / "optimizer").iterdir())
    if damage == "gone":
        part.unlink()
    else:
        os.truncate(part, 0 if damage == "emptied" else part.stat().st_size // 2)
    with pytest.raises(ShardError, match="cannot be read") as raised:
        _run(data, toy_model, out=tmp_path / "out", resume=True)
    assert raised.value.code == "damaged-checkpoint"
    shutil.rmtree(running / "step-00000006")
    _run(data, toy_model, out=tmp_path / "out", resume=True)
    assert _parameters(tmp_path / "out") == _parameters(tmp_path / "whole")


def kill_at(kind: str, number: int) -> None:
    """SIGKILL for this process at a call that saving makes, counted from 1."""
    owner: Any = Path if kind == "rename" else os
    real, calls = getattr(owner, kind), 0

    def killing(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **keywords)

    setattr(owner, kind, killing)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        # Of each save we rename the directory; with one checkpoint kept, the one before leaves.
        ("rename", 2),
        pytest.param("rmdir", 1, marks=pytest.mark.slow),
        pytest.param("unlink", 3, marks=pytest.mark.slow),
        # A save asks ten times: nine for what lies in the directory and for itself, one for its name.
        pytest.param("fsync", 19, marks=pytest.mark.slow),
        pytest.param("fsync", 31, marks=pytest.mark.slow),
    ],
)
def test_a_kill_inside_a_save_or_a_removal_leaves_one_that_goes_on_and_no_rubbish(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, kind: str, number: int
) -> None:
    data = shard_set(num_rows=9)
    _run(data, toy_model, out=tmp_path / "whole")
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    root = str(Path(__file__).resolve().parents[2])
    arguments = [sys.executable, str(script), kind, str(number), str(data), str(toy_model), str(tmp_path / "out")]
    killed = subprocess.run(arguments, env={**os.environ, "PYTHONPATH": root}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "out.running" / "checkpoints").glob(".step-*")), "the kill left nothing half done"
    _run(data, toy_model, out=tmp_path / "out", resume=True)
    assert _parameters(tmp_path / "out") == _parameters(tmp_path / "whole")
    assert [line["step"] for line in metrics_of(tmp_path / "out" / "metrics.jsonl")] == list(range(1, 11))
    assert not list((tmp_path / "out" / "checkpoints").glob(".*"))


def test_the_seed_of_dropout_is_the_same_in_every_version_and_differs_by_seed_step_and_batch() -> None:
    # What versions before gave: a run that they began must go on in the same bits.
    assert dropout_seed(0, step=0, slot=0) == 8010594611326568526
    seeds = [dropout_seed(seed, step=step, slot=slot) for seed in range(9) for step in range(40) for slot in range(9)]
    assert len(set(seeds)) == 9 * 40 * 9
    assert all(0 <= seed < 2**63 for seed in [*seeds, dropout_seed(2**63 - 1, step=2**40, slot=2**20)])


@pytest.mark.parametrize("option", ["weight_decay", "beta1", "beta2"])
def test_a_resumption_with_other_terms_of_the_optimizer_is_refused(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    data = shard_set(num_rows=9)
    with monkeypatch.context() as patched:
        patched.setattr(run, "run_steps", interrupted_after(2))
        with pytest.raises(KeyboardInterrupt):
            _run(data, toy_model, out=tmp_path / "out", save_every=1)
    with pytest.raises(TrainError) as raised:
        _run(data, toy_model, out=tmp_path / "out", resume=True, **{option: 0.5})
    assert raised.value.code == "resume-differs"
    _run(data, toy_model, out=tmp_path / "out", resume=True)


def test_a_second_run_to_the_same_place_is_refused_and_the_first_goes_on(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, real, codes = shard_set(num_rows=9), run.run_steps, []

    def steps(*arguments: Any, **keywords: Any) -> Any:
        for item in real(*arguments, **keywords):
            with pytest.raises(OutputError) as raised:
                _run(data, toy_model, out=tmp_path / "out", overwrite=True)
            codes.append(raised.value.code)
            yield item

    monkeypatch.setattr(run, "run_steps", steps)
    _run(data, toy_model, out=tmp_path / "out", max_steps=2)
    assert codes == ["output-busy", "output-busy"]
    assert len(metrics_of(tmp_path / "out" / "metrics.jsonl")) == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".out", "out."))) == []


def test_a_file_system_without_locks_is_told_of_and_trained_on(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claim.fcntl, "flock", refusing)
    _run(shard_set(num_rows=9), toy_model, out=tmp_path / "out", max_steps=1)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_model_that_a_killed_run_had_set_aside_is_put_back_and_one_that_it_had_replaced_goes(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data, out, aside = shard_set(num_rows=9), tmp_path / "out", tmp_path / "out.running.old"
    _run(data, toy_model, out=out, max_steps=1)
    first = _parameters(out)
    out.rename(aside)
    with pytest.raises(OutputError) as raised:
        _run(data, toy_model, out=out, max_steps=2)
    assert (raised.value.code, _parameters(out)) == ("output-not-empty", first)
    shutil.copytree(out, aside)
    (aside / "model.safetensors").unlink()
    _run(data, toy_model, out=out, max_steps=2, overwrite=True)
    assert _parameters(out) != first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]


@pytest.mark.parametrize(("cause", "seen"), [(KeyboardInterrupt(), KeyboardInterrupt), (ValueError("bad"), OSError)])
def test_ctrl_c_in_a_save_of_several_processes_is_an_interrupt_and_no_failing_disk(
    tmp_path: Path, cause: BaseException, seen: type[BaseException]
) -> None:
    with pytest.raises(seen), optimizer_state._as_file_errors(tmp_path):
        raise CheckpointException("write", {0: (cause, StackSummary())})
