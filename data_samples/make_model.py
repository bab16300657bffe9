"""Writes data_samples/model: the tokenizer trained on data_samples/good, and the tiny model's configuration.

The chat template is written by hand and is not touched. The same samples give the same bytes, so that a test can
hold the committed files against this script:

    python data_samples/make_model.py [DIRECTORY]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from tokenizers.trainers import BpeTrainer

HERE = Path(__file__).resolve().parent
VOCAB_SIZE = 1024
PAD, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
ROLES = ["system\n", "developer\n", "user\n", "assistant\n", "tool\n", "tools\n"]


def main() -> None:
    """Write every generated file into the directory named on the command line, by default data_samples/model."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "model"
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(sorted((HERE / "good").glob("*.jsonl")))
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    ids = {token: tokenizer.token_to_id(token) for token in (PAD, START, STOP)}
    for name, value in configs(ids, vocab_size=tokenizer.get_vocab_size()).items():
        text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
        (directory / name).write_text(text, encoding="utf-8")


def train_tokenizer(files: list[Path]) -> Tokenizer:
    """A byte-level BPE tokenizer: every text can be encoded, digits one by one, special tokens first."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE - len(MARKS),
        min_frequency=1,
        show_progress=False,
        special_tokens=[PAD, START, STOP],
        initial_alphabet=sorted(ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([text for file in files for text in texts(file)] + ROLES, trainer)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    return tokenizer


def texts(file: Path) -> Iterator[str]:
    """Every text of the file's rows that a template could write; objects as JSON, keys included."""
    for line in file.read_text(encoding="utf-8").splitlines():
        yield from _strings(json.loads(line))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in {"arguments", "tools"}:
                yield json.dumps(item, ensure_ascii=False)
            else:
                yield from _strings(item)


def configs(ids: dict[str, int], *, vocab_size: int) -> dict[str, dict[str, object]]:
    """The JSON files beside the tokenizer: what transformers reads to build model, tokenizer and generation."""
    return {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": STOP,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1024,
        },
        "generation_config.json": {"eos_token_id": [ids[STOP]], "pad_token_id": ids[PAD]},
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": vocab_size,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "bos_token_id": None,
            "eos_token_id": ids[STOP],
            "pad_token_id": ids[PAD],
            "dtype": "float32",
        },
    }


if __name__ == "__main__":
    main()
