"""Shard sets of random ids and tiny models, made without the rest of the package's pipeline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM

from sftprep.data import SpanKind
from sftprep.engines.load import build_model
from sftprep.shards.manifest import (
    Counts,
    LeftOut,
    Lengths,
    Manifest,
    ModelRecord,
    ShardRecord,
    Waste,
)
from sftprep.shards.schema import SHARD_SCHEMA, WEIGHTS_FIELD

VOCAB = 96
STOP = 2
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}\n"

MODEL_FILES = {
    "tokenizer.json": Tokenizer(
        WordLevel({"<unk>": 0, **{f"t{number}": number for number in range(1, VOCAB)}}, unk_token="<unk>")
    ).to_str(),
    "chat_template.jinja": TEMPLATE,
    "generation_config.json": json.dumps({"temperature": 0.7, "eos_token_id": STOP}),
}
"""What a set carries of the model that it was packed for."""

torch.set_num_threads(1)


def _row(generator: np.random.Generator, lengths: list[int], *, weighted: bool) -> dict[str, object]:
    """Documents of a prompt and a completion that counts upwards from the prompt's last id, then the stop token."""
    ids: list[int] = []
    mask: list[int] = []
    for length in lengths:
        prompt = max(1, length // 3)
        first = int(generator.integers(5, VOCAB))
        answer = [5 + (first + step) % (VOCAB - 5) for step in range(1, length - prompt)]
        document = [*generator.integers(5, VOCAB, prompt - 1).tolist(), first, *answer, STOP]
        ids += document[:length]
        mask += [0] * prompt + [1] * (length - prompt)
    weights = [float(generator.choice([0.5, 1.0, 2.0])) * bit for bit in mask] if weighted else [float(b) for b in mask]
    changes = [0, *(i for i in range(1, len(mask)) if mask[i] != mask[i - 1])]
    row: dict[str, object] = {
        "input_ids": ids,
        "assistant_masks": mask,
        "seq_lengths": lengths,
        "span_starts": changes,
        "span_kinds": [int(SpanKind.COMPLETION if mask[i] else SpanKind.USER) for i in changes],
        "span_messages": [0] * len(changes),
        "doc_files": [0] * len(lengths),
        "doc_lines": list(range(1, len(lengths) + 1)),
        "doc_samples": [0] * len(lengths),
        "doc_kwargs": [0] * len(lengths),
        "num_trained": sum(mask),
        "weight_sum": float(np.float32(weights).sum(dtype=np.float64)),
        "sum_len2": sum(length**2 for length in lengths),
    }
    return row | ({"weights": weights} if weighted else {})


def write_set(directory: Path, *, num_rows: int, num_shards: int) -> Path:
    """A set of packs in so many shards of equally many rows, each in a row group of its own."""
    generator = np.random.default_rng(7)
    rows = [_row(generator, generator.integers(4, 20, 4).tolist(), weighted=False) for _ in range(num_rows)]
    return _write(directory, rows, packing=True, weighted=False, row_group=1, num_shards=num_shards)


def _write(
    directory: Path,
    rows: list[dict[str, object]],
    *,
    packing: bool,
    weighted: bool,
    row_group: int,
    num_shards: int = 2,
) -> Path:
    schema = SHARD_SCHEMA.append(WEIGHTS_FIELD) if weighted else SHARD_SCHEMA
    (directory / "shards").mkdir(parents=True)
    (directory / "model").mkdir()
    for name, text in MODEL_FILES.items():
        (directory / "model" / name).write_text(text, encoding="utf-8")
    ends = [len(rows) * number // num_shards for number in range(num_shards + 1)]
    shards = [
        _write_shard(directory, number, part, schema=schema, row_group=row_group)
        for number, part in enumerate(rows[start:stop] for start, stop in pairwise(ends))
        if part
    ]
    manifest = _manifest(rows, shards, packing=packing, weighted=weighted)
    (directory / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    return directory


def _write_shard(
    directory: Path, number: int, rows: list[dict[str, object]], *, schema: pa.Schema, row_group: int
) -> ShardRecord:
    path = directory / "shards" / f"part-{number:05d}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=row_group)
    return ShardRecord(
        file=f"shards/{path.name}",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        num_bytes=path.stat().st_size,
        num_rows=len(rows),
        num_tokens=sum(len(row["input_ids"]) for row in rows),
        num_trained=sum(row["num_trained"] for row in rows),
        weight_sum=sum(row["weight_sum"] for row in rows),
    )


def _manifest(rows: list[dict[str, object]], shards: list[ShardRecord], *, packing: bool, weighted: bool) -> Manifest:
    lengths = [length for row in rows for length in row["seq_lengths"]]
    tokens, trained = sum(lengths), sum(row["num_trained"] for row in rows)
    quantiles = Lengths(mean=float(np.mean(lengths)), p50=1, p90=1, p99=1, max=max(lengths))
    carried = build_model("toy", {name: text.encode() for name, text in MODEL_FILES.items()})
    return Manifest(
        fingerprint="f" * 64,
        versions={},
        model=ModelRecord(
            name="toy",
            tokenizer_sha256=carried.tokenizer_sha256,
            template_sha256=carried.template_sha256,
            template=TEMPLATE,
            stop_ids=[STOP],
            stop_tokens=["<stop>"],
            vocab_size=VOCAB,
            pad_id=STOP,
        ),
        config={},
        packing=packing,
        max_length=max(len(row["input_ids"]) for row in rows),
        has_weights=weighted,
        mask="assistant",
        template_kwargs=[{}],
        sources=[],
        shards=shards,
        counts=Counts(
            num_conversations=len(lengths),
            num_documents=len(lengths),
            num_packs=len(rows),
            num_tokens=tokens,
            num_trained=trained,
            num_turns=len(lengths),
            weight_sum=sum(row["weight_sum"] for row in rows),
            tokens_by_kind={"user": tokens - trained, "completion": trained},
        ),
        lengths=quantiles,
        trained_lengths=quantiles,
        waste=Waste(padding_to_longest=0, padding_to_max_length=0, packing=0),
        left_out=LeftOut(num_rows=0, by_code={}, max_drop="0"),
    )


@pytest.fixture
def shard_set(tmp_path: Path) -> Callable[..., Path]:
    """Writes a shard set: `num_rows` packs of several documents, or one document a row; pad id is the stop id."""

    def build(
        name: str = "set", *, num_rows: int = 10, packing: bool = True, weighted: bool = False, row_group: int = 3
    ) -> Path:
        generator = np.random.default_rng(7)
        sizes = [generator.integers(4, 20, 4 if packing else 1).tolist() for _ in range(num_rows)]
        rows = [_row(generator, lengths, weighted=weighted) for lengths in sizes]
        return _write(tmp_path / name, rows, packing=packing, weighted=weighted, row_group=row_group)

    return build


@pytest.fixture
def toy_model(tmp_path: Path) -> Path:
    """A saved llama of two layers, without tokenizer files."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"
