"""Gradients are scaled down to a norm where the optimizer reads them, in no pass of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sftprep.config.train import TrainConfig
from sftprep.train.optim import ClippingAdamW, build_optimizer, clip_and_step

GIVEN = {"place": "step 1", "loss": 1.0}


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(33, 17), torch.nn.LayerNorm(17), torch.nn.Linear(17, 5))


def optimizer_of(trained: torch.nn.Module) -> ClippingAdamW:
    return build_optimizer(trained, TrainConfig(data="d", model="m", out="o", lr=1e-2))


def learn(trained: torch.nn.Module, *, scale: float) -> None:
    data = torch.randn(64, 33, generator=torch.Generator().manual_seed(1))
    (scale * trained(data).square().mean()).backward()


def parameters(trained: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trained.parameters()])


@pytest.mark.parametrize("max_norm", [1.0, 0.3])
def test_a_step_is_that_of_gradients_that_were_scaled_down_before(max_norm: float) -> None:
    ours, wanted = model(), model()
    optimizer = optimizer_of(ours)
    reference = torch.optim.AdamW(optimizer_of(wanted).param_groups)
    for scale in (50.0, 0.01, 7.0, 20.0):
        learn(ours, scale=scale)
        learn(wanted, scale=scale)
        norm = torch.nn.utils.clip_grad_norm_(wanted.parameters(), max_norm)
        reference.step()
        reference.zero_grad()
        assert clip_and_step(optimizer, max_norm=max_norm, **GIVEN) == pytest.approx(float(norm), rel=1e-5)
        # Adam divides by the root of its second moment, so that rounding of small gradients shows where steps are.
        torch.testing.assert_close(parameters(ours), parameters(wanted), rtol=1e-5, atol=2e-6)
    untouched = model()
    learn(untouched, scale=50.0)
    optimizer_of(untouched).step()
    ours = model()
    learn(ours, scale=50.0)
    clip_and_step(optimizer_of(ours), max_norm=1e9, **GIVEN)
    assert torch.equal(parameters(ours), parameters(untouched))


def test_the_optimizer_s_moments_are_those_of_scaled_gradients_and_of_no_step_after() -> None:
    trained = model()
    optimizer = optimizer_of(trained)
    learn(trained, scale=50.0)
    gradients = torch.cat([parameter.grad.flatten() for parameter in trained.parameters()])
    clip_and_step(optimizer, max_norm=1.0, **GIVEN)
    moments = torch.cat([optimizer.state[parameter]["exp_avg"].flatten() for parameter in trained.parameters()])
    torch.testing.assert_close(moments, 0.1 * gradients / gradients.norm(), rtol=1e-5, atol=1e-9)
    learn(trained, scale=0.01)
    small = torch.cat([parameter.grad.flatten() for parameter in trained.parameters()])
    assert clip_and_step(optimizer, max_norm=1.0, **GIVEN) < 1.0
    after = torch.cat([optimizer.state[parameter]["exp_avg"].flatten() for parameter in trained.parameters()])
    torch.testing.assert_close(after, 0.9 * moments + 0.1 * small, rtol=1e-5, atol=1e-9)


class _Asked(TorchDispatchMode):
    """The operations that are run, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_gradients_are_read_for_their_norm_and_for_the_step_and_one_number_is_waited_for() -> None:
    trained = model()
    optimizer = optimizer_of(trained)
    learn(trained, scale=50.0)
    with _Asked() as asked:
        assert clip_and_step(optimizer, max_norm=1.0, **GIVEN) > 1.0
    lists = [name for name in asked.names if "foreach" in name or "fused" in name]
    assert [name for name in lists if "step" not in name and "add_" not in name] == [
        "aten._foreach_norm.Scalar",
        *["aten._fused_adamw_.default"] * len(optimizer.param_groups),
    ]
    assert asked.names.count("aten._local_scalar_dense.default") == 1
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_matrices_decay_and_norms_and_biases_do_not() -> None:
    trained = model()
    for parameter in trained.parameters():
        torch.nn.init.normal_(parameter)
    before = {name: parameter.detach().clone() for name, parameter in trained.named_parameters()}
    optimizer = build_optimizer(trained, TrainConfig(data="d", model="m", out="o", lr=1e-2, weight_decay=0.5))
    for parameter in trained.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in trained.named_parameters():
        wanted = before[name] * (1 - 1e-2 * 0.5) if parameter.ndim == 2 else before[name]
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-6, atol=0.0)
    assert {name for name, value in before.items() if float(value.norm()) > 0} == set(before)
