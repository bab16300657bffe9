"""A run goes on with what it began with: what would change it is refused, what may be another is said (J1)."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from sftprep.config.train import TrainConfig
from sftprep.errors import ShardError, TrainError
from sftprep.train import run
from sftprep.train.run import train
from tests.train.runs import interrupted_after, metrics_of

ShardSetFactory = Callable[..., Path]
LORA = {"lora_rank": 2, "lora_dropout": 0.3}


def _run(data: Path, model: Path, **options: Any) -> str:
    shown = io.StringIO()
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1, "epochs": 2} | options
    train(TrainConfig(data=data, model=str(model), **settings), console=Console(file=shown, width=200))
    return shown.getvalue()


@pytest.fixture
def begun(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """The set of a run with these options that was interrupted in its fourth step."""

    def begin(**options: Any) -> Path:
        data = shard_set(num_rows=9)
        with monkeypatch.context() as patched:
            patched.setattr(run, "run_steps", interrupted_after(3))
            with pytest.raises(KeyboardInterrupt):
                _run(data, toy_model, out=tmp_path / "out", save_every=1, **options)
        return data

    return begin


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LORA, LORA | {"lora_alpha": 64.0}),
        (LORA, {"lora_rank": 2}),
        (LORA, LORA | {"init": "random"}),
        (LORA, LORA | {"dtype": "bfloat16"}),
        (LORA, {}),
        ({}, LORA),
    ],
    ids=["alpha", "dropout", "weights", "their type", "no adapters", "adapters"],
)
def test_other_adapters_or_other_weights_under_them_are_refused_and_no_checkpoint_is_called_damaged(
    *, begun: Callable[..., Path], toy_model: Path, tmp_path: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    data = begun(**first)
    with pytest.raises(TrainError, match=r"adapter|another model") as raised:
        _run(data, toy_model, out=tmp_path / "out", resume=True, **second)
    assert raised.value.code == "resume-differs"
    _run(data, toy_model, out=tmp_path / "out", resume=True, **first)


@pytest.mark.parametrize("options", [{}, LORA], ids=["all weights", "adapters"])
def test_another_model_is_refused_and_the_same_one_elsewhere_is_the_same(
    begun: Callable[..., Path], toy_model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    data = begun(**options)
    torch.manual_seed(9)
    other = tmp_path / "other"
    LlamaForCausalLM(LlamaConfig.from_pretrained(toy_model)).save_pretrained(other)
    for changed in ({}, {"init": "random"}):
        with pytest.raises(TrainError, match="another model: pretrained weights") as raised:
            _run(data, other, out=tmp_path / "out", resume=True, **options, **changed)
        assert raised.value.code == "resume-differs"
    moved = toy_model.rename(tmp_path / "moved")
    _run(data, moved, out=tmp_path / "out", resume=True, **options)
    assert json.loads((tmp_path / "out" / "train.json").read_bytes())["config"]["model"] == str(moved)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("lr", 1e-3, "goes on with another --lr: 0.001, was 0.003"),
        ("max_grad_norm", 0.5, "goes on with another --max-grad-norm: 0.5, was 1.0"),
        ("epochs", 3.0, "goes on with another --epochs: 3.0, was 2.0"),
    ],
)
def test_what_may_be_another_is_said_once_and_takes_effect(
    *, begun: Callable[..., Path], toy_model: Path, tmp_path: Path, name: str, value: float, line: str
) -> None:
    shown = _run(begun(), toy_model, out=tmp_path / "out", resume=True, **{name: value})
    assert [text for text in shown.splitlines() if "goes on with" in text] == [line]
    lines = metrics_of(tmp_path / "out" / "metrics.jsonl")
    assert len(lines) == (15 if name == "epochs" else 10)
    assert (lines[3]["lr"] < 1e-3) == (name == "lr")


def test_a_run_that_goes_on_as_it_began_says_nothing_of_it(
    begun: Callable[..., Path], toy_model: Path, tmp_path: Path
) -> None:
    assert "goes on with" not in _run(begun(), toy_model, out=tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("options", "name"),
    [({}, "model.safetensors"), ({}, "config.json"), ({}, "position.json"), (LORA, "trainable.safetensors")],
)
def test_a_checkpoint_of_which_a_file_is_cut_off_is_named_and_the_one_before_goes_on(
    *, begun: Callable[..., Path], toy_model: Path, tmp_path: Path, options: dict[str, Any], name: str
) -> None:
    data = begun(**options)
    last = tmp_path / "out.running" / "checkpoints" / "step-00000003"
    os.truncate(last / name, (last / name).stat().st_size // 2)
    with pytest.raises(ShardError) as raised:
        _run(data, toy_model, out=tmp_path / "out", resume=True, **options)
    assert (raised.value.code, raised.value.place) == ("damaged-checkpoint", str(last))
    shutil.rmtree(last)
    _run(data, toy_model, out=tmp_path / "out", resume=True, **options)
    assert [line["step"] for line in metrics_of(tmp_path / "out" / "metrics.jsonl")] == list(range(1, 11))


def test_what_is_no_line_of_a_step_leaves_the_metrics_of_a_run_that_goes_on(
    begun: Callable[..., Path], toy_model: Path, tmp_path: Path
) -> None:
    data, metrics = begun(), tmp_path / "out.running" / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([lines[0], b"null\n", b"\xff\n", lines[2], lines[1][:40]]))
    _run(data, toy_model, out=tmp_path / "out", resume=True)
    assert [line["step"] for line in metrics_of(tmp_path / "out" / "metrics.jsonl")] == [1, *range(3, 11)]
