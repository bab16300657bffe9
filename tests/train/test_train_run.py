"""Whole runs on tiny models: what is trained, what is written, what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from sftprep.config.pack import PackConfig
from sftprep.config.train import TrainConfig
from sftprep.engines.load import load_model
from sftprep.errors import SftprepError, ShardError, TrainError
from sftprep.prepare.pack import pack
from sftprep.train import checkpoint, loop, outcome, run
from sftprep.train.generate import answer
from sftprep.train.run import TrainResult, train
from tests.train.runs import interrupted_after

ShardSetFactory = Callable[..., Path]


def _run(data: Path, model: Path, **options: Any) -> tuple[TrainResult, str]:
    shown = io.StringIO()
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1} | options
    config = TrainConfig(data=data, model=str(model), **settings)
    return train(config, console=Console(file=shown, width=200)), shown.getvalue()


def _parameters(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def test_the_loss_falls_and_the_saved_model_answers_and_stops(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    result, shown = _run(shard_set(num_rows=30), toy_model, out=tmp_path / "out", epochs=12, lr=1e-2)
    assert result.nll[-1] < 0.5 * result.nll[0]
    assert "do not see each other" in shown
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == 2
    found = answer(tmp_path / "out", [10, 11, 12], max_new_tokens=60)
    assert found.stopped == (found.ids[-1] == 2)
    assert len(found.ids) < 60 or not found.stopped


def test_the_output_names_the_trained_stop_ids_and_copies_the_text_files_b5_c2(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set()
    _run(data, toy_model, out=tmp_path / "out", max_steps=1)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert generation["eos_token_id"] == config["eos_token_id"] == 2
    assert generation["temperature"] == 0.7
    template = (data / "model" / "chat_template.jinja").read_bytes()
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == template
    assert "sftprep" not in (tmp_path / "out" / "config.json").read_text()
    assert not (tmp_path / "out.running").exists()


@pytest.mark.parametrize("epochs", [1.0, 2.0, 0.5])
def test_steps_are_the_manifest_s_rows_exactly_f8(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, epochs: float
) -> None:
    result, _ = _run(shard_set(num_rows=11), toy_model, out=tmp_path / "out", epochs=epochs)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert result.num_steps == len(lines) == round(epochs * 6)


def test_counts_by_kind_are_shown_before_the_first_step_a3(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    _, shown = _run(shard_set(), toy_model, out=tmp_path / "out", max_steps=1)
    assert shown.index("completion") < shown.index("step 1/1")


def test_lines_tell_speed_work_and_memory_and_so_does_the_metrics_file(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set()
    _, shown = _run(data, toy_model, out=tmp_path / "out", max_steps=2)
    line = next(line for line in shown.splitlines() if line.startswith("step 2/2"))
    for part in ("loss ", "nll ", "lr ", "grad ", "tok/s", "trained", "GFLOP/s", "GiB", "s left"):
        assert part in line
    record = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["flops"] > 6 * 2 * 3 * 32 * 48 * record["num_tokens"]
    assert record["mfu"] is None
    assert record["peak_bytes"] > 2**20


def test_an_epoch_that_trains_another_number_of_tokens_than_the_manifest_says_is_refused_a5(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.micro_batches

    def losing(*arguments: Any, **keywords: Any) -> Any:
        for batch in real(*arguments, **keywords):
            batch["rows"], batch["targets"], batch["sources"], batch["weights"] = (
                batch["rows"][1:],
                batch["targets"][1:],
                batch["sources"][1:],
                batch["weights"][1:] * (len(batch["weights"]) / (len(batch["weights"]) - 1)),
            )
            yield batch

    monkeypatch.setattr(loop, "micro_batches", losing)
    with pytest.raises(TrainError, match="epoch trained") as raised:
        _run(shard_set(), toy_model, out=tmp_path / "out")
    assert raised.value.code == "epoch-count"
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.running").exists()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_packed_unpacked_and_padded_runs_train_every_token_once(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, *, packing: bool, weighted: bool
) -> None:
    data = shard_set(packing=packing, weighted=weighted)
    wanted = json.loads((data / "manifest.json").read_text())["counts"]["num_trained"]
    for attention in ("auto", "unpack"):
        result, _ = _run(data, toy_model, out=tmp_path / attention, attention=attention)
        assert result.num_trained == wanted


def test_packed_and_unpacked_runs_learn_the_same(shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path) -> None:
    data = shard_set()
    packed, _ = _run(data, toy_model, out=tmp_path / "a", attention="segments")
    unpacked, _ = _run(data, toy_model, out=tmp_path / "b", attention="unpack")
    assert packed.layout == "segments"
    assert unpacked.layout == "unpacked"
    assert packed.nll == pytest.approx(unpacked.nll, rel=1e-4)


def test_a_resumed_run_ends_in_the_same_bytes_as_an_uninterrupted_one_j1(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shard_set(num_rows=9)
    _run(data, toy_model, out=tmp_path / "whole", epochs=2)
    real = run.run_steps
    monkeypatch.setattr(run, "run_steps", interrupted_after(5))
    with pytest.raises(KeyboardInterrupt):
        _run(data, toy_model, out=tmp_path / "parts", epochs=2, save_every=4)
    assert not (tmp_path / "parts").exists()
    monkeypatch.setattr(run, "run_steps", real)
    with pytest.raises(SftprepError, match="unfinished"):
        _run(data, toy_model, out=tmp_path / "parts", epochs=2)
    _run(data, toy_model, out=tmp_path / "parts", epochs=2, resume=True)
    assert _parameters(tmp_path / "parts") == _parameters(tmp_path / "whole")
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 11))


def test_a_run_with_other_data_does_not_resume(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shard_set(num_rows=9)

    def full_disk(*arguments: Any, **keywords: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outcome, "save_model", full_disk)
    with pytest.raises(SftprepError) as raised:
        _run(data, toy_model, out=tmp_path / "out", save_every=2)
    assert raised.value.code == "disk-full"
    assert not (tmp_path / "out").exists()
    with pytest.raises(TrainError) as differs:
        _run(data, toy_model, out=tmp_path / "out", resume=True, seed=5)
    assert differs.value.code == "resume-differs"


def test_a_non_empty_output_is_refused_and_only_a_model_is_replaced(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    data = shard_set()
    for overwrite, code in ((False, "output-not-empty"), (True, "output-not-a-model")):
        with pytest.raises(SftprepError) as raised:
            _run(data, toy_model, out=out, max_steps=1, overwrite=overwrite)
        assert raised.value.code == code
    assert (out / "thesis.txt").read_text() == "mine"
    _run(data, toy_model, out=tmp_path / "again", max_steps=1)
    first = _parameters(tmp_path / "again")
    _run(data, toy_model, out=tmp_path / "again", max_steps=2, overwrite=True)
    assert _parameters(tmp_path / "again") != first


def test_damaged_shards_are_refused_before_anything_is_written(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set()
    shard = next((data / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(ShardError):
        _run(data, toy_model, out=tmp_path / "out")
    assert not (tmp_path / "out.running").exists()


def test_a_model_with_another_tokenizer_is_refused(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, samples: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (toy_model / name).write_bytes((samples / "model" / name).read_bytes())
    with pytest.raises(ShardError) as raised:
        _run(shard_set(), toy_model, out=tmp_path / "out")
    assert raised.value.code == "tokenizer-differs"


def test_a_model_with_another_template_is_refused_c8(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, samples: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (toy_model / name).write_bytes((samples / "model" / name).read_bytes())
    data = shard_set()
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["model"]["tokenizer_sha256"] = load_model(str(samples / "model")).tokenizer_sha256
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError) as raised:
        _run(data, toy_model, out=tmp_path / "out")
    assert raised.value.code == "template-differs"


@pytest.mark.parametrize(
    ("name", "old", "new", "code"),
    [
        ("chat_template.jinja", "content", "role", "template-differs"),
        ("tokenizer.json", '"t7": 7', '"t7": 8', "tokenizer-differs"),
        ("tokenizer.json", "{", "", "bad-model-file"),
        ("tokenizer.json", None, None, "no-tokenizer"),
    ],
)
def test_a_set_that_carries_other_files_than_it_was_packed_with_is_refused_c8(
    *, shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, name: str, old: str | None, new: str, code: str
) -> None:
    data = shard_set()
    file = data / "model" / name
    if old is None:
        file.unlink()
    else:
        text = json.dumps(json.loads(file.read_text("utf-8"))) if name.endswith(".json") else file.read_text("utf-8")
        assert old in text
        file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SftprepError) as raised:
        _run(data, toy_model, out=tmp_path / "out")
    assert raised.value.code == code
    assert raised.value.place.startswith(str(data / "model"))
    assert not (tmp_path / "out.running").exists()


@pytest.mark.parametrize(("key", "value"), [("stop_ids", [5]), ("stop_ids", []), ("pad_id", 10**6)])
def test_a_manifest_that_names_other_stop_tokens_than_the_set_carries_is_refused(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, key: str, value: object
) -> None:
    data = shard_set()
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["model"][key] = value
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="other stop tokens") as raised:
        _run(data, toy_model, out=tmp_path / "out")
    assert raised.value.code == "damaged-manifest"


def test_a_set_that_does_not_say_what_its_mask_is_is_refused_a4(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set()
    manifest = json.loads((data / "manifest.json").read_text())
    del manifest["mask"]
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError) as raised:
        _run(data, toy_model, out=tmp_path / "out")
    assert raised.value.code == "damaged-manifest"


def test_a_set_without_the_mask_column_is_refused_a4(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set()
    manifest = json.loads((data / "manifest.json").read_text())
    for record in manifest["shards"]:
        shard = data / record["file"]
        pq.write_table(pq.read_table(shard).drop_columns(["assistant_masks"]), shard)
        record |= {"sha256": hashlib.sha256(shard.read_bytes()).hexdigest(), "num_bytes": shard.stat().st_size}
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError) as raised:
        _run(data, toy_model, out=tmp_path / "out")
    assert raised.value.code == "shard-schema"


def test_random_weights_come_from_the_config_and_the_seed(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    (toy_model / "model.safetensors").unlink()
    data = shard_set()
    with pytest.raises(SftprepError) as raised:
        _run(data, toy_model, out=tmp_path / "none")
    assert raised.value.code == "no-weights"
    for name in ("a", "b"):
        _run(data, toy_model, out=tmp_path / name, init="random", max_steps=2)
    assert _parameters(tmp_path / "a") == _parameters(tmp_path / "b")


def test_checkpoints_are_models_that_open(shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path) -> None:
    _run(shard_set(), toy_model, out=tmp_path / "out", save_every=2)
    found = checkpoint.Workspace(tmp_path / "out")
    steps = sorted((found.out / "checkpoints").iterdir())
    assert [path.name for path in steps] == ["step-00000002", "step-00000004"]
    assert isinstance(AutoModelForCausalLM.from_pretrained(steps[0]), torch.nn.Module)


def test_gradient_checkpointing_changes_nothing_but_memory(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set()
    plain, _ = _run(data, toy_model, out=tmp_path / "a", max_steps=3)
    for option in ("gradient_checkpointing", "keep_products", "keep_narrow"):
        saved, _ = _run(data, toy_model, out=tmp_path / option, max_steps=3, **{option: True})
        assert plain.nll == pytest.approx(saved.nll, rel=1e-6)


def test_places_whose_names_are_not_utf_8_are_packed_to_and_trained_in(samples: Path, tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"caf\xe9")
    place.mkdir()
    rows = (samples / "good" / "prompt_response.jsonl",)
    pack(PackConfig(files=rows, model=str(samples / "model"), out=place / "set", max_length=256))
    result, _ = _run(place / "set", samples / "model", out=place / "out", init="random", max_steps=2)
    assert result.num_trained > 0
    assert (place / "out" / "model.safetensors").is_file()
