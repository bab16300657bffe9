"""What a training step costs, beside TRL's SFTTrainer and a bare loop, and how fast rows are read.

python benchmarks/train.py [STEPS]

One process and one thread, CPU seconds, float32, the same packs and the same small Qwen3. Steps of ours and of the bare
loop are taken in turn, and the median of their ratios counts. Resumption is measured at two steps of a run (resume.py
does it for any model). Beside TRL, what runs once (loading, self-test, saving) is taken away: each side is run for two
numbers of steps, and the difference counts. A run whose gradient is zero anywhere is no measurement and fails. Needs
the extra `dev` (trl).
"""

from __future__ import annotations

import io
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import pyarrow as pa
import torch
import trl
from resume import report
from rich.console import Console
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from sftprep.config.pack import PackConfig, SourceSpec
from sftprep.config.train import TrainConfig
from sftprep.prepare.pack import pack
from sftprep.shards.part import write_shard
from sftprep.shards.read import ShardSet
from sftprep.shards.schema import SHARD_SCHEMA
from sftprep.shards.write import ShardWriter
from sftprep.train import attention
from sftprep.train import run as run_module
from sftprep.train.forward import find_head, token_loss
from sftprep.train.optim import build_optimizer
from sftprep.train.rows import RowReader
from sftprep.train.run import train
from sftprep.train.stream import Layout, Schedule, collate_packed, micro_batches

SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
PACK_TOKENS = 1024
PACKS_A_STEP = 2
WARM_STEPS = 2
LOADER_TOKENS = 20_000_000
LARGE_PACK = 8192
GROUP_ROWS = 32
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


def gradient_norms(out: Path) -> list[float]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["grad_norm"] for line in lines]


def run_ours(shards: ShardSet, place: Path, *, steps: int) -> list[float]:
    """The gradient norms of the steps."""
    config = options(shards.directory, place, steps=steps)
    train(config, console=Console(file=io.StringIO()))
    return gradient_norms(config.out)


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


def bare_steps(shards: ShardSet, place: Path, *, steps: int) -> Iterator[float]:
    """The same kernels and rows, with all batches made beforehand: what no trainer can be faster than."""
    model = Qwen3ForCausalLM.from_pretrained(place / "model").train()
    head = find_head(model)
    attention.register()
    model.set_attn_implementation(attention.ATTENTION_NAME)
    optimizer = build_optimizer(model, options(shards.directory, place, steps=steps))
    reader = RowReader(shards)
    wanted = [[int(number) for number in schedule_of(shards, reader).rows(step)] for step in range(steps)]
    batches = [[collate_packed([reader.row(number)]) for number in numbers] for numbers in wanted]
    for parts in batches:
        total = float(sum(part["weights"].sum() for part in parts))
        for part in parts:
            loss = token_loss(model, part, head=head, normaliser=total)
            loss.objective.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield norm


def schedule_of(shards: ShardSet, reader: RowReader) -> Schedule:
    groups = {"group_rows": reader.group_rows, "shard_groups": reader.shard_groups}
    return Schedule(num_rows=shards.num_rows, rows_per_step=PACKS_A_STEP, seed=0, **groups)


def steps_in_turn(shards: ShardSet, place: Path, *, steps: int) -> list[tuple[float, float]]:
    """CPU seconds of each step of `sftprep train` and of the bare loop's, one after the other on the same rows.

    A step of ours reaches from where it is asked for to where the next one is: logging and showing are in it. Turns
    see the same load on the machine, which runs after each other do not.
    """
    taken: list[tuple[float, float]] = []
    norms: list[float] = []
    bare, real = bare_steps(shards, place, steps=WARM_STEPS + steps), run_module.run_steps

    def in_turn(*arguments: Any, **keywords: Any) -> Iterator[Any]:
        source, began = real(*arguments, **keywords), time.process_time()
        for item in source:
            yield item
            middle = time.process_time()
            norms.append(next(bare))
            taken.append((middle - began, time.process_time() - middle))
            began = time.process_time()

    config = options(shards.directory, place, steps=WARM_STEPS + steps)
    with mock.patch.object(run_module, "run_steps", in_turn):
        train(config, console=Console(file=io.StringIO()))
    check_norms("sftprep", gradient_norms(config.out), number=WARM_STEPS + steps)
    # Nobody asks for a step after the last, so that one has no turn.
    check_norms("bare loop", norms, number=WARM_STEPS + steps - 1)
    return taken[WARM_STEPS:]


def check_norms(name: str, norms: list[float], *, number: int) -> None:
    """A run whose gradient vanishes is no measurement."""
    if len(norms) != number or not all(math.isfinite(norm) and norm > 0 for norm in norms):
        raise SystemExit(f"{name}: {len(norms)} of {number} gradient norms, the least {min(norms, default=0)}")


Run = Callable[..., list[float]]


def seconds_a_step(run: Run, shards: ShardSet, place: Path, *, steps: int) -> float:
    """CPU seconds, what runs once taken away."""
    taken = []
    for number in (WARM_STEPS, WARM_STEPS + steps):
        start = time.process_time()
        norms = run(shards, place, steps=number)
        taken.append(time.process_time() - start)
        check_norms(run.__name__, norms, number=number)
    return (taken[1] - taken[0]) / steps


def large_set(like: ShardSet, out: Path, *, tokens: int) -> ShardSet:
    """Packs of 8192 with documents of log-normal length, and ids as frequent as words are: what compresses as text."""
    generator = np.random.default_rng(0)
    (out / "shards").mkdir(parents=True)
    path = out / "shards" / "part-00000.parquet"
    with ShardWriter(out / "written", fingerprint="benchmark") as writer:
        groups = ([zipf_row(generator) for _ in range(GROUP_ROWS)] for _ in range(tokens // LARGE_PACK // GROUP_ROWS))
        batches = (pa.RecordBatch.from_pylist(rows, schema=SHARD_SCHEMA) for rows in groups)
        record = write_shard(writer.directory, batches, number=0, weights=False)
        (writer.directory / record.file).rename(path)
    return ShardSet(out, like.manifest.model_copy(update={"shards": [record], "has_weights": False}))


def zipf_row(generator: np.random.Generator) -> dict[str, Any]:
    cuts = np.cumsum(np.maximum(8, generator.lognormal(6.5, 1.0, LARGE_PACK // 8)).astype(int))
    lengths = np.diff([0, *cuts[cuts < LARGE_PACK], LARGE_PACK])
    starts = np.cumsum(lengths) - lengths
    where = np.arange(LARGE_PACK) - starts.repeat(lengths)
    mask = where >= np.maximum(1, 0.6 * lengths).repeat(lengths)
    zeros = [0] * len(lengths)
    return {
        "input_ids": np.minimum(generator.zipf(1.2, LARGE_PACK), 151_000),
        "assistant_masks": mask.astype(np.int8),
        "seq_lengths": lengths,
        **dict.fromkeys(("span_kinds", "span_messages", "doc_files", "doc_lines", "doc_samples", "doc_kwargs"), zeros),
        "span_starts": starts,
        "num_trained": int(mask.sum()),
        "weight_sum": float(mask.sum()),
        "sum_len2": int((lengths**2).sum()),
    }


def loader_speed(shards: ShardSet, *, epochs: int = 1, skip: int = 0) -> float:
    """Tokens a CPU second of reading rows in training order and making batches of them, `skip` epochs uncounted."""
    reader = RowReader(shards)
    schedule, start, tokens = schedule_of(shards, reader), time.process_time(), 0
    for step in range((skip + epochs) * schedule.steps_per_epoch):
        if step == skip * schedule.steps_per_epoch:
            start, tokens = time.process_time(), 0
        part = [reader.row(int(number)) for number in schedule.rows(step)]
        for batch in micro_batches(part, size=1, layout=Layout.SEGMENTS, pad_id=0):
            tokens += batch["num_tokens"]
    return tokens / (time.process_time() - start)


def decoder_speed(shards: ShardSet) -> float:
    """Tokens a CPU second of pyarrow alone, decoding the same columns of all row groups in order."""
    columns = ["input_ids", "assistant_masks", "seq_lengths", "doc_files"]
    start = time.process_time()
    tokens = sum(len(batch["input_ids"].flatten()) for batch in shards.iter_batches(columns))
    return tokens / (time.process_time() - start)


def say(text: str) -> None:
    """At once: each part takes minutes, and what was measured stands whatever becomes of the next."""
    print(text, flush=True)


def in_turn(shards: ShardSet, place: Path, *, steps: int) -> None:
    pairs = steps_in_turn(shards, place, steps=steps)
    bare, ours = (statistics.median(pair[side] for pair in pairs) for side in (1, 0))
    ratio = statistics.median(theirs / our for our, theirs in pairs)
    tokens = tokens_a_step(shards)
    say(f"bare loop: {tokens / bare:,.0f} tokens a CPU second; sftprep train: {tokens / ours:,.0f}")
    say(f"sftprep against the bare loop: {ratio:.3f}, median of {len(pairs)} steps in turn (wanted: 0.9)")
    small = loader_speed(shards, epochs=20)
    say(f"reading and batching: {tokens / small / ours:.2%} of a step")


def beside_trl(shards: ShardSet, place: Path, *, steps: int) -> None:
    trainers: dict[str, Run] = {"sftprep train": run_ours, "TRL SFTTrainer": run_trl}
    costs = {name: seconds_a_step(run, shards, place, steps=steps) for name, run in trainers.items()}
    for name, cost in costs.items():
        say(f"{name}: {tokens_a_step(shards) / cost:,.0f} tokens a CPU second")
    ours, theirs = costs.values()
    say(f"sftprep against TRL: {theirs / ours:.2f} times as fast (wanted: 2)")


def loader(shards: ShardSet, place: Path) -> None:
    large = large_set(shards, place / "large", tokens=LOADER_TOKENS)
    decoder_speed(large)
    first, again, decoder = loader_speed(large), loader_speed(large, skip=1), decoder_speed(large)
    say(
        f"loader, packs of {LARGE_PACK}: {first / 1e6:.1f} million tokens a CPU second in the first pass, "
        f"{again / 1e6:.1f} in the second (wanted: 20)"
    )
    say(f"pyarrow alone, decoding the same columns: {decoder / 1e6:.1f} million; ours is {first / decoder:.2f} of it")


def tokens_a_step(shards: ShardSet) -> float:
    counts: Any = shards.manifest.counts
    return float(counts.num_tokens / counts.num_packs * PACKS_A_STEP)


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        shards = packed(place / "set", tokens=60_000, max_length=PACK_TOKENS)
        torch.manual_seed(0)
        Qwen3ForCausalLM(Qwen3Config(**MODEL)).save_pretrained(place / "model")
        counts: Any = shards.manifest.counts
        say(f"packs of {PACK_TOKENS}, {counts.num_trained / counts.num_tokens:.0%} trained; {steps} steps each")
        loader(shards, place)
        in_turn(shards, place, steps=steps)
        for line in report(shards.directory, str(place / "model"), place, steps=[2, 20]):
            say(line)
        beside_trl(shards, place, steps=min(steps, 10))


if __name__ == "__main__":
    main()
