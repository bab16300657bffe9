"""A real small chat model on real rows: the loss falls, the saved model opens, answers and stops by itself (A1, B5)."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import zstandard
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftprep.config.pack import PackConfig
from sftprep.config.train import TrainConfig
from sftprep.prepare.pack import pack
from sftprep.train.generate import answers
from sftprep.train.run import train


@pytest.fixture
def weights(corpus: Path, tmp_path: Path) -> Path:
    """The model's weights with the tokenizer and template of the shared corpus, as one directory."""
    package = os.environ.get("SFTPREP_SMOLLM2")
    found = next(Path(package).glob("*.gguf"), None) if package else None
    if found is None:
        pytest.skip("SFTPREP_SMOLLM2 names no directory with the weights")
    place = tmp_path / "model"
    place.mkdir()
    (place / found.name).symlink_to(found)
    for path in (corpus / "models" / "smollm2-135m-instruct").iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


def short_rows(path: Path, *, count: int) -> list[Any]:
    with path.open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8", newline="\n")
        rows = [json.loads(line) for line in lines]
    short = [row for row in rows if sum(len(m["content"]) for m in row["messages"]) < 160]
    random.Random(1).shuffle(short)
    return short[:count]


@pytest.mark.slow
@pytest.mark.corpus
@pytest.mark.timeout(900)
def test_a_real_model_learns_real_rows_and_stops_by_itself_a3_b5(corpus: Path, weights: Path, tmp_path: Path) -> None:
    rows = short_rows(corpus / "chat" / "llamafactory_alpaca_en_demo.jsonl.zst", count=12)
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pack(PackConfig(files=(chats,), model=str(weights), out=tmp_path / "shards", max_length=1024))
    shown = io.StringIO()
    settings: dict[str, Any] = {"epochs": 8, "grad_accum": 1, "lr": 1e-4, "device": "cpu", "threads": 1}
    config = TrainConfig(data=tmp_path / "shards", model=str(weights), out=tmp_path / "tuned", **settings)
    result = train(config, console=Console(file=shown, width=200))
    assert "do not see each other" in shown.getvalue()
    assert result.nll[-1] < 0.7 * result.nll[0]
    saved = tmp_path / "tuned"
    template = (corpus / "models" / "smollm2-135m-instruct" / "chat_template.jinja").read_bytes()
    assert (saved / "chat_template.jinja").read_bytes() == template
    assert AutoModelForCausalLM.from_pretrained(saved).generation_config.eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(saved)
    prompts = [
        tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_dict=False)
        for row in rows
    ]
    found = answers(saved, prompts, max_new_tokens=150)
    assert sum(answer.stopped for answer in found) >= 0.9 * len(rows)


def packed_rows(weights: Path, rows: list[Any], place: Path) -> Path:
    chats = place.with_suffix(".jsonl")
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pack(PackConfig(files=(chats,), model=str(weights), out=place, max_length=512))
    return place


@pytest.mark.slow
@pytest.mark.corpus
@pytest.mark.timeout(1800)
def test_the_held_out_loss_falls_and_packed_and_padded_runs_agree_i6(
    corpus: Path, weights: Path, tmp_path: Path
) -> None:
    rows = short_rows(corpus / "chat" / "llamafactory_alpaca_en_demo.jsonl.zst", count=32)
    data = packed_rows(weights, rows[:24], tmp_path / "shards")
    held = packed_rows(weights, rows[24:], tmp_path / "held")
    settings: dict[str, Any] = {"epochs": 2, "grad_accum": 1, "lr": 5e-5, "device": "cpu", "threads": 1}
    settings |= {"schedule": "constant", "warmup": 0}
    settings |= {"data": data, "model": str(weights), "eval_shards": held, "eval_every": 1000}

    def run(name: str, **options: Any) -> tuple[list[float], float]:
        out = tmp_path / name
        train(TrainConfig(out=out, **settings | options), console=Console(file=io.StringIO()))
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [record["nll"] for record in records], records[-1]["eval_nll"]

    _, untouched = run("untouched", max_steps=1, lr=1e-12)
    packed, after = run("packed", attention="segments")
    padded, _ = run("padded", attention="unpack", max_steps=3)
    assert after < 0.97 * untouched
    assert packed[:3] == pytest.approx(padded, rel=1e-3)
