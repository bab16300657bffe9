"""What one of several processes finds wrong with compiled layers, all of them say: none is left waiting for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sftprep.config.train import TrainConfig

IN_A_PROCESS = """
import os, sys
from functools import partial
from pathlib import Path
from rich.console import Console
from sftprep.config.train import TrainConfig
from sftprep.errors import TrainError
from sftprep.train import compiled, setup
from sftprep.train.run import train

def failing(_):
    raise TrainError("no compiler here", code="compile-failed")

fault, rank = sys.argv[2], os.environ["RANK"]
setup.compile_layers = partial(compiled.compile_layers, backend="aot_eager")
if fault != "compile-failed":
    compiled._try_compiler = lambda _: None
elif rank == "1":
    compiled._try_compiler = failing
if fault == "compile-differs" and rank == "1":
    compiled._TOLERANCE = dict.fromkeys(compiled._TOLERANCE, -1.0)
try:
    train(TrainConfig.model_validate_json(sys.argv[1]), console=Console(quiet=True))
    said = "trained"
except TrainError as error:
    said = error.code
Path(sys.argv[3] + "-" + rank).write_text(said)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["compile-failed", "compile-differs"])
def test_all_processes_say_what_is_wrong_in_one_of_them(
    shard_set: Callable[..., Path], toy_model: Path, tmp_path: Path, fault: str
) -> None:
    settings = {"max_steps": 1, "grad_accum": 2, "device": "cpu", "threads": 1, "compile_layers": True}
    config = TrainConfig(data=shard_set(), model=str(toy_model), out=tmp_path / "out", **settings)
    (tmp_path / "train.py").write_text(IN_A_PROCESS)
    started = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "train.py")]
    command = [sys.executable, *started, config.model_dump_json(), fault, str(tmp_path / "said")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)] == [fault, fault]
