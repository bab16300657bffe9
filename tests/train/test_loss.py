"""The tiled loss against the obvious float64 one, and gradients that do not depend on micro-batching."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate as accumulate_sums
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Cohere2Config, Gemma2Config, GraniteConfig, LlamaConfig

from sftprep.config.train import TrainConfig
from sftprep.shards.read import open_shard_set
from sftprep.train import attention, loss
from sftprep.train.forward import find_head
from sftprep.train.loop import Trainee, accumulate, local_batches
from sftprep.train.loss import HeadTransform, linear_cross_entropy, tapped
from sftprep.train.optim import build_optimizer, learning_rate
from sftprep.train.rows import RowReader
from sftprep.train.stream import Layout

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    "transform", [HeadTransform(), HeadTransform(scale=0.25), HeadTransform(scale=2.0, softcap=3.0)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_equal_a_float64_reference(
    monkeypatch: pytest.MonkeyPatch, transform: HeadTransform, *, bias: bool
) -> None:
    monkeypatch.setattr(loss, "_MIN_TILE_ELEMENTS", 1)
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=bias)
    hidden = torch.randn(150, 16, requires_grad=True)
    targets, weights = torch.randint(0, 50, (150,)), torch.rand(150)
    found = linear_cross_entropy(hidden, head, targets=targets, weights=weights, transform=transform)
    found.objective.backward()
    wide = hidden.detach().double().requires_grad_()
    reference = torch.nn.Linear(16, 50, bias=bias).double()
    reference.load_state_dict(head.state_dict())
    logits = transform.apply(reference(wide))
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (nll * weights).sum().backward()
    torch.testing.assert_close(found.nll.double(), nll.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), wide.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(head.weight.grad.double(), reference.weight.grad, rtol=1e-4, atol=1e-5)
    if bias:
        torch.testing.assert_close(head.bias.grad.double(), reference.bias.grad, rtol=1e-4, atol=1e-5)


def _peak_bytes(run: Callable[[], None]) -> int:
    """The most that tensors took at a time while `run` ran, by the allocator's own events."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate_sums(sizes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transform", [HeadTransform(), HeadTransform(scale=2.0, softcap=30.0)])
def test_the_loss_takes_a_quarter_of_the_full_logits_at_most_n1(transform: HeadTransform, dtype: torch.dtype) -> None:
    rows, columns, width = 1024, 16384, 16
    head = torch.nn.Linear(width, columns, bias=False)
    hidden = torch.randn(rows, width, requires_grad=True)
    targets, weights = torch.randint(0, columns, (rows,)), torch.ones(rows) / rows
    full = rows * columns * 4

    def tiled() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            found = linear_cross_entropy(hidden, head, targets=targets, weights=weights, transform=transform)
        found.objective.backward()

    def whole() -> None:
        logits = transform.apply(head(hidden))
        (torch.nn.functional.cross_entropy(logits, targets, reduction="none") * weights).sum().backward()

    assert _peak_bytes(whole) >= full
    assert _peak_bytes(tiled) <= 0.25 * full


@pytest.mark.parametrize("transform", [HeadTransform(), HeadTransform(scale=0.5, softcap=3.0)])
def test_the_compiled_softmax_of_a_tile_is_the_written_one_for_any_number_of_rows(transform: HeadTransform) -> None:
    torch.manual_seed(0)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    weight = torch.randn(1000, 16).bfloat16()
    for rows in (5, 7, 33):
        hidden = torch.randn(rows, 16).bfloat16()
        given = hidden, (weight, None), torch.randint(0, 1000, (rows,)), torch.rand(rows), transform
        written, fused = loss._tile_gradient(*given), loss._fused_tile_gradient()(*given)
        torch.testing.assert_close(fused, written, rtol=1e-5, atol=1e-5)
        assert fused[1].dtype is torch.bfloat16
        assert float(fused[1].float().abs().max()) > 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


def test_the_head_s_gradient_is_summed_in_float32_under_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_MIN_TILE_ELEMENTS", 1)
    monkeypatch.setattr(loss, "_TILES", 250)
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 40, bias=False), torch.randn(4000, 8)
    targets, weights = torch.randint(0, 40, (4000,)), torch.ones(4000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear_cross_entropy(
            hidden, head, targets=targets, weights=weights, transform=HeadTransform()
        ).objective.backward()
    low = [tensor.bfloat16().double() for tensor in (hidden, head.weight.detach())]
    probabilities = (low[0] @ low[1].t()).softmax(dim=-1)
    probabilities[torch.arange(4000), targets] -= 1.0
    wanted = probabilities.t() @ low[0]
    assert head.weight.grad is not None
    assert head.weight.grad.dtype is torch.float32
    assert float((head.weight.grad.double() - wanted).norm() / wanted.norm()) <= 2e-3


def test_a_frozen_head_gets_no_gradient() -> None:
    head = torch.nn.Linear(8, 9, bias=False).requires_grad_(requires_grad=False)
    hidden = torch.randn(5, 8, requires_grad=True)
    found = linear_cross_entropy(
        hidden, head, targets=torch.arange(5), weights=torch.ones(5), transform=HeadTransform()
    )
    found.objective.backward()
    assert head.weight.grad is None
    assert hidden.grad.abs().sum() > 0


def test_full_logits_never_exist_n1() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    with tapped(model.get_output_embeddings()) as seen:
        output = model(input_ids=torch.arange(6)[None], use_cache=False)
    assert output.logits.numel() == 0
    assert seen[0].shape == (1, 6, 32)
    assert model(input_ids=torch.arange(6)[None]).logits.shape == (1, 6, 60)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (LlamaConfig(**SMALL), HeadTransform()),
        (GraniteConfig(**SMALL, logits_scaling=8.0), HeadTransform(scale=0.125)),
        (Cohere2Config(**SMALL, logit_scale=0.0625), HeadTransform(scale=0.0625)),
        (Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=30.0), HeadTransform(softcap=30.0)),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_a_model_does_to_its_logits_is_measured(config: LlamaConfig, wanted: HeadTransform) -> None:
    head = find_head(AutoModelForCausalLM.from_config(config))
    assert head is not None
    assert head.transform == wanted


def _gradient(data: Path, model_dir: Path, *, batch_size: int, grad_accum: int, layout: Layout) -> torch.Tensor:
    attention.register()
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).train()
    head = find_head(model)
    if layout is Layout.SEGMENTS:
        model.set_attn_implementation(attention.ATTENTION_NAME)
    config = TrainConfig(data=data, model="", out=Path("out"), batch_size=batch_size, grad_accum=grad_accum)
    shards = open_shard_set(data)
    trainee = Trainee(
        model=model,
        optimizer=build_optimizer(model, config),
        head=head,
        layout=layout,
        device=torch.device("cpu"),
        dtype=torch.float32,
        pad_id=0,
    )
    rows = [RowReader(shards).row(index) for index in range(8)]
    batches = local_batches(trainee, rows, size=config.batch_size)
    accumulate(trainee, batches, weight_sum=float(shards.scalars().weight_sum[:8].sum()), step=0, config=config)
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("packing", [True, False])
def test_gradients_do_not_depend_on_micro_batching_i1(
    shard_set: Callable[..., Path], toy_model: Path, *, packing: bool
) -> None:
    data = shard_set(weighted=True, packing=packing)
    layouts = (Layout.SEGMENTS, Layout.UNPACKED) if packing else (Layout.PADDED,)
    gradients = [
        _gradient(data, toy_model, batch_size=batch_size, grad_accum=grad_accum, layout=layout)
        for layout in layouts
        for batch_size, grad_accum in ((8, 1), (1, 8), (2, 4))
    ]
    assert gradients[0].norm() > 0
    for gradient in gradients[1:]:
        assert float((gradient - gradients[0]).norm() / gradients[0].norm()) <= 1e-6


def test_the_learning_rate_rises_to_the_peak_and_ends_at_the_minimum() -> None:
    config = TrainConfig(data=Path("d"), model="m", out=Path("o"), lr=1.0, warmup=0.1, min_lr_ratio=0.1)
    rates = [learning_rate(step, num_steps=100, config=config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert all(after <= before for before, after in pairwise(rates[9:]))


def test_the_head_s_gradient_is_the_one_that_the_tiles_added_up_and_no_copy_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head, hidden = torch.nn.Linear(8, 50, bias=False), torch.randn(6, 8, requires_grad=True)
    # Its place only: a gradient that somebody else holds is copied.
    summed: list[int] = []
    real = loss._Tiles.of

    def kept(*arguments: Any, **keywords: Any) -> Any:
        tiles = real(*arguments, **keywords)
        summed.append(tiles.d_weight.data_ptr())
        return tiles

    monkeypatch.setattr(loss._Tiles, "of", kept)
    targets, weights = torch.arange(6), torch.ones(6)
    given = {"targets": targets, "weights": weights, "transform": HeadTransform()}
    found = linear_cross_entropy(hidden, head, **given)
    torch.autograd.backward(found.objective * 3.0)
    assert head.weight.grad is not None
    assert head.weight.grad.data_ptr() == summed.pop()
    wanted = torch.nn.functional.cross_entropy(hidden @ head.weight.T, targets, reduction="sum") * 3.0
    torch.testing.assert_close(head.weight.grad, torch.autograd.grad(wanted, head.weight)[0])
