"""What the shards hold is what the manifest and their small columns say, or nothing is trained (A5)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from sftprep.config.train import TrainConfig
from sftprep.errors import ShardError, TrainError
from sftprep.train import run
from sftprep.train.run import train
from tests.train.runs import accept_set, edit_column

ShardSetFactory = Callable[..., Path]


def _run(data: Path, model: Path) -> None:
    config = TrainConfig(data=data, model=str(model), out=data.with_name("out"), grad_accum=1, device="cpu", threads=1)
    train(config, console=Console(quiet=True))


@pytest.mark.parametrize("name", ["num_packs", "num_tokens", "num_trained", "weight_sum"])
def test_a_set_of_other_counts_than_its_manifest_s_is_refused_before_the_first_step_a5(
    shard_set: ShardSetFactory, toy_model: Path, name: str
) -> None:
    data = shard_set()
    counts = json.loads((data / "manifest.json").read_text())["counts"]
    accept_set(data, counts=counts | {name: counts[name] + 1})
    with pytest.raises(ShardError) as raised:
        _run(data, toy_model)
    assert raised.value.code == "shard-count"
    assert not data.with_name("out.running").exists()


def test_shards_of_other_ids_and_the_same_counts_are_refused_before_the_first_step_a5(
    shard_set: ShardSetFactory, toy_model: Path
) -> None:
    data = shard_set()
    edit_column(data, "input_ids", lambda rows: [[number ^ 1 for number in ids] for ids in rows])
    with pytest.raises(ShardError) as raised:
        _run(data, toy_model)
    assert raised.value.code == "shard-checksum"
    assert not data.with_name("out.running").exists()


def test_a_step_whose_tokens_do_not_weigh_what_their_rows_say_ends_the_run(
    shard_set: ShardSetFactory, toy_model: Path
) -> None:
    data = shard_set(num_rows=4)
    sums = pq.read_table(data / "shards", columns=["weight_sum"])["weight_sum"].to_pylist()
    assert sums[0] != sums[1]
    # The set's sum is the same: only the step can tell.
    edit_column(data, "weight_sum", lambda values: values[::-1])
    accept_set(data)
    with pytest.raises(TrainError) as raised:
        _run(data, toy_model)
    assert raised.value.code == "weight-sum"


def _edited_after_the_first_step(edit: Callable[[], object]) -> Callable[..., Any]:
    real = run.run_steps

    def steps(*arguments: Any, **keywords: Any) -> Any:
        for item in real(*arguments, **keywords):
            if item[1].step == 1:
                edit()
            yield item

    return steps


@pytest.mark.parametrize("how", ["other ids", "gone"])
def test_shards_that_change_while_a_run_reads_them_end_it_by_name(
    shard_set: ShardSetFactory, toy_model: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    # Forty row groups: what a step needs is read when it comes, or a step ahead.
    data, others = shard_set(num_rows=120), shard_set("others", num_rows=120)
    edit_column(others, "input_ids", lambda rows: [[number ^ 1 for number in ids] for ids in rows])

    def edit() -> None:
        for shard in sorted((data / "shards").iterdir()):
            if how == "gone":
                shard.unlink()
            else:
                (others / "shards" / shard.name).replace(shard)

    monkeypatch.setattr(run, "run_steps", _edited_after_the_first_step(edit))
    with pytest.raises(ShardError) as raised:
        _run(data, toy_model)
    assert raised.value.code in ({"shard-checksum"} if how == "other ids" else {"shard-checksum", "damaged-shard"})
    assert not data.with_name("out").exists()
