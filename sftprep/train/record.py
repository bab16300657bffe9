"""What a step tells: one line of metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass

from sftprep.train.samples import ShownAnswer


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One line of metrics.jsonl, over all processes. `loss` is weighted, `nll` is nats a trained token; both are means.

    `skipped`: no trained token of the step has weight, so nothing was changed; `loss` and `nll` are then 0.
    `nll_by_source` and `trained_by_source` tell the trained tokens apart by the source that they came from,
    `nll_by_tag` and `trained_by_tag` by what their rows say under the key of `--tag`, where one is named.
    `eval_nll` is nats a trained token of the held-out set after the step, `eval_scores` and `eval_answers` are of
    the suites' sample, where they were measured. `flops` are the
    operations that the step needs (see `flops.py`), `mfu` their share of what the devices could do in the time: None
    where that is not known. `peak_bytes` is the most memory that this process has held so far, on its device.
    """

    step: int
    epoch: float
    loss: float
    nll: float
    lr: float
    grad_norm: float
    num_tokens: int
    num_trained: int
    seconds: float
    skipped: bool
    nll_by_source: dict[str, float]
    trained_by_source: dict[str, int]
    nll_by_tag: dict[str, float] | None = None
    trained_by_tag: dict[str, int] | None = None
    eval_nll: float | None = None
    eval_scores: dict[str, float] | None = None
    eval_answers: tuple[ShownAnswer, ...] | None = None
    flops: float | None = None
    mfu: float | None = None
    peak_bytes: int = 0
