"""What counts alike in a step: tokens, documents or messages, against a plain loop; losses told by source."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sftprep.config.train import TrainConfig
from sftprep.errors import TrainError
from sftprep.shards.read import open_shard_set
from sftprep.train.rows import RowReader
from sftprep.train.run import train
from sftprep.train.stream import Row, Schedule
from sftprep.train.weighting import reweighted
from tests.train.runs import accept_set, edit_column

ShardSetFactory = Callable[..., Path]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    total = sum(lengths)
    trained = np.array(draw(st.lists(st.booleans(), min_size=total, max_size=total)), bool)
    weights = draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=total, max_size=total))
    messages = draw(st.lists(st.integers(-1, 2), min_size=total, max_size=total))
    return Row(
        index=0,
        ids=np.zeros(total, np.int32),
        trained=trained,
        lengths=np.array(lengths, np.int32),
        weights=np.array(weights, np.float32) * trained,
        messages=np.array(messages, np.int32),
    )


def _by_hand(row: Row, mode: str) -> list[float]:
    documents = [number for number, length in enumerate(row.lengths) for _ in range(length)]
    groups = [(d, m if mode == "turn" else 0) for d, m in zip(documents, row.messages.tolist(), strict=True)]
    found = []
    for group, weight, trained in zip(groups, row.weights.tolist(), row.trained.tolist(), strict=True):
        size = sum(t for g, t in zip(groups, row.trained.tolist(), strict=True) if g == group)
        found.append(weight / size if trained else 0.0)
    return found


@given(rows(), st.sampled_from(["sample", "turn"]))
def test_each_mode_weighs_as_a_plain_loop_does(row: Row, mode: str) -> None:
    assert reweighted(row, mode).weights.tolist() == pytest.approx(_by_hand(row, mode), rel=1e-6)
    assert reweighted(row, "token") is row


def _run(data: Path, model: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1} | options
    train(TrainConfig(data=data, model=str(model), out=out, **settings), console=Console(quiet=True))
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_documents_count_alike_under_sample_and_messages_under_turn(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set(packing=False, num_rows=6)
    token, sample, turn = (
        _run(data, toy_model, tmp_path / mode, loss=mode, grad_accum=6, lr=1e-7) for mode in ("token", "sample", "turn")
    )
    alone = [line["nll"] for line in _run(data, toy_model, tmp_path / "alone", grad_accum=1, lr=1e-7)]
    assert sample[0]["loss"] == pytest.approx(float(np.mean(alone)), rel=1e-5)
    # In these rows a document has one trained message.
    assert turn[0]["loss"] == pytest.approx(sample[0]["loss"], rel=1e-6)
    assert abs(token[0]["loss"] - sample[0]["loss"]) > 1e-3
    assert token[0]["nll"] == pytest.approx(sample[0]["nll"], rel=1e-6)


@pytest.mark.parametrize("mode", ["token", "sample", "turn"])
@pytest.mark.parametrize("attention", ["segments", "unpack"])
def test_how_rows_are_cut_into_batches_changes_no_mode_s_loss_and_gradient_i1(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, mode: str, attention: str
) -> None:
    data = shard_set(num_rows=8, weighted=True)
    first = [
        _run(
            data, toy_model, tmp_path / f"{size}", loss=mode, attention=attention, batch_size=size, grad_accum=8 // size
        )[0]
        for size in (8, 1, 2)
    ]
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in first] == pytest.approx([first[0][name]] * 3, rel=1e-6)
        assert first[0][name] > 0.1


def test_the_reader_gives_every_token_its_message(shard_set: ShardSetFactory) -> None:
    data = shard_set()
    row = RowReader(open_shard_set(data), with_messages=True).row(4)
    assert len(row.messages) == len(row.ids)
    assert not len(RowReader(open_shard_set(data)).row(4).messages)


def _source(name: str) -> dict[str, Any]:
    counts = dict.fromkeys(("num_bytes", "num_rows", "num_taken", "num_documents", "num_left_out"), 0)
    return {"name": name, "path": name, "sha256": "0", "epochs": 1.0, **counts}


def test_the_loss_is_told_by_source_and_adds_up(shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path) -> None:
    data = shard_set()
    edit_column(data, "doc_files", lambda lists: [[number % 2 for number in range(len(line))] for line in lists])
    accept_set(data, sources=[_source("chat"), _source("math"), _source("unused")])
    for line in _run(data, toy_model, tmp_path / "out"):
        assert set(line["nll_by_source"]) == set(line["trained_by_source"]) == {"chat", "math"}
        assert sum(line["trained_by_source"].values()) == line["num_trained"]
        total = sum(line["nll_by_source"][name] * count for name, count in line["trained_by_source"].items())
        assert total == pytest.approx(line["nll"] * line["num_trained"], rel=1e-6)
    accept_set(data, sources=[_source("chat")])
    with pytest.raises(TrainError) as raised:
        _run(data, toy_model, tmp_path / "none")
    assert raised.value.code == "source-unknown"


def _without_weight(data: Path, rows: list[int]) -> None:
    """The trained tokens of these rows of a set of four weigh nothing."""
    scalars = open_shard_set(data).scalars().weight_sum
    numbers, zeroed = iter(range(4)), iter(range(4))
    edit_column(data, "weight_sum", lambda sums: [0.0 if next(numbers) in rows else value for value in sums])
    edit_column(data, "weights", lambda lists: [[0.0] * len(x) if next(zeroed) in rows else x for x in lists])
    left = float(sum(value for number, value in enumerate(scalars) if number not in rows))
    manifest = json.loads((data / "manifest.json").read_text())
    accept_set(data, counts=manifest["counts"] | {"weight_sum": left})


def test_a_batch_without_weight_adds_nothing_to_its_step_g5(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set(num_rows=4, weighted=True)
    _without_weight(data, Schedule(num_rows=4, rows_per_step=2, seed=0).rows(0).tolist()[:1])
    apart = _run(data, toy_model, tmp_path / "apart", batch_size=1, grad_accum=2)
    together = _run(data, toy_model, tmp_path / "together", batch_size=2, grad_accum=1)
    assert [line["skipped"] for line in apart] == [False, False]
    assert [line["loss"] for line in apart] == pytest.approx([line["loss"] for line in together], rel=1e-5)
    assert all(0 < line["loss"] < 20 and 0 < line["grad_norm"] < 100 for line in apart)


def test_a_step_without_weight_is_skipped_and_said_and_changes_nothing_g5(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set(num_rows=4, weighted=True)
    _without_weight(data, Schedule(num_rows=4, rows_per_step=2, seed=0).rows(0).tolist())
    shown = io.StringIO()
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1}
    config = TrainConfig(data=data, model=str(toy_model), out=tmp_path / "out", **settings)
    train(config, console=Console(file=shown, width=200))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [True, False]
    assert lines[0]["loss"] == lines[0]["grad_norm"] == 0
    assert lines[0]["num_trained"] > 0
    assert "loss: mean over trained tokens" in shown.getvalue()
    assert "step 1/2 · skipped" in shown.getvalue()
    with pytest.raises(TrainError) as raised:
        train(config.model_copy(update={"out": tmp_path / "one", "max_steps": 1}), console=Console(quiet=True))
    assert raised.value.code == "nothing-trained"
