"""The shards are ordinary data elsewhere: datasets, polars and pandas load them, and TRL trains on them as we do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
import trl
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sftprep.config.pack import PackConfig
from sftprep.prepare.diff import diff
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


PLAIN_GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}{% generation %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endgeneration %}{% else %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The sample model's template for plain texts, with the tags that TRL asks for: they cover the line end too."""


def is_plain(message: dict[str, Any]) -> bool:
    return set(message) == {"role", "content"} and isinstance(message["content"], str)


def plain_rows(samples: Path) -> list[dict[str, list[dict[str, str]]]]:
    """The sample conversations that hold texts only."""
    lines = (samples / "good" / "openai.jsonl").read_text(encoding="utf-8").splitlines()
    talks = [json.loads(line)["messages"] for line in lines]
    return [{"messages": talk} for talk in talks if all(map(is_plain, talk))]


def prepared_by_trl(rows: list[dict[str, Any]], model: Path, out: Path, **settings: Any) -> Path:
    """The dataset on which SFTTrainer would train, saved."""
    config = trl.SFTConfig(output_dir=str(out / "run"), use_cpu=True, bf16=False, report_to="none", **settings)
    trainer = trl.SFTTrainer(
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train_dataset.save_to_disk(str(out / "prepared"))
    return out / "prepared"


def as_prompt_and_completion(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]


def plain_set(samples: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> ShardSet:
    source = tmp_path / "plain.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return pack(PackConfig(files=(source,), model=str(samples / "model"), out=tmp_path / "set", max_length=512)).shards


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True], ids=["a row each", "packed"])
def test_what_trl_prepared_is_compared_document_by_document_c7(samples: Path, tmp_path: Path, packing: bool) -> None:
    """All, the last answer, and the answers by tags: the same ids, and each time another rule."""
    rows = plain_rows(samples)
    ours = plain_set(samples, tmp_path, rows)
    tagged = Path(shutil.copytree(samples / "model", tmp_path / "tagged"))
    (tagged / "chat_template.jinja").write_text(PLAIN_GENERATION, encoding="utf-8")
    several = sum(sum(m["role"] == "assistant" for m in row["messages"]) > 1 for row in rows)
    assert 0 < several < len(rows)
    made = {
        "tags": prepared_by_trl(
            rows, tagged, tmp_path / "tags", assistant_only_loss=True, packing=packing, max_length=512
        ),
        "last": prepared_by_trl(
            as_prompt_and_completion(rows), samples / "model", tmp_path / "last", packing=packing, max_length=512
        ),
    }
    if not packing:  # TRL's default for messages: everything
        made["all"] = prepared_by_trl(rows, samples / "model", tmp_path / "all", max_length=512)
    found = {name: diff(ours.directory, path) for name, path in made.items()}
    assert {report.num_masks_differ for report in found.values()} == {len(rows)}, "the ids are those of TRL"
    rules = {name: {r.rule: r.num_documents for r in report.rules} for name, report in found.items()}
    assert rules["tags"] == {"separator-trained": len(rows)}
    assert rules["last"] == {"separator-trained": len(rows) - several, "answer-untrained": several}
    assert rules.get("all", {"everything-trained": len(rows)}) == {"everything-trained": len(rows)}
    turns = ours.manifest.counts.num_turns
    assert (found["tags"].trained_only_left, found["tags"].trained_only_right) == ({}, {"separator": turns})
    assert found["last"].trained_only_left["stop"] == turns - len(rows)
