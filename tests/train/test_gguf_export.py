"""A trained model through llama.cpp's own converter and back: the same weights, template, vocabulary and stop token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from rich.console import Console
from transformers import AutoModelForCausalLM, GgufConfig, LlamaConfig

from sftprep.config.pack import PackConfig
from sftprep.config.train import TrainConfig
from sftprep.prepare.pack import pack
from sftprep.train.run import train


@pytest.fixture
def converter() -> Path:
    """The directory of llama.cpp's conversion script: a checkout, or where a package put it."""
    place = Path(os.environ.get("SFTPREP_LLAMA_CPP", ""))
    if not (place / "convert_hf_to_gguf.py").is_file():
        pytest.skip("SFTPREP_LLAMA_CPP names no directory with convert_hf_to_gguf.py")
    return place


def _tuned(corpus: Path, samples: Path, place: Path) -> Path:
    """A small Llama with the tokenizer and template of a real model, after two steps."""
    model = place / "model"
    LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (model / name).write_bytes((corpus / "models" / "smollm2-135m-instruct" / name).read_bytes())
    files = (samples / "good" / "prompt_response.jsonl",)
    pack(PackConfig(files=files, model=str(model), out=place / "set", max_length=256))
    settings = {"init": "random", "max_steps": 2, "lr": 1e-2, "grad_accum": 1, "device": "cpu", "threads": 1}
    train(
        TrainConfig(data=place / "set", model=str(model), out=place / "tuned", **settings), console=Console(quiet=True)
    )
    return place / "tuned"


@pytest.mark.slow
@pytest.mark.corpus
def test_llama_cpp_s_converter_keeps_every_weight_the_template_and_the_stop_token_b5_c2(
    converter: Path, corpus: Path, samples: Path, tmp_path: Path
) -> None:
    tuned, file = _tuned(corpus, samples, tmp_path), tmp_path / "tuned.gguf"
    command = [sys.executable, str(converter / "convert_hf_to_gguf.py"), str(tuned), "--outfile", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(converter)}
    done = subprocess.run([*command, "--outtype", "f32"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    fields = GGUFReader(file).fields
    original = (corpus / "models" / "smollm2-135m-instruct" / "chat_template.jinja").read_bytes()
    assert fields["tokenizer.chat_template"].contents().encode("utf-8") == original
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    tokenizer = json.loads((tuned / "tokenizer.json").read_bytes())
    ids = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert {text: tokens[number] for text, number in ids.items() if tokens[number] != text} == {}

    wanted = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32).state_dict()
    settings = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    found = AutoModelForCausalLM.from_pretrained(tmp_path, **settings).state_dict()
    assert found.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not torch.equal(found[name], value)] == []
