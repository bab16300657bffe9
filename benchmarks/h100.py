"""Everything that one H100 is asked for, in one call of less than ten minutes. No GPU has run it yet.

python benchmarks/h100.py [--tiny]

Each case is a process of its own, with its own time limit, so that one that fails leaves the others and the card's
memory alone. `--tiny` runs the same code on a CPU with toy sizes, to see that it runs. Models have random weights of
the real shapes; packs of 8192 hold conversations of log-normal length, 40 % of their tokens trained. MFU counts needed
operations (sftprep/train/flops.py) against the dense bfloat16 peak. TRL's cases need trl; without it they say so.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sftprep.config.pack import PackConfig
from sftprep.config.train import TrainConfig
from sftprep.prepare.pack import pack
from sftprep.shards.read import ShardSet, open_shard_set
from sftprep.train import attention, lora
from sftprep.train.attention import Segments
from sftprep.train.flops import cost_of
from sftprep.train.forward import Head, find_head, to_device, token_loss
from sftprep.train.optim import build_optimizer
from sftprep.train.recompute import recompute_activations
from sftprep.train.rows import RowReader
from sftprep.train.run import train
from sftprep.train.stream import MicroBatch, collate_packed

SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
PEAK = 989e12
"""Dense bfloat16 of an H100 SXM, operations a second."""
CASE_SECONDS = 95
"""Six cases, and the packing before them, stay under ten minutes."""
WARM_STEPS = 5

QWEN_1_5B = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
TOY = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a case runs on."""

    tiny: bool
    place: Path

    @property
    def device(self) -> str:
        return "cpu" if self.tiny else "cuda"

    @property
    def pack_tokens(self) -> int:
        return 512 if self.tiny else 8192

    @property
    def steps(self) -> int:
        return 8 if self.tiny else 25

    def shards(self) -> ShardSet:
        return open_shard_set(self.place / "set")

    def config(self, shape: dict[str, Any]) -> Any:
        values = shape | (TOY if self.tiny else {}) | {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
        return AutoConfig.for_model(**values)

    def options(self, **changes: Any) -> TrainConfig:
        values = {"max_steps": self.steps, "epochs": 1000, "grad_accum": 1, "lr": 1e-5, "schedule": "constant"}
        places = {"data": self.place / "set", "model": str(self.place / "model"), "out": self.place / "out"}
        return TrainConfig(**{**values, **places, "device": self.device, "dtype": "bfloat16", **changes})


def write_set(setting: Setting) -> None:
    """Conversations of three messages and log-normal length; packed as any user would."""
    generator = random.Random(0)
    words = ["the", "water", "of", "a", "lake", "moves", "under", "ice", "and", "stays", "warm", "in", "winter"]
    tokens, path = 0, setting.place / "chats.jsonl"
    with path.open("w", encoding="utf-8") as file:
        while tokens < (setting.steps + 4) * setting.pack_tokens:
            size = min(
                setting.pack_tokens // 4, int(generator.lognormvariate(math.log(setting.pack_tokens / 24), 1.0)) + 8
            )
            texts = [" ".join(generator.choices(words, k=max(1, int(size * part)))) for part in (0.3, 0.3, 0.4)]
            roles = ("system", "user", "assistant")
            messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
            file.write(json.dumps({"messages": messages}) + "\n")
            tokens += size
    pack(
        PackConfig(
            files=(path,), model=str(SAMPLES / "model"), out=setting.place / "set", max_length=setting.pack_tokens
        )
    )


def random_model(setting: Setting, shape: dict[str, Any], *, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.device(setting.device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(setting.config(shape), dtype=dtype)
    model.config.use_cache = False
    return model.train()


def synchronize(setting: Setting) -> None:
    if not setting.tiny:
        torch.cuda.synchronize()


def report(
    setting: Setting, name: str, *, seconds: list[float], model: PreTrainedModel | None, norms: list[float]
) -> None:
    """Print the median step, and what it means; a zero gradient is no measurement."""
    if not all(math.isfinite(norm) and norm > 0 for norm in norms) or not norms:
        raise SystemExit(f"{name}: a gradient norm is not above zero: {norms}")
    shards = setting.shards()
    scalars = shards.scalars()
    rows, counts = shards.num_rows, shards.manifest.counts
    step = statistics.median(seconds[WARM_STEPS:])
    tokens, trained = counts.num_tokens / rows, counts.num_trained / rows
    line = {"case": name, "ms a step": round(step * 1e3, 2), "tokens a second": round(tokens / step)}
    cost = None if model is None else cost_of(model)
    if cost is not None:
        squares = float(scalars.sum_len2.sum()) / rows
        needed = cost.step(num_tokens=round(tokens), num_trained=round(trained), sum_len2=round(squares))
        line["MFU %"] = round(100 * needed / step / PEAK, 2)
    if not setting.tiny:
        line["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    print(json.dumps(line), flush=True)


def kernel(setting: Setting) -> None:
    """The variable-length kernel against the loop over documents, at the real shapes, forward and backward."""
    if setting.tiny:
        print(json.dumps({"case": "kernel", "skipped": "needs CUDA"}))
        return
    lengths = [700, 3000, 1, 1500, 2991]
    offsets = (0, *torch.tensor(lengths).cumsum(0).tolist())
    cu_seqlens = torch.tensor(offsets, dtype=torch.int32, device="cuda")
    for heads, key_heads, dim, window in ((12, 2, 128, 0), (32, 8, 128, 0), (8, 4, 256, 512)):
        shapes = [(1, count, offsets[-1], dim) for count in (heads, key_heads, key_heads)]
        torch.manual_seed(0)
        found = []
        wide = [torch.randn(shape, device="cuda") for shape in shapes]
        for dtype in (torch.bfloat16, torch.float32):
            parts = [tensor.to(dtype).detach().requires_grad_() for tensor in wide]
            segments = Segments(offsets=offsets, cu_seqlens=cu_seqlens, max_length=max(lengths))
            output, _ = attention.segment_attention(
                torch.nn.Module(), *parts, sliding_window=window or None, **segments.keywords()
            )
            output.float().square().sum().backward()
            found.append([output.float(), *(part.grad.float() for part in parts if part.grad is not None)])
        errors = [float((low - high).norm() / high.norm()) for low, high in zip(*found, strict=True)]
        print(json.dumps({"case": f"kernel {heads}/{key_heads}x{dim} window {window}", "relative errors": errors}))
        if max(errors) > 0.02:
            raise SystemExit("the kernel disagrees with the loop")


def ours(setting: Setting) -> None:
    """`sftprep train` itself on the 1.5B: reading, checking, logging included."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(setting.config(QWEN_1_5B))
    (setting.place / "model").mkdir(exist_ok=True)
    setting.config(QWEN_1_5B).save_pretrained(setting.place / "model")
    options = setting.options(init="random", overwrite=True)
    train(options, console=Console(file=io.StringIO()))
    lines = (options.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    norms = [record["grad_norm"] for record in records]
    report(setting, "1.5B full, sftprep train", seconds=[r["seconds"] for r in records], model=model, norms=norms)


def prepared(setting: Setting, model: PreTrainedModel) -> tuple[Head | None, list[MicroBatch]]:
    attention.register()
    head = find_head(model)
    model.set_attn_implementation(attention.ATTENTION_NAME)
    reader = RowReader(setting.shards())
    rows = [reader.row(step % setting.shards().num_rows) for step in range(setting.steps)]
    return head, [to_device(collate_packed([row]), torch.device(setting.device)) for row in rows]


def loop(setting: Setting, model: PreTrainedModel, *, name: str) -> None:
    """The same kernels on batches that are on the device already: what the trainer is measured against."""
    head, batches = prepared(setting, model)
    optimizer = build_optimizer(model, setting.options())
    seconds, norms = [], []
    for batch in batches:
        synchronize(setting)
        start = time.perf_counter()
        with torch.autocast(setting.device, dtype=torch.bfloat16):
            found = token_loss(model, batch, head=head, normaliser=float(len(batch["targets"])))
        found.objective.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(setting)
        seconds.append(time.perf_counter() - start)
    report(setting, name, seconds=seconds, model=model, norms=[float(norm) for norm in norms])


def synthetic(setting: Setting) -> None:
    loop(setting, random_model(setting, QWEN_1_5B, dtype=torch.float32), name="1.5B full, synthetic loop")


def adapters(setting: Setting) -> None:
    model = random_model(setting, LLAMA_8B, dtype=torch.bfloat16)
    lora.adapt(model, setting.options(lora_rank=16))
    recompute_activations(model, keep_products=True)
    loop(setting, model, name="8B LoRA r16, sftprep kernels, products kept")


def trl_with(setting: Setting, *, implementation: str) -> None:
    """SFTTrainer on the same shards and the same model, by TRL's own padding-free path."""
    name = f"1.5B full, TRL with {implementation}"
    if importlib.util.find_spec("trl") is None:
        print(json.dumps({"case": name, "skipped": "trl is not installed"}))
        return
    # Only these cases need them, and a bare machine has neither.
    import datasets
    import trl
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronize(setting)
            self.times.append(time.perf_counter())

    attention.register()
    model = random_model(setting, QWEN_1_5B, dtype=torch.float32)
    model.set_attn_implementation(implementation)
    shards, clock = setting.shards(), Clock()
    paths = [str(shards.directory / shard.file) for shard in shards.manifest.shards]
    settings = trl.SFTConfig(
        output_dir=str(setting.place / "trl"),
        packing=False,
        padding_free=True,
        max_length=None,
        per_device_train_batch_size=1,
        max_steps=setting.steps,
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=setting.tiny,
        bf16=True,
        optim="adamw_torch_fused",
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
    )
    trainer = trl.SFTTrainer(
        model,
        args=settings,
        train_dataset=datasets.Dataset.from_parquet(paths, cache_dir=str(setting.place / "cache")),
        processing_class=AutoTokenizer.from_pretrained(SAMPLES / "model"),
        callbacks=[clock],
    )
    trainer.train()
    norms = [record["grad_norm"] for record in trainer.state.log_history if "grad_norm" in record]
    seconds = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    report(setting, name, seconds=seconds, model=model, norms=norms)


CASES: dict[str, Callable[[Setting], None]] = {
    "kernel": kernel,
    "ours": ours,
    "synthetic": synthetic,
    "adapters": adapters,
    "trl-sdpa": lambda setting: trl_with(setting, implementation="sdpa"),
    "trl-flex": lambda setting: trl_with(setting, implementation="flex_attention"),
}


def results(setting: Setting) -> Iterator[str]:
    for name in CASES:
        command = [sys.executable, __file__, "--case", name, "--place", str(setting.place)]
        command += ["--tiny"] if setting.tiny else []
        start = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=CASE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            yield f"{name}: more than {CASE_SECONDS} s"
            continue
        yield from (line for line in done.stdout.splitlines() if line.startswith('{"case"'))
        if done.returncode:
            yield f"{name} failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}"
        yield f"  ({name}: {time.perf_counter() - start:.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--place", type=Path)
    given = parser.parse_args()
    if given.case:
        CASES[given.case](Setting(tiny=given.tiny, place=given.place))
        return
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(tiny=given.tiny, place=Path(folder))
        write_set(setting)
        card = "CPU, toy sizes: no figure means anything" if given.tiny else torch.cuda.get_device_name()
        print(f"{card}; torch {torch.__version__}; packs of {setting.pack_tokens}", flush=True)
        for line in results(setting):
            print(line, flush=True)


if __name__ == "__main__":
    main()
