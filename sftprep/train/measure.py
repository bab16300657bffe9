"""What is measured between steps, and what a run does with it: the best step is kept, a run that gets no better ends.

Nothing of a measurement may reach training: the model's mode, attention and settings and all random numbers are
afterwards what they were before, so a run with measurements ends in the same bytes as one without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from transformers import GenerationConfig

from sftprep.config.train import TrainConfig
from sftprep.errors import UsageError
from sftprep.train.attention import ATTENTION_NAME
from sftprep.train.checkpoint import Position, Workspace
from sftprep.train.device import named_memory_failures
from sftprep.train.distributed import fsdp_parts
from sftprep.train.heldout import HeldOut, held_out_nll
from sftprep.train.loop import Trainee
from sftprep.train.record import StepRecord
from sftprep.train.samples import Sample, Watcher
from sftprep.train.terms import free_options

HELD_OUT = "nll"
"""The metric of `--eval-shards`; all others are a watcher's."""
_LOWER_IS_BETTER = (HELD_OUT, "repetition")


@dataclass(frozen=True, slots=True)
class Measures:
    """What a run measures."""

    held: HeldOut | None
    watcher: Watcher | None


def check_metrics(config: TrainConfig, watcher: Watcher | None) -> None:
    """What `--keep-best` and `--stop-early` name is measured, and `--eval` has somebody who asks.

    Raises:
        UsageError: `bad-option`.
    """
    if config.eval_suites and watcher is None:
        raise UsageError(
            "--eval needs a watcher, and train was called without one",
            code="bad-option",
            hint="from Python: train(config, watcher=sftprep.evaluate.watch.watcher(config))",
        )
    known = sorted((watcher.metrics if watcher else frozenset()) | ({HELD_OUT} if config.eval_shards else set()))
    for option, metric in (("--keep-best", config.keep_best), ("--stop-early", config.stop_early)):
        if metric is not None and metric not in known:
            raise UsageError(
                f"{option} {metric}: nothing measures it",
                code="bad-option",
                hint=f"measured are: {', '.join(known)}" if known else "give --eval-shards or --eval",
            )


def _kept_metric(config: TrainConfig) -> str:
    """The metric whose best step is kept: the held-out loss unless another is named, none where nothing is measured."""
    return config.keep_best or (HELD_OUT if config.eval_shards else "")


def first_position(config: TrainConfig, *, fingerprint: str) -> Position:
    """Where a run on a shard set begins, and what its options say that a checkpoint must agree with."""
    return Position(
        step=0,
        epoch_trained=0,
        seed=config.seed,
        rows_per_step=config.rows_per_step,
        fingerprint=fingerprint,
        loss=config.loss,
        keep_best=_kept_metric(config),
        stop_early=config.stop_early or "",
        options=free_options(config),
    )


def measure(
    trainee: Trainee, done: tuple[StepRecord, Position], *, last: bool, config: TrainConfig, measures: Measures
) -> tuple[StepRecord, Position]:
    """The step with what was measured after it, where that is due, and the position, which remembers the best step."""
    record, position = done
    if measures == Measures(None, None) or not (last or position.step % config.eval_every == 0):
        return record, position
    nll = None if measures.held is None else held_out_nll(trainee, measures.held, batch_size=config.batch_size)
    sample = None if measures.watcher is None else _sampled(trainee, measures.watcher)
    scores = {} if sample is None else sample.scores
    found = scores | ({} if nll is None else {HELD_OUT: nll})
    record = replace(
        record, eval_nll=nll, eval_scores=scores or None, eval_answers=None if sample is None else sample.answers
    )
    return record, _judged(position, found, config=config)


def ends_early(position: Position, config: TrainConfig) -> bool:
    """Whether the metric of `--stop-early` was not better in the last `--patience` measurements."""
    return config.stop_early is not None and position.num_worse >= config.patience


def end_lines(position: Position, *, steps: int, config: TrainConfig) -> Iterator[str]:
    """What there is to say of a run's measurements at its end."""
    if position.step < steps:
        yield (
            f"ended early after step {position.step} of {steps}: the last {position.num_worse} measurements did not "
            f"better {config.stop_early}"
        )
    if position.best_step:
        kept = Workspace(config.out).checkpoint(position.best_step).name
        place = config.out if config.keep_best else config.out / "checkpoints" / kept
        yield f"best by {position.keep_best}: step {position.best_step}, in {place}"


def _judged(position: Position, found: dict[str, float], *, config: TrainConfig) -> Position:
    kept, stop = _kept_metric(config), config.stop_early
    if kept and (cost := _cost(kept, found[kept])) < position.best_cost:
        position = replace(position, best_step=position.step, best_cost=cost)
    if stop is None:
        return position
    cost = _cost(stop, found[stop])
    better = cost < position.stop_cost
    return replace(position, stop_cost=min(cost, position.stop_cost), num_worse=0 if better else position.num_worse + 1)


def _cost(metric: str, value: float) -> float:
    """Lower is better; a value that is not finite is never the best."""
    if not math.isfinite(value):
        return math.inf
    return value if metric.partition(".")[0] in _LOWER_IS_BETTER else -value


def _sampled(trainee: Trainee, watcher: Watcher) -> Sample:
    with _answering(trainee), named_memory_failures("the answers of --eval"):
        sample = watcher.ask(trainee.model)
    # All processes judge the same numbers, or some would stop where others go on.
    return trainee.world.on_first(lambda: sample)


@contextmanager
def _answering(trainee: Trainee) -> Iterator[None]:
    """The model as it answers: without dropout, padded, with a cache; then again as it trains."""
    model = trainee.model
    attention, settings, was_training = model.config._attn_implementation, model.generation_config, model.training
    devices = [trainee.device] if trainee.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        # Compiled layers are compiled for the shapes of training: answers would compile them anew at every token.
        torch.compiler.set_stance("force_eager"),
        torch.autocast(trainee.device.type, dtype=torch.bfloat16, enabled=trainee.dtype is torch.bfloat16),
    ):
        model.eval()
        # Ours has no cache and no padding. The model's own settings may ask for penalties and samples.
        if attention == ATTENTION_NAME:
            model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
        model.generation_config = GenerationConfig()
        try:
            yield
        finally:
            model.generation_config = settings
            if attention == ATTENTION_NAME:
                model.set_attn_implementation(attention)
            model.train(was_training)
            for part in fsdp_parts(model):
                part.reshard()
