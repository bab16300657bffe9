"""`sftprep train`: a shard set and a model in, a trained model out.

from sftprep.config.train import TrainConfig
from sftprep.train.run import train

train(TrainConfig(data="packed", model="SmolLM2", out="tuned")).nll[-1]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from sftprep.config.train import TrainConfig
from sftprep.errors import ShardError, TrainError
from sftprep.reports.loss_curve import write_loss_curve
from sftprep.shards.read import Scalars, ShardSet, open_shard_set
from sftprep.train import attention, lora
from sftprep.train.checkpoint import (
    Position,
    Workspace,
    load_checkpoint,
    open_workspace,
    publish,
    save_checkpoint,
    save_model,
    writing,
)
from sftprep.train.device import choose_device
from sftprep.train.forward import find_head
from sftprep.train.loop import Feed, Trainee, run_steps
from sftprep.train.model import ModelPlace, check_fit, check_lengths, load, locate
from sftprep.train.optim import build_optimizer
from sftprep.train.progress import Reporter, show_counts
from sftprep.train.rows import RowReader
from sftprep.train.selftest import check_rows, check_segments, probe_documents
from sftprep.train.stream import Layout, Row, Schedule

_PROBE_ROWS = 8
"""Rows of the set that the self-test may choose its documents from."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run did. `nll` is nats a trained token of each step, also of those before a resumption skipped."""

    out: Path
    num_steps: int
    num_tokens: int
    num_trained: int
    seconds: float
    layout: str
    nll: tuple[float, ...]


def train(config: TrainConfig, *, console: Console | None = None) -> TrainResult:
    """Train, and publish the model at `config.out`. What cannot be trained exactly is refused before the first step.

    Raises:
        UsageError, ShardError, TrainError.
    """
    console = console or Console(stderr=True)
    device, dtype = choose_device(config)
    shards = open_shard_set(config.data)
    shards.verify()
    scalars = _checked_scalars(shards)
    place = locate(config.model)
    check_fit(place, shards.manifest)
    workspace = open_workspace(config)
    try:
        return _train(
            config, shards=shards, scalars=scalars, workspace=workspace, where=_Where(place, device, dtype, console)
        )
    except KeyboardInterrupt:
        console.print(_interruption(workspace), markup=False, soft_wrap=True)
        raise
    finally:
        if workspace.directory.exists() and not workspace.checkpoints():
            workspace.discard()


@dataclass(frozen=True, slots=True)
class _Where:
    place: ModelPlace
    device: torch.device
    dtype: torch.dtype
    console: Console


def _train(
    config: TrainConfig, *, shards: ShardSet, scalars: Scalars, workspace: Workspace, where: _Where
) -> TrainResult:
    _quieten()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    resumed = workspace.checkpoints()[-1] if config.resume else None
    model = _model(config, shards=shards, where=where, resumed=resumed)
    reader = RowReader(shards)
    trainee = _trainee(config, model=model, shards=shards, reader=reader, where=where)
    schedule = Schedule(num_rows=shards.num_rows, rows_per_step=config.rows_per_step, seed=config.seed)
    feed = Feed(
        reader=reader,
        schedule=schedule,
        scalars=scalars,
        manifest=shards.manifest,
        num_steps=schedule.num_steps(epochs=config.epochs, max_steps=config.max_steps),
    )
    start = Position(0, 0, config.seed, config.rows_per_step, shards.manifest.fingerprint)
    if resumed is not None:
        start = load_checkpoint(resumed, trainee.optimizer, wanted=start, device=where.device)
    show_counts(shards.manifest.counts, where.console)
    result = _steps(trainee, feed, start=start, config=config, edges=_Edges(shards, workspace, where.console))
    _publish(trainee, result, config=config, shards=shards, workspace=workspace)
    where.console.print(f"the model is in {config.out}; its loss curve: {config.out / 'loss.html'}", soft_wrap=True)
    return result


@dataclass(frozen=True, slots=True)
class _Edges:
    shards: ShardSet
    workspace: Workspace
    console: Console


def _steps(trainee: Trainee, feed: Feed, *, start: Position, config: TrainConfig, edges: _Edges) -> TrainResult:
    epoch, steps = feed.schedule.steps_per_epoch, feed.num_steps
    edges.console.print(
        f"{steps} steps of {feed.schedule.rows_per_step} rows ({epoch} an epoch); loss: mean over trained tokens",
        soft_wrap=True,
    )
    records = []
    reporter = Reporter(
        edges.workspace.metrics,
        num_steps=steps,
        first_step=start.step,
        log_every=config.log_every,
        console=edges.console,
    )
    with reporter:
        for record, position in run_steps(trainee, feed, start=start, config=config):
            reporter.step(record)
            records.append(record)
            if config.save_every and position.step % config.save_every == 0 and position.step < steps:
                save_checkpoint(
                    edges.workspace,
                    trainee.model,
                    optimizer=trainee.optimizer,
                    position=position,
                    shards=edges.shards,
                )
    return TrainResult(
        out=config.out,
        num_steps=steps,
        num_tokens=sum(record.num_tokens for record in records),
        num_trained=sum(record.num_trained for record in records),
        seconds=sum(record.seconds for record in records),
        layout=str(trainee.layout),
        nll=tuple(record.nll for record in records if not record.skipped),
    )


def _publish(
    trainee: Trainee, result: TrainResult, *, config: TrainConfig, shards: ShardSet, workspace: Workspace
) -> None:
    if not result.nll:
        raise TrainError(
            "no trained token has weight: nothing was trained",
            code="nothing-trained",
            place=str(config.data),
            hint="sftprep audit shows why",
        )
    with writing(workspace.directory):
        save_model(trainee.model, workspace.directory, shards=shards)
        if config.lora_rank and not config.lora_embeddings:
            lora.save_adapter(trainee.model, workspace.directory / lora.ADAPTER_DIRECTORY, config=config)
        write_loss_curve(workspace.metrics, workspace.directory / "loss.html", title=f"Training of {config.model}")
    report: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "fingerprint": shards.manifest.fingerprint,
        "num_steps": result.num_steps,
        "num_tokens": result.num_tokens,
        "num_trained": result.num_trained,
        "seconds": result.seconds,
        "layout": result.layout,
        "versions": {"torch": torch.__version__},
    }
    publish(workspace, report=report)


def _model(config: TrainConfig, *, shards: ShardSet, where: _Where, resumed: Path | None) -> PreTrainedModel:
    if config.lora_rank:
        # Frozen weights need no float32 master.
        model = load(where.place, config, dtype=where.dtype)
        if not config.lora_embeddings:
            lora.check_tokens(model, shards)
        lora.adapt(model, config)
        if resumed is not None:
            lora.restore_trainable(model, resumed)
    elif resumed is None:
        model = load(where.place, config)
    else:
        whole = config.model_copy(update={"init": "pretrained"})
        model = load(ModelPlace(name=str(resumed), directory=resumed, gguf=None), whole)
    check_lengths(model, shards.manifest)
    model.config.use_cache = False
    return model.to(where.device)


def _trainee(
    config: TrainConfig, *, model: PreTrainedModel, shards: ShardSet, reader: RowReader, where: _Where
) -> Trainee:
    # First, while the model still has its own attention: ours refuses to run without segments.
    head = find_head(model)
    probes = [reader.row(index) for index in range(min(_PROBE_ROWS, shards.num_rows))]
    with torch.autocast(where.device.type, dtype=torch.bfloat16, enabled=where.dtype is torch.bfloat16):
        layout = _layout(config, model=model, probes=probes, shards=shards, where=where)
    if head is None:
        where.console.print("this model's head has a form of its own: its full logits are computed", soft_wrap=True)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Trainee(
        model=model,
        optimizer=build_optimizer(model, config),
        head=head,
        layout=layout,
        device=where.device,
        dtype=where.dtype,
        pad_id=shards.manifest.model.pad_id,
    )


def _layout(
    config: TrainConfig, *, model: PreTrainedModel, probes: list[Row], shards: ShardSet, where: _Where
) -> Layout:
    """How rows are batched, after a test on the real model; packed rows stay packed only where that is proven."""
    window = getattr(model.config.get_text_config(), "sliding_window", None) or 0
    documents = probe_documents(probes, window=window)
    if not documents:
        raise ShardError("no row has two tokens to train on", code="nothing-to-train", place=str(shards.directory))
    if shards.manifest.packing and config.attention != "unpack":
        attention.register()
        verdict = check_segments(model, documents, dtype=where.dtype)
        if verdict.isolated:
            where.console.print(
                f"self-test: packed documents do not see each other (logits differ by {verdict.difference:.1e} "
                f"standard deviations from a document's own, move by {verdict.moved:.1e})",
                soft_wrap=True,
            )
            return Layout.SEGMENTS
        if config.attention == "segments":
            raise TrainError(verdict.reason, code="not-isolated", place=config.model, hint="use --attention auto")
        where.console.print(
            f"self-test: {verdict.reason}; each document is trained in a row of its own", soft_wrap=True
        )
    check_rows(model, documents, dtype=where.dtype, pad_id=shards.manifest.model.pad_id)
    return Layout.UNPACKED if shards.manifest.packing else Layout.PADDED


def _checked_scalars(shards: ShardSet) -> Scalars:
    scalars, counts = shards.scalars(), shards.manifest.counts
    for name, found, wanted in (
        ("rows", shards.num_rows, counts.num_packs),
        ("tokens", int(scalars.num_tokens.sum()), counts.num_tokens),
        ("trained tokens", int(scalars.num_trained.sum()), counts.num_trained),
    ):
        if found != wanted:
            raise ShardError(
                f"the shards hold {found} {name}, the manifest says {wanted}",
                code="shard-count",
                place=str(shards.directory),
                hint="copy the set again, or write it again with sftprep pack",
            )
    if not np.isclose(scalars.weight_sum.sum(), counts.weight_sum):
        raise ShardError(
            "the shards' weights do not sum to the manifest's", code="shard-count", place=str(shards.directory)
        )
    return scalars


def _interruption(workspace: Workspace) -> str:
    found = workspace.checkpoints()
    if found:
        return f"interrupted; go on from {found[-1].name} with --resume"
    return "interrupted; there was no checkpoint, so nothing is left (--save-every writes some)"


def _quieten() -> None:
    """Transformers' own bars and notices would cross ours."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
