"""The optimizer's state on the disk: what a process wrote is what it goes on with (J3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from transformers import PreTrainedModel

from sftprep.config.train import TrainConfig
from sftprep.train import optimizer_state
from sftprep.train.distributed import ALONE
from sftprep.train.optim import build_optimizer
from sftprep.train.optimizer_state import OPTIMIZER, State, read_optimizer, write_optimizer
from tests import test_mutations
from tests.test_mutations import Plant, changed
from tests.train.test_selftest import small_model

CONFIG = TrainConfig(data="data", model="model", out=Path("out"), lr=1e-2)


def state_of(model: PreTrainedModel) -> State:
    return State(model, build_optimizer(model, CONFIG), ALONE)


@pytest.fixture
def stepped() -> State:
    """A state after a step in which one parameter had no gradient, and one has its rows and columns exchanged."""
    model = small_model("llama", {})
    layer: Any = model.model.layers[0]
    layer.mlp.up_proj.weight = torch.nn.Parameter(layer.mlp.up_proj.weight.detach().t().contiguous().t())
    layer.register_parameter("unused", torch.nn.Parameter(torch.zeros(3)))
    state = state_of(model)
    for number, parameter in enumerate(model.parameters()):
        if parameter is not layer.unused:
            parameter.grad = torch.full_like(parameter, 0.5 + number)
    state.optimizer.step()
    return state


def assert_same(found: State, wanted: State) -> None:
    assert len(wanted.optimizer.state) > 10
    assert found.optimizer.state.keys() == wanted.optimizer.state.keys()
    for parameter, kept in wanted.optimizer.state.items():
        for key, value in kept.items():
            other = found.optimizer.state[parameter][key]
            assert torch.equal(other, value), key
            assert other.stride() == value.stride(), key


def test_what_is_written_is_read_back_bit_for_bit(stepped: State, tmp_path: Path) -> None:
    write_optimizer(stepped, tmp_path / "state")
    found = state_of(stepped.model)
    read_optimizer(found, tmp_path / "state")
    assert_same(found, stepped)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_state_in_parts_as_versions_before_wrote_it_is_read_the_same(stepped: State, tmp_path: Path) -> None:
    held = {OPTIMIZER: get_optimizer_state_dict(stepped.model, stepped.optimizer)}
    state_dict_saver.save(held, checkpoint_id=tmp_path / "state", no_dist=True)
    found = state_of(stepped.model)
    read_optimizer(found, tmp_path / "state")
    assert_same(found, stepped)


def test_the_file_may_go_once_it_is_read(stepped: State, tmp_path: Path) -> None:
    write_optimizer(stepped, tmp_path / "state")
    found = state_of(stepped.model)
    read_optimizer(found, tmp_path / "state")
    (path,) = (tmp_path / "state").iterdir()
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert_same(found, stepped)


@pytest.mark.parametrize("other", ["shape", "name"])
def test_the_state_of_other_parameters_is_an_error_of_the_file(stepped: State, tmp_path: Path, other: str) -> None:
    write_optimizer(stepped, tmp_path / "state")
    layer: Any = stepped.model.model.layers[0]
    if other == "shape":
        layer.mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(1, 1))
    else:
        del layer.mlp.up_proj
    with pytest.raises(OSError, match="up_proj"):
        read_optimizer(state_of(stepped.model), tmp_path / "state")


def _swapped(held: Any, directory: Path) -> None:
    exchanged = {"exp_avg": "exp_avg_sq", "exp_avg_sq": "exp_avg", "step": "step"}
    state = {name: {exchanged[key]: value for key, value in kept.items()} for name, kept in held["state"].items()}
    WRITE(held | {"state": state}, directory)


WRITE = optimizer_state._write_whole
MUTATIONS = [
    (
        "the moments change places",
        changed(optimizer_state, "_write_whole", _swapped),
        test_what_is_written_is_read_back_bit_for_bit,
    ),
    (
        "pages of the file stay the state",
        changed(torch.Tensor, "copy_", lambda self, other, *_: self.set_(other)),
        test_the_file_may_go_once_it_is_read,
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation[0] for mutation in MUTATIONS])
def test_the_witness_sees_the_fault(
    mutation: tuple[str, Plant, Callable[..., object]],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    name, plant, witness = mutation
    test_mutations.test_the_witness_sees_the_fault((name, "J3", plant, witness, {}), monkeypatch, request)
