"""`sftprep train`: a shard set and a model in, a trained model out.

from sftprep.config.train import TrainConfig
from sftprep.train.run import train

train(TrainConfig(data="packed", model="SmolLM2", out="tuned")).nll[-1]
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from sftprep.config.train import TrainConfig
from sftprep.errors import OutputError, StoppedError, TrainError
from sftprep.reports.console import terminal_console
from sftprep.reports.wording import counted
from sftprep.shards.claim import OutputClaim
from sftprep.shards.read import ShardSet
from sftprep.train.checkpoint import (
    Position,
    Workspace,
    load_checkpoint,
    open_workspace,
    prune_checkpoints,
    publish,
    save_checkpoint,
    whole_weights,
)
from sftprep.train.distributed import World, joined
from sftprep.train.heldout import open_held_out
from sftprep.train.loggers import Logger, open_loggers
from sftprep.train.loop import Feed, Trainee, run_steps
from sftprep.train.measure import Measures, check_metrics, end_lines, ends_early, first_position, measure
from sftprep.train.optimizer_state import State
from sftprep.train.outcome import outcome_step, write_best_outcome, write_outcome
from sftprep.train.progress import Reporter, show_counts
from sftprep.train.proof import forget
from sftprep.train.samples import Watcher
from sftprep.train.setup import Where, build, open_all
from sftprep.train.shard_cache import ReadAhead
from sftprep.train.signals import StopRequest
from sftprep.train.terms import adapter_terms, changed_options, model_terms

_MEANS: Final = {"token": "trained tokens", "sample": "documents", "turn": "trained messages"}


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run did. `nll` is nats a trained token of each step, also of those before a resumption skipped.

    `model_step` is the step whose model is in `out`.
    """

    out: Path
    num_steps: int
    model_step: int
    num_tokens: int
    num_trained: int
    seconds: float
    layout: str
    nll: tuple[float, ...]


def train(config: TrainConfig, *, console: Console | None = None, watcher: Watcher | None = None) -> TrainResult:
    """Train, and publish the model at `config.out`. What cannot be trained exactly is refused before the first step.

    `watcher` lets the model answer between steps. Under `torchrun` all processes call this, and each returns the same.

    Raises:
        UsageError, ShardError, TrainError, StoppedError.
    """
    with joined() as world:
        shown = console or terminal_console(stderr=True)
        console = shown if world.rank == 0 else Console(quiet=True)
        return _train_among(config, watcher, world=world, console=console)


def _train_among(config: TrainConfig, watcher: Watcher | None, *, world: World, console: Console) -> TrainResult:
    check_metrics(config, watcher)
    shards, where = open_all(config, world=world, console=console)
    measures = Measures(open_held_out(config, trained=shards.manifest), watcher)
    with ExitStack() as held:
        workspace = world.on_first(lambda: _claimed(config, held, console=console))
        try:
            return _train(config, shards=shards, measures=measures, workspace=workspace, where=where)
        except KeyboardInterrupt:
            console.print(_interruption(workspace), markup=False, soft_wrap=True)
            raise
        finally:
            if world.rank == 0 and workspace.directory.exists() and not workspace.checkpoints():
                workspace.discard()


def _claimed(config: TrainConfig, held: ExitStack, *, console: Console) -> Workspace:
    """The run's directory, which no other run may take while this process lives. OutputError `output-busy`."""
    try:
        held.enter_context(OutputClaim(config.out))
    except OutputError as error:
        # Some file systems of clusters have no locks, and a run there is still a run.
        if error.code != "output-not-lockable":
            raise
        console.print(f"{error.message}: start no second run there", soft_wrap=True)
    return open_workspace(config)


def _train(
    config: TrainConfig, *, shards: ShardSet, measures: Measures, workspace: Workspace, where: Where
) -> TrainResult:
    resumed = where.world.on_first(lambda: workspace.checkpoints()[-1]) if config.resume else None
    trainee, feed = build(config, shards=shards, where=where, resumed=resumed)
    where.world.on_first(lambda: where.proof.write(workspace.directory))
    start = replace(
        first_position(config, fingerprint=shards.manifest.fingerprint),
        model=where.world.on_first(lambda: model_terms(config, where.place)),
        adapter=adapter_terms(config, dtype=where.dtype),
    )
    if resumed is not None:
        found = load_checkpoint(resumed, _state(trainee), wanted=start)
        for line in changed_options(found.options, config):
            where.console.print(line, soft_wrap=True)
        start = replace(found, options=start.options)
    show_counts(shards.manifest.counts, where.console)
    edges = _Edges(shards, measures, workspace, where.console)
    result = _steps(trainee, feed, start=start, config=config, edges=edges)
    _publish(trainee, result, config=config, edges=edges)
    where.console.print(f"the model is in {config.out}; its loss curve: {config.out / 'loss.html'}", soft_wrap=True)
    return result


@dataclass(frozen=True, slots=True)
class _Edges:
    shards: ShardSet
    measures: Measures
    workspace: Workspace
    console: Console


def _steps(trainee: Trainee, feed: Feed, *, start: Position, config: TrainConfig, edges: _Edges) -> TrainResult:
    epoch, steps = feed.schedule.steps_per_epoch, feed.num_steps
    edges.console.print(
        f"{counted(steps, 'step')} of {counted(feed.schedule.rows_per_step, 'row')} ({epoch} an epoch); "
        f"loss: mean over {_MEANS[config.loss]}",
        soft_wrap=True,
    )
    records, position = [], start
    reporting = {"num_steps": steps, "first_step": start.step, "log_every": config.log_every}
    with (
        # First: who sees the metrics file may send the signal.
        StopRequest() as stop,
        ReadAhead(edges.shards, feed.schedule, step=start.step) as coming,
        Reporter(
            _loggers(trainee.world, start=start, config=config, edges=edges), console=edges.console, **reporting
        ) as reporter,
    ):
        for stepped, reached in run_steps(trainee, feed, start=start, config=config):
            # The generator knows nothing of measurements.
            now = replace(position, step=reached.step, epoch_trained=reached.epoch_trained)
            record, position = measure(
                trainee, (stepped, now), last=now.step == steps, config=config, measures=edges.measures
            )
            reporter.step(record)
            coming.at(position.step)
            records.append(record)
            is_last = position.step == steps or ends_early(position, config)
            stopping = bool(trainee.world.largest(int(stop.wanted))) and not is_last
            if stopping or _save_due(position, steps=steps, config=config):
                _save(trainee, position, config=config, edges=edges)
            if stopping:
                raise _stopped(position)
            if is_last:
                break
    for line in end_lines(position, steps=steps, config=config):
        edges.console.print(line, soft_wrap=True)
    if not start.step and all(record.skipped for record in records):
        raise TrainError(
            "no trained token has weight: nothing was trained",
            code="nothing-trained",
            place=str(config.data),
            hint="sftprep audit shows why",
        )
    return TrainResult(
        out=config.out,
        num_steps=position.step,
        model_step=outcome_step(position, config),
        num_tokens=sum(record.num_tokens for record in records),
        num_trained=sum(record.num_trained for record in records),
        seconds=sum(record.seconds for record in records),
        layout=str(trainee.layout),
        nll=tuple(record.nll for record in records if not record.skipped),
    )


def _loggers(world: World, *, start: Position, config: TrainConfig, edges: _Edges) -> list[Logger]:
    """The first process's loggers, the others' none; where one does not open, all processes say so."""
    opened: list[Logger] = []
    world.on_first(lambda: opened.extend(open_loggers(config, metrics=edges.workspace.metrics, first_step=start.step)))
    return opened


def _save_due(position: Position, *, steps: int, config: TrainConfig) -> bool:
    best = position.best_step == position.step
    regular = config.save_every is not None and position.step % config.save_every == 0 and position.step < steps
    return best or regular


def _save(trainee: Trainee, position: Position, *, config: TrainConfig, edges: _Edges) -> None:
    save_checkpoint(edges.workspace, _state(trainee), position=position, shards=edges.shards)
    if trainee.world.rank == 0:
        prune_checkpoints(edges.workspace, keep_last=config.keep_last, best_step=position.best_step)


def _state(trainee: Trainee) -> State:
    return State(trainee.model, trainee.optimizer, trainee.world)


def _publish(trainee: Trainee, result: TrainResult, *, config: TrainConfig, edges: _Edges) -> None:
    is_last = result.model_step == result.num_steps
    weights = whole_weights(_state(trainee)) if is_last else None
    report: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "fingerprint": edges.shards.manifest.fingerprint,
        "num_steps": result.num_steps,
        "model_step": result.model_step,
        "num_tokens": result.num_tokens,
        "num_trained": result.num_trained,
        "seconds": result.seconds,
        "layout": result.layout,
        "num_processes": trainee.world.size,
        "versions": {"torch": torch.__version__},
    }

    def write() -> None:
        model, workspace = trainee.model, edges.workspace
        forget(workspace.directory)
        if is_last:
            write_outcome(model, workspace, shards=edges.shards, config=config, weights=weights)
        else:
            write_best_outcome(model, workspace, step=result.model_step, config=config)
        publish(edges.workspace, report=report)

    trainee.world.on_first(write)


def _stopped(position: Position) -> StoppedError:
    return StoppedError(
        f"asked to stop after step {position.step}; it is saved",
        code="terminated",
        hint="the same command with --resume goes on",
    )


def _interruption(workspace: Workspace) -> str:
    found = workspace.checkpoints()
    if found:
        return f"interrupted; go on from {found[-1].name} with --resume"
    return "interrupted; there was no checkpoint, so nothing is left (--save-every writes some)"
