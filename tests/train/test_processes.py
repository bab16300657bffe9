"""Several processes, as torchrun starts them: the same gradients, the same steps, the same model (J1, I1, I2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sftprep.config.train import TrainConfig
from sftprep.errors import StoppedError
from sftprep.shards.read import open_shard_set
from sftprep.train import run
from sftprep.train.distributed import joined, whole
from sftprep.train.heldout import HeldOut, held_out_nll
from sftprep.train.loop import accumulate, local_batches
from sftprep.train.model import locate
from sftprep.train.optim import clip_and_step
from sftprep.train.rows import RowReader
from sftprep.train.run import train
from sftprep.train.setup import Where, build_model, build_trainee
from sftprep.train.stream import Schedule
from tests.train.runs import metrics_of, stopping_after

ShardSetFactory = Callable[..., Path]

GRADIENTS = """
import os, sys
from pathlib import Path
import torch
from tests.train.test_processes import gradients
found = gradients(Path(sys.argv[1]), sys.argv[2], attention=sys.argv[3], lora_rank=int(sys.argv[4]))
torch.save(found, sys.argv[5] + "-" + os.environ["RANK"])
"""

STOPPED = """
import os, sys
from sftprep.cli.app import main
from sftprep.train import run
from tests.train.runs import stopping_after

step = int(sys.argv.pop(1))
if step and os.environ["RANK"] == "0":
    run.run_steps = stopping_after(step)
main()
"""


def gradients(
    data: Path, model: str, *, attention: str, batch_size: int = 1, grad_accum: int = 8, lora_rank: int = 0
) -> dict[str, torch.Tensor]:
    """The first step's gradients, whole, its sums, its held-out loss before it, and the optimizer's moments after it.

    In whatever processes this is called; the gradients are scaled down on the way to the optimizer.
    """
    torch.set_num_threads(1)
    config = TrainConfig(
        data=data, model=model, out=data.with_name("out"), device="cpu", batch_size=batch_size, grad_accum=grad_accum
    )
    config = config.model_copy(update={"attention": attention, "lora_rank": lora_rank, "lora_dropout": 0.3})
    with joined() as world:
        shards = open_shard_set(data)
        reader = RowReader(shards)
        where = Where(locate(model), torch.device("cpu"), torch.float32, Console(quiet=True), world)
        built = build_model(config, shards=shards, where=where, resumed=None)
        with torch.no_grad():
            for name, parameter in built.named_parameters():
                if "lora_B" in name:  # as they begin, nothing of the gradient reaches the other half
                    parameter.fill_(0.1)
        trainee = build_trainee(config, model=built, shards=shards, reader=reader, where=where)
        schedule = Schedule(num_rows=shards.num_rows, rows_per_step=config.rows_per_step, seed=0)
        weight_sum = float(shards.scalars().weight_sum[schedule.rows(0)].sum())
        rows = [reader.row(int(number)) for number in schedule.share(0, rank=world.rank, size=world.size)]
        sums = accumulate(
            trainee, local_batches(trainee, rows, size=config.batch_size), weight_sum=weight_sum, step=0, config=config
        ).over(world)
        found = {name: whole(p.grad).clone() for name, p in built.named_parameters() if p.grad is not None}
        held = HeldOut(reader, num_rows=shards.num_rows, manifest=shards.manifest)
        found["held out"] = torch.tensor(held_out_nll(trainee, held, batch_size=2))
        found["norm"] = torch.tensor(clip_and_step(trainee.optimizer, max_norm=1e-3, place="step 1", loss=sums.loss))
        state = {name: trainee.optimizer.state[p] for name, p in built.named_parameters() if name in found}
        found |= {f"moment of {name}": whole(moments["exp_avg"]).clone() for name, moments in state.items()}
        return found | {"loss": torch.tensor(sums.loss), "num_trained": torch.tensor(float(sums.num_trained))}


def _launch(processes: int, *command: str) -> list[str]:
    started = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *started, *command]


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("batches", [(8, 1), (2, 4), (3, 3)])
@pytest.mark.parametrize("attention", ["segments", "unpack"])
def test_how_rows_are_cut_into_batches_does_not_change_the_gradient_i1(
    shard_set: ShardSetFactory, toy_model: Path, batches: tuple[int, int], attention: str
) -> None:
    data = shard_set(num_rows=8, weighted=True)
    wanted = gradients(data, str(toy_model), attention=attention)
    found = gradients(data, str(toy_model), attention=attention, batch_size=batches[0], grad_accum=batches[1])
    assert len(wanted) > 10
    assert {name for name in wanted if _relative(found[name], wanted[name]) > 1e-6} == set()


@pytest.mark.parametrize(
    ("processes", "attention", "lora_rank"),
    [(2, "segments", 0), (2, "segments", 4), pytest.param(3, "unpack", 0, marks=pytest.mark.slow)],
)
def test_how_many_processes_share_a_step_does_not_change_the_gradient_i2(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, *, processes: int, attention: str, lora_rank: int
) -> None:
    data = shard_set(num_rows=8, weighted=True)
    wanted = gradients(data, str(toy_model), attention=attention, lora_rank=lora_rank)
    assert all(float(wanted[name].norm()) > 0 for name in wanted)
    assert float(wanted["norm"]) > 1e-2
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    arguments = [str(data), str(toy_model), attention, str(lora_rank), str(tmp_path / "found")]
    command = _launch(processes, str(script), *arguments)
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-9000:]
    for rank in range(processes):
        found = torch.load(tmp_path / f"found-{rank}", weights_only=True)
        assert found.keys() == wanted.keys()
        assert {name for name in wanted if _relative(found[name], wanted[name]) > 1e-6} == set()


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_processes_take_disjoint_rows_that_are_together_the_step(
    num_rows: int, per_step: int, size: int, step: int
) -> None:
    schedule = Schedule(num_rows=num_rows, rows_per_step=per_step, seed=3)
    shares = [schedule.share(step, rank=rank, size=size) for rank in range(size)]
    assert sorted(np.concatenate(shares).tolist()) == sorted(schedule.rows(step).tolist())


def _torchrun(processes: int, data: Path, model: Path, out: Path, *, stop_at: int | None) -> int:
    """The exit code of a resumed run, one process of which is told to stop behind a step."""
    options = ["--grad-accum", "6", "--lr", "3e-3", "--epochs", "30", "--threads", "1", "--resume"]
    script = out.with_name("stopped.py")
    script.write_text(STOPPED)
    words = ["train", str(data), "--model", str(model), "--out", str(out), *options]
    command = _launch(processes, str(script), str(stop_at or 0), *words)
    with (out.parent / f"shown-{processes}").open("w") as shown:
        return subprocess.run(command, env=_environment(), stderr=shown, stdout=shown, check=False).returncode


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_goes_on_from_one_process_to_two_to_four_with_the_same_steps_j1(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set(num_rows=15)
    common: dict[str, Any] = {"grad_accum": 6, "lr": 3e-3, "epochs": 30, "device": "cpu", "threads": 1}
    config = TrainConfig(data=data, model=str(toy_model), out=tmp_path / "whole", **common)
    train(config, console=Console(quiet=True))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "run_steps", stopping_after(4))
        with pytest.raises(StoppedError):
            train(config.model_copy(update={"out": tmp_path / "out"}), console=Console(quiet=True))
    assert _torchrun(2, data, toy_model, tmp_path / "out", stop_at=8) != 0
    reached = [path.name for path in (tmp_path / "out.running" / "checkpoints").glob("step-*")]
    assert len(reached) == 2
    assert max(reached) > "step-00000007"
    assert _torchrun(4, data, toy_model, tmp_path / "out", stop_at=None) == 0, (tmp_path / "shown-4").read_text()[
        -3000:
    ]
    wanted, found = metrics_of(tmp_path / "whole" / "metrics.jsonl"), metrics_of(tmp_path / "out" / "metrics.jsonl")
    for name in ("step", "num_tokens", "num_trained"):
        assert [line[name] for line in found] == [line[name] for line in wanted]
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in wanted], rel=1e-4)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), torch.nn.Module)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole"))
    assert ours.keys() == theirs.keys()
    assert max(_relative(ours[name], theirs[name]) for name in ours) < 1e-2
