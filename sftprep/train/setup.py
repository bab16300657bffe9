"""Everything that a run checks and builds before its first step: shards, model, layout, optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from rich.console import Console
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from sftprep.config.train import TrainConfig
from sftprep.errors import ShardError, TrainError
from sftprep.shards.read import Scalars, ShardSet
from sftprep.train import attention, lora
from sftprep.train.checkpoint import Workspace, reading
from sftprep.train.compiled import check_compiled, compile_layers
from sftprep.train.device import choose_device, named_memory_failures, set_up_torch
from sftprep.train.distributed import World, split_model
from sftprep.train.forward import find_head
from sftprep.train.loggers import check_loggers
from sftprep.train.loop import Feed, Trainee, check_ids
from sftprep.train.model import ModelPlace, check_carried, check_fit, check_lengths, load, locate
from sftprep.train.optim import build_optimizer
from sftprep.train.proof import Proof, ground_of_fit, ground_of_isolation
from sftprep.train.recompute import recompute_activations
from sftprep.train.rows import RowReader
from sftprep.train.selftest import Verdict, check_rows, check_segments, probe_documents, shortened
from sftprep.train.shard_cache import open_set
from sftprep.train.stream import Layout, Row, Schedule
from sftprep.train.tags import read_tags

_PROBE_ROWS: Final = 8
"""Rows of the set that the self-test may choose its documents from."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where a run computes, which model it takes, where it talks, and beside which processes."""

    place: ModelPlace
    device: torch.device
    dtype: torch.dtype
    console: Console
    world: World
    proof: Proof = field(default_factory=Proof)


def open_all(config: TrainConfig, *, world: World, console: Console) -> tuple[ShardSet, Where]:
    """The verified shards, and a model that fits them.

    Raises:
        UsageError, ModelFilesError, ShardError.
    """
    device, dtype = choose_device(config)
    check_loggers(config)
    shards = open_set(config.data, config)
    where = Where(locate(config.model), device, dtype, console, world, _proven(config))
    carried = shards.directory / "model"
    ground = [ground_of_fit(directory, shards.manifest) for directory in (where.place.directory, carried)]
    if not where.proof.knows("fit", " ".join(ground)):
        if ground[0] != ground[1]:  # else it is the same bytes
            check_fit(where.place, shards.manifest)
        check_carried(carried, shards.manifest)
    where.proof.now["fit"] = " ".join(ground)
    return shards, where


def _proven(config: TrainConfig) -> Proof:
    return Proof.of(Workspace(config.out).directory) if config.resume else Proof()


def build(config: TrainConfig, *, shards: ShardSet, where: Where, resumed: Path | None) -> tuple[Trainee, Feed]:
    """The model ready to be trained, and its rows; all that a run, or its rehearsal, steps through.

    Raises:
        ModelFilesError, ShardError, TrainError, UsageError.
    """
    _quieten()
    set_up_torch(config)
    tags = where.world.on_first(lambda: read_tags(shards.manifest, config.tag))
    reader = RowReader(shards, with_messages=config.loss == "turn", tags=tags)
    with named_memory_failures("before the first step"):
        model = build_model(config, shards=shards, where=where, resumed=resumed)
        trainee = build_trainee(config, model=model, shards=shards, reader=reader, where=where)
    return trainee, _feed(config, shards=shards, reader=reader)


def build_model(config: TrainConfig, *, shards: ShardSet, where: Where, resumed: Path | None) -> PreTrainedModel:
    """The model to train, from its own files or from a checkpoint; no document is too long for it.

    Raises:
        ModelFilesError, ShardError, TrainError, UsageError.
    """
    if config.lora_rank:
        # Frozen weights need no float32 master.
        model = load(where.place, config, dtype=where.dtype)
        if not config.lora_embeddings:
            lora.check_tokens(model, shards)
        lora.adapt(model, config)
        if resumed is not None:
            with reading(resumed):
                lora.restore_trainable(model, resumed)
    elif resumed is None:
        model = load(where.place, config)
    else:
        whole = config.model_copy(update={"init": "pretrained"})
        with reading(resumed):
            model = load(ModelPlace(name=str(resumed), directory=resumed, gguf=None), whole)
    check_lengths(model, shards.manifest)
    model.config.use_cache = False
    return model.to(where.device)


def build_trainee(
    config: TrainConfig, *, model: PreTrainedModel, shards: ShardSet, reader: RowReader, where: Where
) -> Trainee:
    """The model with its optimizer and the layout that it is proven to keep documents apart in; split where need be.

    Raises:
        ShardError: `nothing-to-train`.
        TrainError: `id-out-of-range`, `not-finite`, `not-isolated`, `no-layers`, `compile-unsupported`,
            `compile-differs`, `compile-failed`.
    """
    # First, while the model still has its own attention: ours refuses to run without segments.
    head = find_head(model)
    probes = [reader.row(index) for index in range(min(_PROBE_ROWS, shards.num_rows))]
    check_ids(probes, model)
    with torch.autocast(where.device.type, dtype=torch.bfloat16, enabled=where.dtype is torch.bfloat16):
        layout = _layout(config, model=model, probes=probes, shards=shards, where=where)
    if head is None:
        where.console.print("this model's head has a form of its own: its full logits are computed", soft_wrap=True)
    _rebuild_layers(config, model=model, layout=layout)
    if head is not None and config.compile_layers and where.device.type == "cuda":
        head = head.fused()
    split_model(model, device=where.device, world=where.world)
    trainee = Trainee(
        model=model,
        optimizer=build_optimizer(model, config),
        head=head,
        layout=layout,
        device=where.device,
        dtype=where.dtype,
        pad_id=shards.manifest.model.pad_id,
        world=where.world,
        num_sources=max(1, len(shards.manifest.sources)) * max(1, len(reader.tags.names)),
        pack_length=shards.manifest.max_length * config.batch_size if config.compile_layers else 0,
    )
    if config.compile_layers:
        difference = check_compiled(trainee, probe_documents(probes))
        where.console.print(f"compiled: losses differ by {difference:.1e} nats from the model's own", soft_wrap=True)
    return trainee


def _rebuild_layers(config: TrainConfig, *, model: PreTrainedModel, layout: Layout) -> None:
    kept = config.keep_products or config.keep_narrow
    if config.gradient_checkpointing or kept:
        recompute_activations(model, keep_products=kept, but_wide=config.keep_narrow)
    if not config.compile_layers:
        return
    if layout is not Layout.SEGMENTS:
        raise TrainError(
            "only packed rows that stay packed can be compiled: others have many shapes",
            code="compile-unsupported",
            place=config.model,
            hint="leave out --compile",
        )
    compile_layers(model)


def _layout(
    config: TrainConfig, *, model: PreTrainedModel, probes: list[Row], shards: ShardSet, where: Where
) -> Layout:
    """How rows are batched, after a test on the real model; packed rows stay packed only where that is proven."""
    window = getattr(model.config.get_text_config(), "sliding_window", None) or 0
    documents = probe_documents(probes, window=window)
    if not documents:
        raise ShardError("no row has two tokens to train on", code="nothing-to-train", place=str(shards.place))
    if shards.manifest.packing and config.attention != "unpack":
        attention.register()
        verdict = _verdict(config, model=model, documents=documents, where=where)
        if verdict.isolated:
            where.console.print(
                f"self-test: packed documents do not see each other (logits differ by {verdict.difference:.1e} "
                f"standard deviations from a document's own, move by {verdict.moved:.1e}; "
                f"{verdict.num_tokens} tokens)",
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


def _verdict(config: TrainConfig, *, model: PreTrainedModel, documents: list[Row], where: Where) -> Verdict:
    """Whether packed rows may stay packed; on few tokens where that was proven before, unless those say no."""
    options = {"dtype": str(where.dtype), "lora": [config.lora_rank, config.lora_embeddings]}
    ground = ground_of_isolation(model, device=where.device, options=options)
    verdict = None
    if where.proof.knows("isolation", ground):
        verdict = check_segments(model, shortened(documents), dtype=where.dtype)
    if verdict is None or not verdict.isolated:
        verdict = check_segments(model, documents, dtype=where.dtype)
    if verdict.isolated:
        where.proof.now["isolation"] = ground
    return verdict


def _feed(config: TrainConfig, *, shards: ShardSet, reader: RowReader) -> Feed:
    schedule = Schedule(
        num_rows=shards.num_rows,
        rows_per_step=config.rows_per_step,
        seed=config.seed,
        group_rows=reader.group_rows,
        shard_groups=reader.shard_groups,
    )
    return Feed(
        reader=reader,
        schedule=schedule,
        scalars=_checked_scalars(shards),
        manifest=shards.manifest,
        num_steps=schedule.num_steps(epochs=config.epochs, max_steps=config.max_steps),
    )


def _checked_scalars(shards: ShardSet) -> Scalars:
    """The small columns of all rows, after their sums are compared with the manifest.

    Raises:
        ShardError: `shard-count`.
    """
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
                place=str(shards.place),
                hint="copy the set again, or write it again with sftprep pack",
            )
    if not np.isclose(scalars.weight_sum.sum(), counts.weight_sum):
        raise ShardError(
            "the shards' weights do not sum to the manifest's", code="shard-count", place=str(shards.place)
        )
    return scalars


def _quieten() -> None:
    """Transformers' own bars and notices would cross ours."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
