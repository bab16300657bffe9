"""Recomputing activations changes no gradient; keeping products repeats none of them and takes memory in between."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from sftprep.train import attention, recompute
from sftprep.train.forward import find_head, token_loss
from sftprep.train.recompute import recompute_activations
from sftprep.train.stream import Row, collate_packed

LENGTHS = [150, 61, 45]
LAYERS, WIDTH, WIDE = 4, 32, 256


def _step(mode: str) -> tuple[Callable[[], None], LlamaForCausalLM]:
    """A forward and backward pass over a packed row, with dropout in attention."""
    attention.register()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=WIDE,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).train()
    head = find_head(model)
    model.set_attn_implementation(attention.ATTENTION_NAME)
    if mode != "kept":
        recompute_activations(model, keep_products=mode != "all recomputed", but_wide=mode == "narrow kept")
    ids = (np.arange(sum(LENGTHS)) % 64).astype(np.int32)
    trained = np.arange(len(ids)) % 2 == 1
    trained[np.cumsum([0, *LENGTHS[:-1]])] = False
    batch = collate_packed([Row(0, ids, trained, np.array(LENGTHS, np.int32), np.ones(len(ids), np.float32))])

    def step() -> None:
        token_loss(model, batch, head=head, normaliser=float(len(batch["targets"]))).objective.backward()

    return step, model


def _peak_bytes(run: Callable[[], None]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def _products(run: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return sum(counter.get_flop_counts()["Global"].values())


def _gradients(mode: str) -> dict[str, torch.Tensor]:
    step, model = _step(mode)
    step()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("mode", ["all recomputed", "products kept", "narrow kept"])
def test_gradients_are_the_same_bits(mode: str) -> None:
    wanted, found = _gradients("kept"), _gradients(mode)
    assert len(wanted) > 20
    assert found.keys() == wanted.keys()
    assert {name for name in wanted if not torch.equal(found[name], wanted[name])} == set()


def test_memory_falls_and_no_product_is_repeated_where_they_are_kept() -> None:
    modes = ("kept", "products kept", "all recomputed")
    kept, some, none = (_products(_step(mode)[0]) for mode in modes)
    assert some == kept
    assert none > 1.2 * kept
    kept, some, none = (_peak_bytes(_step(mode)[0]) for mode in modes)
    assert none < 0.9 * some
    assert some < 0.9 * kept


def test_of_wide_products_one_of_two_is_repeated_and_its_memory_is_free_in_between() -> None:
    some, narrow = (_products(_step(mode)[0]) for mode in ("products kept", "narrow kept"))
    assert narrow - some == LAYERS * 2 * sum(LENGTHS) * WIDTH * WIDE
    some, narrow = (_peak_bytes(_step(mode)[0]) for mode in ("products kept", "narrow kept"))
    # But for the layer at hand, whose backward pass needs it.
    assert some - narrow > 0.9 * (LAYERS - 1) * sum(LENGTHS) * WIDE * 4


@pytest.mark.parametrize("fault", ["none is repeated", "both are"])
def test_the_witness_sees_another_number_of_wide_products(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def policy(self: Any, context: Any, operation: Any, *operands: Any, **_: Any) -> Any:
        wide = recompute._name(operation) == "aten::mm" and operands[1].shape == (WIDTH, WIDE)
        if wide and fault == "both are":
            return recompute.CheckpointPolicy.PREFER_RECOMPUTE
        return recompute._policy(context, operation)

    monkeypatch.setattr(recompute._EverySecond, "__call__", policy)
    with pytest.raises(AssertionError):
        test_of_wide_products_one_of_two_is_repeated_and_its_memory_is_free_in_between()


def test_the_witness_sees_that_products_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def keeping_nothing(*_: Any, **__: Any) -> Any:
        return recompute.CheckpointPolicy.PREFER_RECOMPUTE

    monkeypatch.setattr(recompute, "_policy", keeping_nothing)
    with pytest.raises(AssertionError):
        test_memory_falls_and_no_product_is_repeated_where_they_are_kept()
