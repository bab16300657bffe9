"""The held-out loss: nats a trained token of another shard set, measured between steps. Likelihood only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from sftprep.config.train import TrainConfig
from sftprep.errors import ShardError
from sftprep.shards.manifest import Manifest, refuse_trained
from sftprep.train.compiled import uncompiled
from sftprep.train.device import named_memory_failures
from sftprep.train.distributed import fsdp_parts
from sftprep.train.forward import to_device, token_loss
from sftprep.train.loop import Trainee, even_batches, local_batches
from sftprep.train.rows import RowReader
from sftprep.train.shard_cache import open_set
from sftprep.train.stream import Layout, MicroBatch


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A shard set that is never trained."""

    reader: RowReader
    num_rows: int
    manifest: Manifest


def open_held_out(config: TrainConfig, *, trained: Manifest) -> HeldOut | None:
    """The set of `--eval-shards`, checked like the trained one; None where none is named.

    Raises:
        ShardError: `eval-differs`: packed with another tokenizer or template; `eval-trained`: a file of it is trained;
            and all that a damaged set raises.
    """
    if config.eval_shards is None:
        return None
    shards = open_set(config.eval_shards, config)
    held, model = shards.manifest.model, trained.model
    if (held.tokenizer_sha256, held.template_sha256) != (model.tokenizer_sha256, model.template_sha256):
        raise ShardError(
            f"the held-out set was packed for another tokenizer or template ({held.name})",
            code="eval-differs",
            place=str(config.eval_shards),
            hint="pack both sets with the model that you train",
        )
    refuse_trained(shards.manifest, trained=trained, place=str(config.eval_shards))
    return HeldOut(RowReader(shards), num_rows=shards.num_rows, manifest=shards.manifest)


@torch.no_grad()
def held_out_nll(trainee: Trainee, held: HeldOut, *, batch_size: int) -> float:
    """Nats a trained token over the whole set: a sum over a sum, so batches and processes do not change it.

    Raises:
        TrainError: `out-of-memory`.
    """
    world = trainee.world
    # Rows of one document fit segments too; our attention refuses to run without them.
    layout = trainee.layout if trainee.layout is Layout.SEGMENTS else Layout.UNPACKED
    reading = replace(trainee, layout=layout, pack_length=0)
    nll = count = 0.0
    trainee.model.eval()
    step = batch_size * world.size
    for start in range(0, held.num_rows, step):
        mine = range(start + world.rank, min(start + step, held.num_rows), world.size)
        rows = [held.reader.row(index) for index in mine]
        for batch in even_batches(reading, local_batches(reading, rows, size=batch_size)):
            with uncompiled(), named_memory_failures("the held-out set"):
                nll += _batch_nll(trainee, batch)
            count += len(batch["targets"])
    trainee.model.train()
    for part in fsdp_parts(trainee.model):
        part.reshard()
    total, targets = world.sums([nll, count])
    return total / max(1.0, targets)


def _batch_nll(trainee: Trainee, batch: MicroBatch) -> float:
    with torch.autocast(trainee.device.type, dtype=torch.bfloat16, enabled=trainee.dtype is torch.bfloat16):
        loss = token_loss(trainee.model, to_device(batch, trainee.device), head=trainee.head, normaliser=1.0)
    return float(np.sum(loss.nll.double().cpu().numpy()))
