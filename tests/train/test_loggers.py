"""What other tools are told of a run is what metrics.jsonl says, a resumed run's steps once; a logger that cannot be
is an error before the first step."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner
from wandb.proto import wandb_internal_pb2

from sftprep.cli.app import app
from sftprep.config.train import TrainConfig
from sftprep.errors import OutputError, StoppedError, UsageError
from sftprep.train import loggers, run, setup
from sftprep.train.record import StepRecord
from sftprep.train.run import TrainResult, train
from tests.train.runs import metrics_of, stopping_after

ShardSetFactory = Callable[..., Path]


def _run(data: Path, model: Path, **options: Any) -> TrainResult:
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1} | options
    return train(TrainConfig(data=data, model=str(model), **settings), console=Console(quiet=True))


def _stopped_and_resumed(data: Path, model: Path, out: Path, *, log_to: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a run that was killed in its fourth step and resumed from its second."""
    real = run.run_steps

    def steps(*arguments: Any, **keywords: Any) -> Any:
        for record, position in real(*arguments, **keywords):
            if position.step == 4:
                raise RuntimeError("the machine is gone")
            yield record, position

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "run_steps", steps)
        with pytest.raises(RuntimeError, match="gone"):
            _run(data, model, out=out, log_to=(log_to,), save_every=2)
    _run(data, model, out=out, log_to=(log_to,), resume=True)
    return metrics_of(out / "metrics.jsonl")


def test_tensorboard_holds_each_step_of_a_resumed_run_once_as_metrics_say(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set(num_rows=10)
    lines = _stopped_and_resumed(data, toy_model, tmp_path / "out", log_to="tensorboard")
    shown = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    shown.Reload()
    assert {"train/nll", "train/lr", "train/grad_norm", "nll_by_source/all"} <= set(shown.Tags()["scalars"])
    for name in ("nll", "loss", "lr", "grad_norm", "num_tokens"):
        events = shown.Scalars(f"train/{name}")
        assert [event.step for event in events] == [1, 2, 3, 4, 5]
        assert [event.value for event in events] == pytest.approx([line[name] for line in lines], rel=1e-6)


def _wandb_history(place: Path) -> list[dict[str, float]]:
    """The logged steps of an offline run: LevelDB's log format behind a header of seven bytes."""
    data, at, found = place.read_bytes(), 7, []
    pending = b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        pending += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record.FromString(pending)
            pending = b""
            if record.WhichOneof("record_type") == "history":
                found.append(
                    {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                )
    return found


def test_wandb_is_told_each_step_and_a_resumed_run_goes_on_under_its_name(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MODE": "offline", "CACHE_DIR": "cache", "DATA_DIR": "data", "CONFIG_DIR": "config"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value if name == "MODE" else str(tmp_path / value))
    data, model, out = shard_set(num_rows=10), toy_model, tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(run, "run_steps", stopping_after(3))
        with pytest.raises(StoppedError):
            _run(data, model, out=out, log_to=("wandb",))
    _run(data, model, out=out, log_to=("wandb",), resume=True)
    files = sorted((out / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({path.name for path in files}) == 1, "the resumed run has another name"
    history = [line for path in files for line in _wandb_history(path)]
    lines = metrics_of(out / "metrics.jsonl")
    assert [line["train/step"] for line in history] == [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["train/nll"] for line in history] == pytest.approx([line["nll"] for line in lines])


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_extra_is_a_usage_error_before_the_model_is_opened(
    name: str, shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda asked, *rest: None if asked == name else found(asked, *rest)
    )
    monkeypatch.setattr(setup, "build_model", lambda *_, **__: pytest.fail("the model was opened"))
    with pytest.raises(UsageError, match=name) as raised:
        _run(shard_set(), toy_model, out=tmp_path / "out", log_to=(name,))
    assert (raised.value.code, raised.value.exit_code) == ("missing-extra", 2)
    assert not (tmp_path / "out.running").exists()


def test_wandb_without_a_login_is_named_and_trains_nothing(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refused(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.raises(OutputError, match="No API key") as raised:
        _run(shard_set(), toy_model, out=tmp_path / "out", log_to=("tensorboard", "wandb"))
    assert raised.value.code == "logger-failed"
    assert not (tmp_path / "out.running").exists()


def test_names_come_repeated_or_joined_by_commas_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    both = {"data": tmp_path / "d", "model": "m", "out": tmp_path / "o", "log_to": ("tensorboard,wandb",)}
    assert TrainConfig(**both).log_to == ("tensorboard", "wandb")
    shown = CliRunner().invoke(app, ["train", "d", "--model", "m", "--out", "o", "--log-to", "mlflow"])
    assert getattr(shown.exception, "code", "") == "bad-option"


def test_libraries_that_nobody_asked_for_are_not_imported() -> None:
    asked = "import sys, sftprep.train.run; sys.exit(bool({'wandb', 'tensorboard'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


def test_a_skipped_step_has_no_loss() -> None:
    values: dict[str, Any] = {"epoch": 0.5, "loss": 0.0, "nll": 0.0, "lr": 1e-3, "grad_norm": 0.0, "num_tokens": 8}
    record = StepRecord(
        step=3, num_trained=2, seconds=0.5, skipped=True, nll_by_source={}, trained_by_source={"a": 2}, **values
    )
    found = loggers.numbers_of(record)
    assert not {"train/loss", "train/nll", "train/grad_norm"} & found.keys()
    assert found["train/skipped"] == 1
    assert (found["train/num_tokens_per_second"], found["trained_by_source/a"]) == (16, 2)
