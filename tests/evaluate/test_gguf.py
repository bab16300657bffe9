"""A GGUF file is evaluated by its own name: weights from it, tokenizer, template and stop tokens from beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from sftprep.config.evaluate import EvaluateConfig
from sftprep.errors import ModelFilesError
from sftprep.evaluate.run import evaluate

WriteSuite = Callable[..., str]
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
CASES = [
    {"id": text, "tags": ["harbour"], "messages": [{"role": "user", "content": text}], "scorers": [{"kind": "stops"}]}
    for text in ("Is the pier open?", "When does the last boat leave?", "Who lights the lamp?")
]


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head in the order that GGUF has: halves of the rotation side by side."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, shape[1]).swapaxes(1, 2).reshape(shape)


def as_gguf(model: Path, place: Path) -> Path:
    """The weights of a Llama in one GGUF file of 32-bit numbers, as a converter writes them."""
    network, config = AutoModelForCausalLM.from_pretrained(model), AutoConfig.from_pretrained(model)
    writer = gguf.GGUFWriter(place, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    state = {name.removeprefix("model."): value.numpy() for name, value in network.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["norm.weight"])
    for layer in range(config.num_hidden_layers):
        for name, short in NAMES.items():
            weight = state[f"layers.{layer}.{name}.weight"]
            own = np.ascontiguousarray(interleaved(weight, heads[name])) if name in heads else weight
            writer.add_tensor(f"blk.{layer}.{short}.weight", own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


@pytest.fixture
def converted(tiny_model: Path, tmp_path: Path) -> Path:
    """A GGUF file with the text files of its model beside it, and no other weights."""
    place = tmp_path / "converted"
    place.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (tiny_model / name).is_file():
            shutil.copyfile(tiny_model / name, place / name)
    return as_gguf(tiny_model, place / "tiny-f32.gguf")


def answers(model: Path, suite: str) -> tuple[list[tuple[str, int, bool]], Any]:
    report = evaluate(EvaluateConfig(model=str(model), suite=(suite,), threads=1, device="cpu"))
    return [(case.answer.text, case.answer.num_tokens, case.answer.stopped) for case in report.cases], report.model


def test_a_gguf_file_answers_as_the_model_that_it_was_made_from(
    tiny_model: Path, converted: Path, write_suite: WriteSuite
) -> None:
    suite = write_suite(CASES, max_new_tokens=24)
    wanted, original = answers(tiny_model, suite)
    assert len({text for text, _, _ in wanted}) == len(CASES)
    for name in (converted, converted.parent):
        found, record = answers(name, suite)
        assert found == wanted
        assert record.name == str(name)
        assert record.num_prompts_proven == len(CASES)
        assert (record.tokenizer_sha256, record.template_sha256, record.stop_tokens) == (
            original.tokenizer_sha256,
            original.template_sha256,
            original.stop_tokens,
        )


def test_a_gguf_file_without_a_tokenizer_beside_it_is_named(
    converted: Path, write_suite: WriteSuite, tmp_path: Path
) -> None:
    alone = tmp_path / "alone" / converted.name
    alone.parent.mkdir()
    shutil.copyfile(converted, alone)
    with pytest.raises(ModelFilesError) as caught:
        answers(alone, write_suite(CASES))
    assert caught.value.code == "no-tokenizer"
