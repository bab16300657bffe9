"""Packed documents do not see each other, model by model; where that fails, the fallback is exact (F1, F2, F3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sftprep.errors import TrainError
from sftprep.train import attention, selftest
from sftprep.train.forward import inputs
from sftprep.train.selftest import check_rows, check_segments, probe_documents
from sftprep.train.stream import Row, collate_packed

SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
WINDOWED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32}

ISOLATED: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "mistral": {"sliding_window": 8},
    "gemma2": WINDOWED,
    "gemma3_text": WINDOWED,
    "olmo3": WINDOWED,
    "gpt_oss": WINDOWED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": LATENT | ROUTED | {"num_key_value_heads": 4},
}
FALLBACK: dict[str, dict[str, Any]] = {
    "bloom": {"n_head": 4, "n_layer": 3},
    "mamba2": {"num_heads": 8, "state_size": 16, "n_groups": 1},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "stablelm": {},
    "qwen3_next": EXPERTS
    | {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 32,
    },
}


def small_model(kind: str, extra: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | extra), dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def small_documents() -> list[Row]:
    generator = np.random.default_rng(0)
    lengths = [20, 33, 5, 40]
    ids = generator.integers(3, 128, sum(lengths)).astype(np.int32)
    return probe_documents(
        [Row(0, ids, np.zeros(len(ids), bool), np.array(lengths, np.int32), np.ones(len(ids), np.float32))], window=8
    )


@pytest.mark.parametrize("kind", ISOLATED)
def test_packed_logits_are_each_document_s_own_f1(kind: str) -> None:
    attention.register()
    verdict = check_segments(small_model(kind, ISOLATED[kind]), small_documents(), dtype=torch.float32)
    assert verdict.isolated, verdict.reason
    assert verdict.difference <= 1e-5
    assert verdict.moved <= 1e-5


@pytest.mark.parametrize("kind", FALLBACK)
def test_models_that_mix_documents_are_found_and_rows_of_their_own_are_exact_f2(kind: str) -> None:
    attention.register()
    model = small_model(kind, FALLBACK[kind])
    verdict = check_segments(model, small_documents(), dtype=torch.float32)
    assert not verdict.isolated
    assert verdict.reason
    assert model.config._attn_implementation != attention.ATTENTION_NAME
    check_rows(model, small_documents(), dtype=torch.float32, pad_id=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_over_the_whole_row_is_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    attention.register()

    def joined(batch: Any) -> dict[str, Any]:
        whole = dict(batch)
        whole["offsets"] = (0, batch["offsets"][-1]) if batch["offsets"] else ()
        return inputs(whole)

    monkeypatch.setattr(selftest, "inputs", joined)
    verdict = check_segments(small_model("llama", {}).to(dtype), small_documents(), dtype=dtype)
    assert not verdict.isolated
    assert "differ" in verdict.reason


def test_rounding_of_a_large_vocabulary_is_no_contamination_and_one_wrong_token_is() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(64, 128_000, generator=generator)
    rounded = exact + 0.05 * torch.randn(exact.shape, generator=generator)
    tolerance = selftest._TOLERANCE[torch.bfloat16]
    assert float((rounded - exact).abs().max()) > tolerance
    assert selftest._deviation(rounded.bfloat16(), exact.bfloat16()) < 0.3 * tolerance
    rounded[7] = torch.randn(128_000, generator=generator)
    assert selftest._deviation(rounded.bfloat16(), exact.bfloat16()) > 4 * tolerance
    moved = exact.clone()
    moved[7, 5] += 0.01
    assert selftest._deviation(moved, exact) > selftest._TOLERANCE[torch.float32]


@pytest.fixture
def attending(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Lets models attend by another function under our attention's name."""

    def register(function: Any) -> None:
        monkeypatch.setattr(attention, "segment_attention", function)
        attention.register()

    yield register
    monkeypatch.undo()
    attention.register()


def test_a_layer_that_attends_otherwise_is_found_even_where_it_attends_rightly(
    attending: Callable[[Any], None],
) -> None:
    real = attention.segment_attention

    def uncounted(module: Any, *tensors: Any, **given: Any) -> Any:
        own = replace(given[attention.ATTENTION_NAME]) if module.layer_idx == 1 else given[attention.ATTENTION_NAME]
        return real(module, *tensors, **{**given, attention.ATTENTION_NAME: own})

    attending(uncounted)
    verdict = check_segments(small_model("llama", {}), small_documents(), dtype=torch.float32)
    assert not verdict.isolated
    assert "layers attend through the registered attention" in verdict.reason


def test_documents_that_move_others_too_little_to_be_called_wrong_are_found(attending: Callable[[Any], None]) -> None:
    real = attention.segment_attention

    def leaking(module: Any, query: Any, key: Any, value: Any, *rest: Any, **given: Any) -> Any:
        output, weights = real(module, query, key, value, *rest, **given)
        first = given[attention.ATTENTION_NAME].offsets[1]
        leak = 1e-4 * value[0, :1, :first].mean(dim=1)
        return torch.cat([output[:, :first], output[:, first:] + leak], dim=1), weights

    attending(leaking)
    verdict = check_segments(small_model("llama", {}), small_documents(), dtype=torch.float32)
    assert verdict.difference <= selftest._TOLERANCE[torch.float32]
    assert not verdict.isolated
    assert "moves the others" in verdict.reason


def test_a_model_that_sees_padding_is_refused() -> None:
    model = small_model("llama", {})
    # Every position gets something of the whole row's, as in an encoder.
    model.get_input_embeddings().register_forward_hook(lambda _, __, found: found + found.mean(dim=1, keepdim=True))
    with pytest.raises(TrainError) as raised:
        check_rows(model, small_documents(), dtype=torch.float32, pad_id=0)
    assert raised.value.code == "not-isolated"


def test_a_layer_that_does_not_get_the_segments_raises() -> None:
    attention.register()
    model = small_model("llama", {})
    model.set_attn_implementation(attention.ATTENTION_NAME)
    with pytest.raises(TrainError) as raised:
        model(input_ids=torch.arange(4)[None], use_cache=False)
    assert raised.value.code == "attention-without-segments"


def test_neither_a_mask_nor_a_cache_is_ever_passed() -> None:
    given = inputs(collate_packed(small_documents()))
    assert given["use_cache"] is False
    assert "attention_mask" not in given
    assert {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids"} <= set(given)


def test_a_pack_of_one_document_is_probed_by_its_halves() -> None:
    row = Row(0, np.arange(10, dtype=np.int32), np.zeros(10, bool), np.array([10], np.int32), np.ones(10, np.float32))
    assert [len(document.ids) for document in probe_documents([row])] == [5, 5]
