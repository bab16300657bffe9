"""Held-out losses to records: by category, and paired with the baseline's by document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import methodcaller
from pathlib import Path

from sftprep.evaluate.likelihood import DocumentLoss, HeldOutLoss, LossSum
from sftprep.evaluate.statistics import Interval, paired_bootstrap
from sftprep.reports.evaluate_json import LikelihoodRecord, LossChange, LossRecord


def likelihood_record(directory: Path, new: HeldOutLoss, old: HeldOutLoss | None, *, seed: int) -> LikelihoodRecord:
    """The losses of the set and of its categories; with a baseline's, what changed and the interval of it."""

    def record(of: Callable[[DocumentLoss], LossSum]) -> LossRecord:
        others = None if old is None else [of(document) for document in old.documents]
        return _loss_record([of(document) for document in new.documents], others, seed=seed)

    total = record(lambda document: document.total)
    change = total.change
    return LikelihoodRecord(
        directory=str(directory),
        num_documents=len(new.documents),
        total=total,
        categories={name: record(methodcaller("category", name)) for name in new.categories},
        baseline=None if old is None else _loss_record([document.total for document in old.documents], None, seed=seed),
        difference=None if change is None else change.difference,
        low=None if change is None else change.low,
        high=None if change is None else change.high,
        unread=list(new.unread),
    )


def _loss_record(losses: Sequence[LossSum], others: Sequence[LossSum] | None, *, seed: int) -> LossRecord:
    total = LossSum.of(losses)
    change = None
    if others is not None:
        change = _change(losses, others, seed=seed)
    return LossRecord(
        num_tokens=total.num_tokens,
        num_bytes=total.num_bytes,
        nats=total.nats,
        per_token=total.nats / total.num_tokens,
        per_byte=total.nats / total.num_bytes if total.num_bytes else None,
        change=change,
    )


def _change(losses: Sequence[LossSum], others: Sequence[LossSum], *, seed: int) -> LossChange:
    """By the documents that have the category."""
    pairs = [(own, other) for own, other in zip(losses, others, strict=True) if own.num_tokens]
    mean = sum(own.num_tokens for own, _ in pairs) / len(pairs)
    # Each document's nats over the mean document's tokens: the mean of these is the difference per token.
    changes = [(own.nats - other.nats) / mean for own, other in pairs]
    interval: Interval = paired_bootstrap(changes, seed=seed)
    return LossChange(
        baseline=sum(other.nats for _, other in pairs) / sum(other.num_tokens for _, other in pairs),
        difference=sum(changes) / len(changes),
        low=interval.low,
        high=interval.high,
    )
