"""The needed operations are those that torch counts, where nothing is computed twice or in vain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from sftprep.config.train import TrainConfig
from sftprep.shards.read import Scalars
from sftprep.train import attention, flops, lora
from sftprep.train.flops import Meter, cost_of, needed_flops, peak_flops
from sftprep.train.forward import find_head, inputs, token_loss
from sftprep.train.stream import Row, collate_packed

LENGTHS = [20, 33, 11]
SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("rank", [0, 4])
def test_the_products_of_a_step_are_those_that_torch_counts(rank: int) -> None:
    attention.register()
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).train()
    head = find_head(model)
    model.set_attn_implementation(attention.ATTENTION_NAME)
    if rank:
        lora.adapt(model, TrainConfig(data=Path("d"), model="m", out=Path("o"), lora_rank=rank))
    ids = np.arange(sum(LENGTHS), dtype=np.int32) % 128
    trained = np.arange(len(ids)) % 3 == 0
    trained[[0, *np.cumsum(LENGTHS)[:-1]]] = False
    batch = collate_packed([Row(0, ids, trained, np.array(LENGTHS, np.int32), np.ones(len(ids), np.float32))])
    assert "cu_seq_lens_q" in inputs(batch)
    with FlopCounterMode(display=False) as counter:
        token_loss(model, batch, head=head, normaliser=1.0).objective.backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(number for op, number in counts.items() if str(op) in {"aten.mm", "aten.addmm"})
    cost = cost_of(model)
    assert cost is not None
    # The head's gradient is summed in place (`addmm_`), which torch does not count.
    products += 2 * cost.head * int(trained.sum()) if cost.head_trained else 0
    needed = cost.step(num_tokens=len(ids), num_trained=int(trained.sum()), sum_len2=0)
    # The first layer needs no gradient of its input where the embeddings are frozen: less than the formula says.
    assert needed * (0.9 if rank else 0.999) <= products <= needed * 1.001


def test_attention_costs_half_the_square() -> None:
    cost = cost_of(LlamaForCausalLM(LlamaConfig(**SIZES)))
    assert cost is not None
    base = cost.step(num_tokens=100, num_trained=0, sum_len2=0)
    # Forward: scores and values, 2 products of 2 operations over half the square; backward: twice that.
    assert cost.step(num_tokens=100, num_trained=0, sum_len2=100**2) - base == 3 * 2 * 2 * (2 * 4 * 8) * 100**2 / 2


def test_experts_are_not_guessed_at() -> None:
    assert cost_of(MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2))) is None


def _scalars() -> Scalars:
    lengths = np.array([100, 60, 40])
    return Scalars(lengths, np.ones(3, np.int64), lengths // 2, lengths / 2, lengths**2)


def test_mfu_is_the_needed_share_of_what_all_devices_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "peak_flops", lambda _: 1e9)
    model, rows = LlamaForCausalLM(LlamaConfig(**SIZES)), np.array([0, 2])
    reading = Meter(model, device=torch.device("cpu"), size=4).reading(_scalars(), rows, seconds=0.5)
    cost = cost_of(model)
    assert cost is not None
    needed = cost.step(num_tokens=140, num_trained=70, sum_len2=100**2 + 40**2)
    assert needed == needed_flops(cost, _scalars(), rows) == reading.flops
    assert reading.mfu == pytest.approx(needed / 0.5 / 4e9)
    assert reading.peak_bytes > 2**20


def test_no_mfu_is_made_up_where_the_peak_or_the_count_is_not_known() -> None:
    dense, experts = LlamaForCausalLM(LlamaConfig(**SIZES)), MixtralForCausalLM(MixtralConfig(**SIZES))
    readings = [Meter(model, device=torch.device("cpu"), size=1) for model in (dense, experts)]
    found = [meter.reading(_scalars(), np.array([1]), seconds=1.0) for meter in readings]
    assert [reading.mfu for reading in found] == [None, None]
    assert found[0].flops is not None
    assert found[1].flops is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("X", None)],
)
def test_a_peak_is_known_by_the_device_s_name(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(torch.device("cpu")) is None
