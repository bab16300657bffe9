"""What a run shows: a bar on a terminal, plain lines elsewhere; loggers are told the same."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sftprep.data import TRAINED_KINDS, SpanKind
from sftprep.shards.manifest import Counts
from sftprep.train.loggers import Logger
from sftprep.train.record import StepRecord


class Reporter:
    """Takes every step's record; a context manager, because the bar and the loggers must be closed."""

    def __init__(
        self, loggers: Sequence[Logger], *, num_steps: int, first_step: int, log_every: int, console: Console
    ) -> None:
        self._loggers = loggers
        self._num_steps = num_steps
        self._first_step = first_step
        self._log_every = log_every
        self._console = console
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._seconds = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        self._task = self._progress.add_task("", total=self._num_steps, completed=self._first_step, numbers="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        for logger in self._loggers:
            logger.close(failed=error is not None)

    def step(self, record: StepRecord) -> None:
        """Log the record, and show it."""
        for logger in self._loggers:
            logger.step(record)
        self._seconds += record.seconds
        numbers = _numbers(record)
        self._progress.update(self._task, completed=record.step, numbers=numbers)
        due = record.step % self._log_every == 0 or record.step in (self._first_step + 1, self._num_steps)
        if record.skipped or record.eval_nll is not None or (not self._console.is_terminal and due):
            done = record.step - self._first_step
            left = self._seconds / done * (self._num_steps - record.step)
            self._console.print(f"step {record.step}/{self._num_steps} · {numbers} · {left:.0f} s left", soft_wrap=True)


def show_counts(counts: Counts, console: Console) -> None:
    """How many tokens of each kind the run sees, and which it trains, before anything is trained."""
    table = Table(title="What is trained", title_justify="left", box=None)
    for name in ("tokens", "share", "trained", "kind"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    trained = {kind.name.lower() for kind in TRAINED_KINDS}
    for kind in (kind.name.lower() for kind in SpanKind):
        number = counts.tokens_by_kind.get(kind, 0)
        if number:
            share = f"{number / max(1, counts.num_tokens):.1%}"
            table.add_row(f"{number:,}", share, f"{number:,}" if kind in trained else "0", kind)
    share = f"{counts.num_trained / max(1, counts.num_tokens):.1%}"
    table.add_row(f"{counts.num_tokens:,}", "", f"{counts.num_trained:,}", f"all, {share} trained")
    console.print(table)


def _numbers(record: StepRecord) -> str:
    if record.skipped:
        return "skipped: no trained token of this step has weight"
    speed, trained = record.num_tokens / record.seconds, record.num_trained / record.seconds
    held_out = "" if record.eval_nll is None else f" · held out {record.eval_nll:.4f}"
    return (
        f"loss {record.loss:.4f} · nll {record.nll:.4f}{held_out} · lr {record.lr:.2e} · grad {record.grad_norm:.3f} · "
        f"{speed:,.0f} tok/s, {trained:,.0f} trained{_work(record)} · {record.peak_bytes / 2**30:.1f} GiB"
    )


def _work(record: StepRecord) -> str:
    """MFU where the device's peak is known, else operations a second."""
    if record.mfu is not None:
        return f" · MFU {record.mfu:.1%}"
    return "" if record.flops is None else f" · {record.flops / record.seconds / 1e9:,.1f} GFLOP/s"
