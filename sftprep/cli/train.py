"""`sftprep train`: a shard set and a model in, a trained model out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sftprep.cli.importing import importing
from sftprep.cli.options import option_of, read_config
from sftprep.config.extras import require_extra
from sftprep.config.train import TrainConfig

if TYPE_CHECKING:
    from sftprep.train.samples import Watcher

_FIELDS = TrainConfig.model_fields


class _Init(StrEnum):
    PRETRAINED = "pretrained"
    RANDOM = "random"


class _Schedule(StrEnum):
    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


_Loss = StrEnum("_Loss", ["token", "sample", "turn"])


class _Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class _Dtype(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class _Attention(StrEnum):
    AUTO = "auto"
    SEGMENTS = "segments"
    UNPACK = "unpack"


def _option(name: str, *names: str, **settings: Any) -> Any:
    return option_of(TrainConfig, name, *names, **settings)


def train(
    data: Annotated[str, typer.Argument(help=_FIELDS["data"].description, metavar="DIR_OR_URL")],
    *,
    model: Annotated[str, _option("model", metavar="DIR_OR_HUB_ID")],
    out: Annotated[Path, _option("out")],
    init: Annotated[_Init, _option("init")] = _Init(_FIELDS["init"].default),
    epochs: Annotated[float, _option("epochs")] = _FIELDS["epochs"].default,
    max_steps: Annotated[int | None, _option("max_steps")] = _FIELDS["max_steps"].default,
    batch_size: Annotated[int, _option("batch_size")] = _FIELDS["batch_size"].default,
    grad_accum: Annotated[int, _option("grad_accum")] = _FIELDS["grad_accum"].default,
    lr: Annotated[float, _option("lr")] = _FIELDS["lr"].default,
    warmup: Annotated[float, _option("warmup")] = _FIELDS["warmup"].default,
    schedule: Annotated[_Schedule, _option("schedule")] = _Schedule(_FIELDS["schedule"].default),
    min_lr_ratio: Annotated[float, _option("min_lr_ratio")] = _FIELDS["min_lr_ratio"].default,
    weight_decay: Annotated[float, _option("weight_decay")] = _FIELDS["weight_decay"].default,
    beta1: Annotated[float, _option("beta1")] = _FIELDS["beta1"].default,
    beta2: Annotated[float, _option("beta2")] = _FIELDS["beta2"].default,
    max_grad_norm: Annotated[float, _option("max_grad_norm")] = _FIELDS["max_grad_norm"].default,
    loss: Annotated[_Loss, _option("loss")] = _Loss(_FIELDS["loss"].default),
    seed: Annotated[int, _option("seed")] = _FIELDS["seed"].default,
    device: Annotated[_Device, _option("device")] = _Device(_FIELDS["device"].default),
    dtype: Annotated[_Dtype, _option("dtype")] = _Dtype(_FIELDS["dtype"].default),
    attention: Annotated[_Attention, _option("attention")] = _Attention(_FIELDS["attention"].default),
    lora_rank: Annotated[int, _option("lora_rank")] = _FIELDS["lora_rank"].default,
    lora_alpha: Annotated[float | None, _option("lora_alpha")] = _FIELDS["lora_alpha"].default,
    lora_dropout: Annotated[float, _option("lora_dropout")] = _FIELDS["lora_dropout"].default,
    lora_embeddings: Annotated[bool, _option("lora_embeddings")] = False,
    gradient_checkpointing: Annotated[bool, _option("gradient_checkpointing")] = False,
    keep_products: Annotated[bool, _option("keep_products")] = False,
    keep_narrow: Annotated[bool, _option("keep_narrow")] = False,
    compile_layers: Annotated[bool, _option("compile_layers", "--compile")] = False,
    deterministic: Annotated[bool, _option("deterministic")] = False,
    threads: Annotated[int | None, _option("threads")] = _FIELDS["threads"].default,
    eval_shards: Annotated[str | None, _option("eval_shards")] = _FIELDS["eval_shards"].default,
    eval_every: Annotated[int, _option("eval_every")] = _FIELDS["eval_every"].default,
    eval_suites: Annotated[list[str] | None, _option("eval_suites", "--eval", metavar="FILE")] = None,
    eval_cases: Annotated[int, _option("eval_cases")] = _FIELDS["eval_cases"].default,
    keep_best: Annotated[str | None, _option("keep_best", metavar="METRIC")] = None,
    stop_early: Annotated[str | None, _option("stop_early", metavar="METRIC")] = None,
    patience: Annotated[int, _option("patience")] = _FIELDS["patience"].default,
    save_every: Annotated[int | None, _option("save_every")] = _FIELDS["save_every"].default,
    keep_last: Annotated[int, _option("keep_last")] = _FIELDS["keep_last"].default,
    log_every: Annotated[int, _option("log_every")] = _FIELDS["log_every"].default,
    tag: Annotated[str | None, _option("tag", metavar="KEY")] = None,
    log_to: Annotated[list[str] | None, _option("log_to", metavar="NAME")] = None,
    cache_dir: Annotated[Path, _option("cache_dir")] = _FIELDS["cache_dir"].default,
    cache_gb: Annotated[float, _option("cache_gb")] = _FIELDS["cache_gb"].default,
    resume: Annotated[bool, _option("resume")] = False,
    overwrite: Annotated[bool, _option("overwrite")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, say what the run will take, stop.")] = False,
) -> None:
    """Train a model on a shard set: the loss counts its trained tokens and nothing else.

    Example: sftprep train packed --model SmolLM2-135M-Instruct --out tuned --epochs 1 --lr 2e-5

    Example: sftprep train packed --model base --out tuned --eval tone --eval-every 50 --stop-early pass-rate
    """
    _start(dict(locals()))


def _start(options: dict[str, Any]) -> None:
    is_dry = options.pop("dry_run")
    given = {name: _plain(value) for name, value in options.items() if value is not None}
    names = {"eval_suites": "--eval", "compile_layers": "--compile"}
    config = read_config(TrainConfig, given, command="train", names=names)
    require_extra("train", ["torch", "transformers"], what="training")
    with importing():
        # torch and transformers take seconds to import, which `sftprep --help` must not wait for.
        from sftprep.train.imports import without_detours

        with without_detours():
            from sftprep.train.estimate import rehearse  # as above
            from sftprep.train.run import train as run

    if is_dry:
        rehearse(config)
    else:
        run(config, watcher=_watcher(config))


def _watcher(config: TrainConfig) -> Watcher | None:
    """Who lets the model answer the suites of --eval between steps."""
    if not config.eval_suites:
        return None
    # Evaluation imports polars and more, for which a run without suites has no use.
    from sftprep.evaluate.watch import watcher

    return watcher(config)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value
