"""The shards are ordinary data elsewhere: datasets, polars and pandas load them, and TRL trains on them as we do."""

from __future__ import annotations

from pathlib import Path

import datasets
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
import trl
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sftprep.config.pack import PackConfig
from sftprep.prepare.pack import pack
from sftprep.shards.read import ShardSet
from sftprep.train import attention
from sftprep.train.forward import find_head, token_loss
from sftprep.train.rows import RowReader
from sftprep.train.stream import collate_packed


@pytest.fixture(scope="module")
def shards(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    out = tmp_path_factory.mktemp("interchange") / "set"
    files = tuple(sorted((samples / "good").glob("*.jsonl")))
    config = PackConfig(
        files=files,
        model=str(samples / "model"),
        out=out,
        max_length=256,
        over_length="drop",
        max_drop="50%",
    )
    return pack(config).shards


def paths(shards: ShardSet) -> list[str]:
    return [str(shards.directory / shard.file) for shard in shards.manifest.shards]


def test_datasets_polars_and_pandas_read_the_same_rows_d8(shards: ShardSet, tmp_path: Path) -> None:
    expected = pq.read_table(paths(shards)).to_pylist()
    assert len(expected) == shards.num_rows
    loaded = datasets.Dataset.from_parquet(paths(shards), cache_dir=str(tmp_path))
    assert loaded.to_list() == expected
    assert pl.read_parquet(paths(shards)).to_dicts() == expected
    frame = pd.concat([pd.read_parquet(path) for path in paths(shards)])
    assert [list(ids) for ids in frame["input_ids"]] == [row["input_ids"] for row in expected]
    assert int(frame["num_trained"].sum()) == shards.manifest.counts.num_trained


def tiny_model(samples: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(samples / "model"), attn_implementation="sdpa"
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.dim() > 1 else 1)  # far from uniform, so that any other mask or border shows
    return model


def our_loss(shards: ShardSet, samples: Path, *, isolated: bool = True) -> float:
    """The mean over all trained tokens of the set, as our trainer takes it; or with documents that see each other."""
    attention.register()
    model = tiny_model(samples)
    head = find_head(model)
    model.set_attn_implementation(attention.ATTENTION_NAME)
    rows = [RowReader(shards).row(index) for index in range(shards.num_rows)]
    batch = collate_packed(rows)
    if not isolated:
        batch["offsets"] = [0, batch["offsets"][-1]]
    with torch.no_grad():
        found = token_loss(model, batch, head=head, normaliser=float(shards.scalars().weight_sum.sum()))
    return float(found.objective)


@pytest.mark.slow
def test_trl_trains_on_the_shards_as_they_are_with_our_loss(shards: ShardSet, samples: Path, tmp_path: Path) -> None:
    data = datasets.Dataset.from_parquet(paths(shards), cache_dir=str(tmp_path / "cache"))
    settings = trl.SFTConfig(
        output_dir=str(tmp_path / "out"),
        packing=False,
        padding_free=True,
        max_length=None,
        per_device_train_batch_size=shards.num_rows,
        max_steps=1,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
    )
    tokenizer = AutoTokenizer.from_pretrained(samples / "model")
    trainer = trl.SFTTrainer(tiny_model(samples), args=settings, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    (first, *_) = (record["loss"] for record in trainer.state.log_history if "loss" in record)
    assert first == pytest.approx(our_loss(shards, samples), rel=1e-4)
    assert first != pytest.approx(our_loss(shards, samples, isolated=False), rel=1e-3), "the comparison can fail"
