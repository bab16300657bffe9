"""Everything that one H100 is asked for, in one call of less than ten minutes. README.md has the figures.

python benchmarks/h100.py [--tiny] [--only CASE …]

Each case is a process of its own, with its own time limit, so that one that fails leaves the others and the card's
memory alone. What is asked for most comes first, each line is printed when it is known, and cases that no longer fit
into the ten minutes are named: a run that is cut off has its table as far as it came. `--tiny` runs the same code on a
CPU with toy sizes, to see that it runs. Models have random weights of the real shapes; packs of 8192 hold conversations
of log-normal length, 40 % of their tokens trained. MFU counts needed operations (sftprep/train/flops.py) against the
dense bfloat16 peak. TRL's cases need trl; without it they say so.
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
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sftprep.config.pack import PackConfig
from sftprep.config.train import TrainConfig
from sftprep.prepare.pack import pack
from sftprep.shards.read import ShardSet, open_shard_set
from sftprep.train import attention, lora, run, setup
from sftprep.train.attention import Segments
from sftprep.train.compiled import compile_layers
from sftprep.train.filling import filled_up
from sftprep.train.flops import cost_of
from sftprep.train.forward import Head, find_head, to_device, token_loss
from sftprep.train.optim import build_optimizer
from sftprep.train.recompute import recompute_activations
from sftprep.train.record import StepRecord
from sftprep.train.rows import RowReader
from sftprep.train.stream import MicroBatch, collate_packed

SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
PEAK = 989e12
"""Dense bfloat16 of an H100 SXM, operations a second."""
WARM_STEPS = 5
ACCUMULATED = 2
"""Packs of a step, each in a forward pass of its own, where a case does not say otherwise."""
MORE = 8
"""Packs of a step in the cases of more: the optimizer costs the same whatever they are."""
ALL_SECONDS = 585
TRL_KERNEL = "varlen_by_positions"
_SEEN: dict[str, Any] = {}

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
    def case_seconds(self) -> int:
        return 900 if self.tiny else 95

    @property
    def all_seconds(self) -> float:
        return math.inf if self.tiny else ALL_SECONDS

    @property
    def steps(self) -> int:
        return 8 if self.tiny else 25

    def shards(self) -> ShardSet:
        return open_shard_set(self.place / "set")

    def config(self, shape: dict[str, Any]) -> Any:
        values = shape | (TOY if self.tiny else {}) | {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
        return AutoConfig.for_model(**values)

    def options(self, **changes: Any) -> TrainConfig:
        values = {
            "max_steps": self.steps,
            "epochs": 1000,
            "grad_accum": ACCUMULATED,
            "lr": 1e-5,
            "schedule": "constant",
        }
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


@dataclass(frozen=True, slots=True)
class Steps:
    """What was seen of a case's steps, of so many packs each."""

    seconds: list[float]
    norms: list[float]
    packs: int = ACCUMULATED


def report(setting: Setting, name: str, *, steps: Steps, model: PreTrainedModel | None) -> None:
    """Print the median step, and what it means; a zero gradient is no measurement."""
    seconds, norms, packs = steps.seconds, steps.norms, steps.packs
    if not all(math.isfinite(norm) and norm > 0 for norm in norms) or not norms:
        raise SystemExit(f"{name}: a gradient norm is not above zero: {norms}")
    shards = setting.shards()
    scalars = shards.scalars()
    rows, counts = shards.num_rows, shards.manifest.counts
    step = statistics.median(seconds[WARM_STEPS:])
    tokens, trained = packs * counts.num_tokens / rows, packs * counts.num_trained / rows
    line = {"case": name, "ms a step": round(step * 1e3, 2), "tokens a second": round(tokens / step)}
    cost = None if model is None else cost_of(model)
    if cost is not None:
        squares = packs * float(scalars.sum_len2.sum()) / rows
        needed = cost.step(num_tokens=round(tokens), num_trained=round(trained), sum_len2=round(squares))
        line["MFU %"] = round(100 * needed / step / PEAK, 2)
    if not setting.tiny:
        line["peak GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    print(json.dumps(line), flush=True)


@contextmanager
def weights_on_the_device(setting: Setting, shape: dict[str, Any]) -> Iterator[list[StepRecord]]:
    """`train` without what is no training: weights are drawn on the card, and none are written; its steps' records."""
    records: list[StepRecord] = []
    steps = run.run_steps

    def recorded(*arguments: Any, **keywords: Any) -> Iterator[Any]:
        for record, position in steps(*arguments, **keywords):
            records.append(record)
            yield record, position

    def drawn(_: Any, __: Any, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        return random_model(setting, shape, dtype=dtype)

    with (
        patch.object(setup, "load", drawn),
        patch.object(run, "run_steps", recorded),
        patch.object(run, "_publish", lambda *_, **__: None),
    ):
        yield records


def ours(setting: Setting, *, name: str, shape: dict[str, Any] = QWEN_1_5B, **options: Any) -> None:
    """`sftprep train` itself: reading, checking, self-test, logging included."""
    (setting.place / "model").mkdir(exist_ok=True)
    setting.config(shape).save_pretrained(setting.place / "model")
    with weights_on_the_device(setting, shape) as records:
        config = setting.options(overwrite=True, **options)
        said = io.StringIO()
        found = run.train(config, console=Console(file=said))
    for line in said.getvalue().splitlines():
        if line.startswith(("self-test", "compiled")):
            print(json.dumps({"case": name, "said": line}))
    if found.layout != "segments":
        raise SystemExit(f"{name}: rows were trained as {found.layout}")
    model = meta_model(setting, shape, **options)
    packs = options.get("batch_size", 1) * options.get("grad_accum", ACCUMULATED)
    steps = Steps([record.seconds for record in records], [record.grad_norm for record in records], packs)
    report(setting, name, steps=steps, model=model)


def meta_model(setting: Setting, shape: dict[str, Any], **options: Any) -> PreTrainedModel:
    """The model without weights, to count its operations."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(setting.config(shape))
    if options.get("lora_rank"):
        lora.adapt(model, setting.options(**options))
    return model


@dataclass(frozen=True, slots=True)
class Bare:
    """The same kernels without the trainer, on batches that lie on the device already."""

    setting: Setting
    model: PreTrainedModel
    head: Head | None
    batches: list[MicroBatch]
    optimizer: torch.optim.Optimizer

    def step(self, number: int) -> torch.Tensor:
        batches = [self.batches[(number * ACCUMULATED + part) % len(self.batches)] for part in range(ACCUMULATED)]
        targets = float(sum(len(batch["targets"]) for batch in batches))
        for batch in batches:
            with torch.autocast(self.setting.device, dtype=torch.bfloat16):
                found = token_loss(self.model, batch, head=self.head, normaliser=targets)
            found.objective.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm


def bare(setting: Setting) -> Bare:
    attention.register()
    model = random_model(setting, QWEN_1_5B, dtype=torch.float32)
    head = find_head(model)
    model.set_attn_implementation(attention.ATTENTION_NAME)
    recompute_activations(model, keep_products=True)
    compile_layers(model)
    reader = RowReader(setting.shards())
    rows = [reader.row(step % setting.shards().num_rows) for step in range(setting.steps)]
    filled = [filled_up(collate_packed([row]), pad_id=0, length=setting.pack_tokens) for row in rows]
    batches = [to_device(batch, torch.device(setting.device)) for batch in filled]
    head = head and head.fused()
    return Bare(setting, model, head, batches, build_optimizer(model, setting.options()))


def synthetic(setting: Setting) -> None:
    """What the trainer is measured against."""
    loop = bare(setting)
    seconds, norms = [], []
    for number in range(setting.steps):
        synchronize(setting)
        start = time.perf_counter()
        norms.append(loop.step(number))
        synchronize(setting)
        seconds.append(time.perf_counter() - start)
    name = "1.5B full, synthetic loop"
    report(setting, name, steps=Steps(seconds, [float(norm) for norm in norms]), model=loop.model)


def profiled(setting: Setting) -> None:
    """Where the time of a step goes: the kernels that take most of it."""
    loop = bare(setting)
    for number in range(WARM_STEPS):
        loop.step(number)
    synchronize(setting)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities[: 1 if setting.tiny else 2]) as profile:
        for number in range(2):
            loop.step(number)
        synchronize(setting)
    events = [event for event in profile.key_averages() if not event.key.startswith(("aten::", "Optimizer"))]
    for event in sorted(events, key=lambda event: -event.self_device_time_total)[:24]:
        taken = round(event.self_device_time_total / 2e3, 2)
        print(json.dumps({"case": "profile", "kernel": event.key[:100], "ms": taken, "calls": event.count / 2}))


def varlen_for_trl(module: torch.nn.Module, *tensors: torch.Tensor, **keywords: Any) -> tuple[torch.Tensor, None]:
    """Our kernel for a trainer that hands positions on: documents begin where they are 0, looked up once a batch."""
    positions = keywords["position_ids"]
    if _SEEN.get("positions") is not positions:
        starts = torch.nonzero(positions[0] == 0).flatten().tolist()
        offsets = (*starts, positions.shape[1])
        longest = max(stop - start for start, stop in pairwise(offsets))
        cu_seqlens = torch.tensor(offsets, dtype=torch.int32, device=positions.device)
        _SEEN.update(positions=positions, segments=Segments(offsets, cu_seqlens, longest))
    given = {name: keywords[name] for name in ("scaling", "sliding_window", "dropout") if name in keywords}
    return attention.segment_attention(module, *tensors[:3], **given, **_SEEN["segments"].keywords())


def trl_with(setting: Setting, *, implementation: str, options: dict[str, Any]) -> None:
    """SFTTrainer on the same shards and the same model, by TRL's own padding-free path."""
    name = f"1.5B full, TRL with {implementation}" + "".join(f", {option} {value}" for option, value in options.items())
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

    AttentionInterface.register(TRL_KERNEL, varlen_for_trl)
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
        **{"gradient_accumulation_steps": ACCUMULATED, **options},
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
    steps = Steps(seconds, norms, settings.gradient_accumulation_steps)
    report(setting, name, steps=steps, model=model)


def trained(name: str, **options: Any) -> Callable[[Setting], None]:
    return lambda setting: ours(setting, name=name, **options)


BASE = "1.5B full, sftprep train, compiled, products kept"
COMPILED = {"compile_layers": True, "keep_products": True}
LEAN = {"compile_layers": True, "keep_narrow": True}
WIDE = {"batch_size": ACCUMULATED, "grad_accum": 1}


def trl(implementation: str, **options: Any) -> Callable[[Setting], None]:
    return lambda setting: trl_with(setting, implementation=implementation, options=options)


CASES: dict[str, Callable[[Setting], None]] = {
    "ours": trained(BASE, **COMPILED),
    "trl-liger": trl(TRL_KERNEL, use_liger_kernel=True),
    "ours-lean": trained("1.5B full, sftprep train, compiled, narrow products kept", **LEAN),
    "ours-wide": trained("1.5B full, sftprep train, compiled, two packs at once", **COMPILED, **WIDE),
    "ours-wide-lean": trained(
        "1.5B full, sftprep train, compiled, narrow products kept, two packs at once", **LEAN, **WIDE
    ),
    "ours-more": trained(f"1.5B full, sftprep train, compiled, {MORE} packs a step", **COMPILED, grad_accum=MORE),
    "ours-all": trained("1.5B full, sftprep train, compiled", compile_layers=True),
    "profile": profiled,
    "synthetic": synthetic,
    "trl-sdpa": trl("sdpa"),
    "trl-flex": trl("flex_attention"),
    "trl-liger-more": trl(TRL_KERNEL, use_liger_kernel=True, gradient_accumulation_steps=MORE),
    "adapters": trained(
        "8B LoRA r16, sftprep train, compiled, products kept", shape=LLAMA_8B, lora_rank=16, **COMPILED
    ),
    "trl-varlen": trl(TRL_KERNEL),
    "ours-eager": trained("1.5B full, sftprep train, not compiled"),
}
"""In the order in which their lines are asked for: a run may be cut off behind any of them."""


def case_command(setting: Setting, name: str) -> list[str]:
    command = [sys.executable, __file__, "--case", name, "--place", str(setting.place)]
    return [*command, "--tiny"] if setting.tiny else command


def lines_of(command: list[str], *, seconds: float) -> Iterator[str]:
    """Measurements as they are printed; then why the case ended, where it did not end well."""
    with tempfile.TemporaryFile() as said:
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        late = threading.Event()
        limit = threading.Timer(seconds, lambda: (late.set(), started.kill()))
        limit.start()
        try:
            yield from (line.strip() for line in started.stdout or () if line.startswith('{"case"'))
            code = started.wait()
        finally:
            limit.cancel()
            started.kill()
            started.wait()
        if late.is_set():
            yield f"more than {seconds:.0f} s"
        elif code:
            said.seek(0)
            yield f"failed: {said.read().decode(errors='replace').strip().splitlines()[-1:]}"


def compared(line: str, base: dict[str, Any]) -> str:
    """A measurement beside `sftprep train`'s, once that is known."""
    found = json.loads(line)
    if found["case"] == BASE and "ms a step" in found:
        base.update(found)
    elif base and "tokens a second" in found:
        found["sftprep train to it"] = round(base["tokens a second"] / found["tokens a second"], 3)
        if "peak GiB" in found:
            found["its memory"] = round(base["peak GiB"] / found["peak GiB"], 3)
    return json.dumps(found)


def results(
    setting: Setting, names: list[str], *, command: Callable[[Setting, str], list[str]] = case_command
) -> Iterator[str]:
    """The lines of all cases, while there is time."""
    base: dict[str, Any] = {}
    began = time.monotonic()
    for name in names:
        start = time.monotonic()
        left = setting.all_seconds - (start - began)
        if left < setting.case_seconds / 2:
            yield f"{name}: left out, {max(0.0, left):.0f} s are left"
            continue
        for line in lines_of(command(setting, name), seconds=min(left, setting.case_seconds)):
            yield compared(line, base) if line.startswith("{") else f"{name}: {line}"
        yield f"  ({name}: {time.monotonic() - start:.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--case", choices=list(CASES))
    parser.add_argument("--place", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(CASES))
    given = parser.parse_args()
    if given.case:
        CASES[given.case](Setting(tiny=given.tiny, place=given.place))
        return
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(tiny=given.tiny, place=Path(folder))
        write_set(setting)
        card = "CPU, toy sizes: no figure means anything" if given.tiny else torch.cuda.get_device_name()
        print(f"{card}; torch {torch.__version__}; packs of {setting.pack_tokens}", flush=True)
        for line in results(setting, given.only or list(CASES)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
