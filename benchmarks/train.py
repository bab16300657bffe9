"""What a training step costs, beside TRL's SFTTrainer and a bare loop, and how fast rows are read.

python benchmarks/train.py [STEPS]

One process and one thread, CPU seconds, float32, the same packs and the same small Qwen3. What runs once (loading,
self-test, saving) is taken away: each side is run for two numbers of steps, and the difference counts. A run whose
gradient is zero anywhere is no measurement and fails. Needs the extra `dev` (trl).
"""

from __future__ import annotations

import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import trl
from rich.console import Console
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from sftprep.config.pack import PackConfig, SourceSpec
from sftprep.config.train import TrainConfig
from sftprep.prepare.pack import pack
from sftprep.shards.read import ShardSet
from sftprep.train import attention
from sftprep.train.forward import find_head, to_device, token_loss
from sftprep.train.optim import build_optimizer
from sftprep.train.rows import RowReader
from sftprep.train.run import train
from sftprep.train.stream import Layout, Schedule, collate_packed, micro_batches

SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
PACK_TOKENS = 1024
PACKS_A_STEP = 2
WARM_STEPS = 2
LOADER_TOKENS = 20_000_000
MODEL = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def packed(out: Path, *, tokens: int, max_length: int) -> ShardSet:
    files = sorted((SAMPLES / "good").glob("*.jsonl"))
    sources = tuple(SourceSpec(name=path.stem, path=path, epochs=max(1, tokens // 7_322)) for path in files)
    return pack(PackConfig(sources=sources, model=str(SAMPLES / "model"), out=out, max_length=max_length)).shards


def options(data: Path, place: Path, *, steps: int) -> TrainConfig:
    return TrainConfig(
        data=data,
        model=str(place / "model"),
        out=place / f"out-{steps}",
        max_steps=steps,
        epochs=1000,
        grad_accum=PACKS_A_STEP,
        schedule="constant",
        lr=1e-4,
        threads=1,
        device="cpu",
        overwrite=True,
    )


def run_ours(shards: ShardSet, place: Path, *, steps: int) -> list[float]:
    """The gradient norms of the steps."""
    config = options(shards.directory, place, steps=steps)
    train(config, console=Console(file=io.StringIO()))
    lines = (config.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["grad_norm"] for line in lines]


def run_trl(shards: ShardSet, place: Path, *, steps: int) -> list[float]:
    paths = [str(shards.directory / shard.file) for shard in shards.manifest.shards]
    settings = trl.SFTConfig(
        output_dir=str(place / "trl"),
        packing=False,
        padding_free=True,
        max_length=None,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=PACKS_A_STEP,
        max_steps=steps,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        dataloader_num_workers=0,
    )
    trainer = trl.SFTTrainer(
        Qwen3ForCausalLM.from_pretrained(place / "model"),
        args=settings,
        train_dataset=datasets.Dataset.from_parquet(paths, cache_dir=str(place / "cache")),
        processing_class=AutoTokenizer.from_pretrained(SAMPLES / "model"),
    )
    trainer.train()
    return [record["grad_norm"] for record in trainer.state.log_history if "grad_norm" in record]


def run_bare(shards: ShardSet, place: Path, *, steps: int) -> list[float]:
    """The same kernels and rows, with all batches made beforehand: what no trainer can be faster than."""
    attention.register()
    model = Qwen3ForCausalLM.from_pretrained(place / "model").train()
    head = find_head(model)
    model.set_attn_implementation(attention.ATTENTION_NAME)
    optimizer = build_optimizer(model, options(shards.directory, place, steps=steps))
    reader, schedule = RowReader(shards), Schedule(num_rows=shards.num_rows, rows_per_step=PACKS_A_STEP, seed=0)
    wanted = [[int(number) for number in schedule.rows(step)] for step in range(steps)]
    batches = [[collate_packed([reader.row(number)]) for number in numbers] for numbers in wanted]
    norms = []
    for parts in batches:
        total = float(sum(part["weights"].sum() for part in parts))
        for part in parts:
            loss = token_loss(model, to_device(part, torch.device("cpu")), head=head, normaliser=total)
            loss.objective.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norms


Run = Callable[..., list[float]]


def seconds_a_step(run: Run, shards: ShardSet, place: Path, *, steps: int) -> float:
    """CPU seconds, what runs once taken away."""
    taken = []
    for number in (WARM_STEPS, WARM_STEPS + steps):
        start = time.process_time()
        norms = run(shards, place, steps=number)
        taken.append(time.process_time() - start)
        if len(norms) != number or not all(math.isfinite(norm) and norm > 0 for norm in norms):
            raise SystemExit(f"{run.__name__}: {len(norms)} of {number} gradient norms, the least {min(norms)}")
    return (taken[1] - taken[0]) / steps


def loader_seconds(shards: ShardSet, *, rows: int) -> tuple[int, float]:
    """Tokens and CPU seconds of reading `rows` rows in training order and making batches of them."""
    reader = RowReader(shards)
    schedule = Schedule(num_rows=shards.num_rows, rows_per_step=PACKS_A_STEP, seed=0)
    start, tokens = time.process_time(), 0
    for step in range(min(schedule.steps_per_epoch, rows // PACKS_A_STEP)):
        part = [reader.row(int(number)) for number in schedule.rows(step)]
        for batch in micro_batches(part, size=1, layout=Layout.SEGMENTS, pad_id=0):
            tokens += batch["num_tokens"]
    return tokens, time.process_time() - start


def show(rows: list[tuple[str, str, str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        shards = packed(place / "set", tokens=60_000, max_length=PACK_TOKENS)
        torch.manual_seed(0)
        Qwen3ForCausalLM(Qwen3Config(**MODEL)).save_pretrained(place / "model")
        runs: dict[str, Run] = {"bare loop": run_bare, "sftprep": run_ours, "TRL SFTTrainer": run_trl}
        costs = {name: seconds_a_step(run, shards, place, steps=steps) for name, run in runs.items()}
        _, small = loader_seconds(shards, rows=PACKS_A_STEP * steps)
        large = packed(place / "large", tokens=LOADER_TOKENS, max_length=8192)
        tokens, spent = loader_seconds(large, rows=10**9)
    counts: Any = shards.manifest.counts
    a_step = counts.num_tokens / counts.num_packs * PACKS_A_STEP
    print(f"packs of {PACK_TOKENS}, {counts.num_trained / counts.num_tokens:.0%} trained; {steps} steps each")
    show(
        [("", "tokens a CPU second", "against sftprep")]
        + [(name, f"{a_step / cost:,.0f}", f"{costs['sftprep'] / cost:.2f}") for name, cost in costs.items()]
    )
    print(f"sftprep against TRL: {costs['TRL SFTTrainer'] / costs['sftprep']:.2f} times as fast (wanted: 2)")
    print(f"sftprep against the bare loop: {costs['bare loop'] / costs['sftprep']:.2f} (wanted: 0.9)")
    print(f"reading and batching: {small / steps / costs['sftprep']:.2%} of a step (wanted: at most 2%)")
    print(f"loader, packs of 8192: {tokens / spent / 1e6:.1f} million tokens a CPU second (wanted: 20)")


if __name__ == "__main__":
    main()
