"""Where a run's numbers go: metrics.jsonl always, TensorBoard and Weights & Biases by their own libraries."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from sftprep.config.train import TrainConfig
from sftprep.errors import OutputError, UsageError
from sftprep.reports.loss_curve import write_loss_curve
from sftprep.train.export import writing
from sftprep.train.record import StepRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PAGE: Final = "loss.html"
_NUMBER_PREFIX: Final = "train/"
_MEANINGLESS_WHERE_SKIPPED: Final = frozenset({"loss", "nll", "grad_norm"})
_RUN_NAME: Final = "wandb-run.txt"
"""In the run's directory: a resumed run goes on under the same name."""


_A_STEP: Final = re.compile(r'\{"step": (\d+), .*\}\n')


class Logger(Protocol):
    """Takes every step's record, and is closed before the run's directory is renamed."""

    def step(self, record: StepRecord) -> None:
        """The numbers of one step."""

    def close(self, *, failed: bool) -> None:
        """Everything is written, or sent."""


def check_loggers(config: TrainConfig) -> None:
    """The libraries of all loggers are there.

    Raises:
        UsageError: `missing-extra`.
    """
    for name in config.log_to:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"--log-to {name} needs the package {name}", code="missing-extra", hint=f"pip install 'sftprep[{name}]'"
            )


def open_loggers(config: TrainConfig, *, metrics: Path, first_step: int) -> list[Logger]:
    """The file `metrics` and the loggers of `--log-to`, which write beside it. Steps after `first_step` count anew.

    Raises:
        OutputError: `logger-failed`, `output-not-writable`, `disk-full`.
    """
    opened: list[Logger] = [_MetricsFile(metrics, first_step=first_step), _Page(metrics)]
    try:
        opened.extend(_OPENERS[name](config, metrics.parent, first_step) for name in config.log_to)
    except BaseException:
        for logger in opened:
            logger.close(failed=True)
        raise
    return opened


def numbers_of(record: StepRecord) -> dict[str, float]:
    """A step's numbers by the names that loggers show: `train/NAME`, and `NAME/SOURCE` where a source has its own."""
    found: dict[str, float] = {}
    for name, value in asdict(record).items():
        if record.skipped and name in _MEANINGLESS_WHERE_SKIPPED:
            continue
        if isinstance(value, dict):
            found |= {f"{name}/{source}": number for source, number in value.items()}
        elif isinstance(value, int | float) and name != "step":
            found[f"{_NUMBER_PREFIX}{name}"] = float(value)
    for name in ("num_tokens", "num_trained"):
        found[f"{_NUMBER_PREFIX}{name}_per_second"] = getattr(record, name) / record.seconds
    return found


class _MetricsFile:
    def __init__(self, path: Path, *, first_step: int) -> None:
        self._path = path
        with writing(path):
            _keep_steps(path, before=first_step)
            self._file = path.open("a", encoding="utf-8")

    def step(self, record: StepRecord) -> None:
        with writing(self._path):
            self._file.write(json.dumps(asdict(record)) + "\n")
            self._file.flush()

    def close(self, *, failed: bool) -> None:
        self._file.close()


class _Page:
    """The run's page, drawn anew after every measurement: whoever trains for days can read what is answered today."""

    def __init__(self, metrics: Path) -> None:
        self._metrics = metrics

    def step(self, record: StepRecord) -> None:
        if record.eval_nll is not None or record.eval_scores is not None:
            page = self._metrics.with_name(PAGE)
            with writing(page):
                write_loss_curve(self._metrics, page, title=f"Training, step {record.step:,}")

    def close(self, *, failed: bool) -> None:
        """Nothing is open."""


def _keep_steps(metrics: Path, *, before: int) -> None:
    """Drop the lines of steps that a resumed run does again, and what is no line of a step, as one that was cut off."""
    if not metrics.exists():
        return
    with metrics.open(encoding="utf-8", errors="replace") as file:
        kept = [line for line in file if (step := _A_STEP.fullmatch(line)) and int(step[1]) <= before]
    metrics.write_text("".join(kept), encoding="utf-8")


class _TensorBoard:
    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def step(self, record: StepRecord) -> None:
        with writing(Path(self._writer.log_dir)):
            for name, value in numbers_of(record).items():
                self._writer.add_scalar(name, value, record.step)

    def close(self, *, failed: bool) -> None:
        with writing(Path(self._writer.log_dir)):
            self._writer.close()


class _WeightsAndBiases:
    def __init__(self, run: Any) -> None:
        self._run = run

    def step(self, record: StepRecord) -> None:
        # The library refuses to count its own steps backwards, which a resumed run does: the step is a number too.
        self._run.log({**numbers_of(record), f"{_NUMBER_PREFIX}step": record.step})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _tensorboard(config: TrainConfig, directory: Path, first_step: int) -> Logger:
    # Its import takes a second, and only who asks for it waits.
    from torch.utils.tensorboard import SummaryWriter

    place = directory / "tensorboard"
    with writing(place):
        return _TensorBoard(SummaryWriter(str(place), purge_step=first_step + 1))


def _weights_and_biases(config: TrainConfig, directory: Path, first_step: int) -> Logger:
    # As above.
    import wandb

    with _named_failures("wandb"):
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sftprep"),
            id=_run_name(directory, resumed=first_step > 0),
            resume="allow",
            dir=str(directory),
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off"),
        )
        run.define_metric(f"{_NUMBER_PREFIX}step")
        run.define_metric("*", step_metric=f"{_NUMBER_PREFIX}step")
    return _WeightsAndBiases(run)


def _run_name(directory: Path, *, resumed: bool) -> str:
    place = directory / _RUN_NAME
    if resumed and place.is_file():
        return place.read_text(encoding="utf-8").strip()
    # Only a name among runs: nothing that is trained depends on it.
    name = os.urandom(8).hex()
    with writing(place):
        place.write_text(f"{name}\n", encoding="utf-8")
    return name


@contextmanager
def _named_failures(name: str) -> Iterator[None]:
    # As above.
    import wandb

    try:
        yield
    except (wandb.Error, OSError) as error:
        raise OutputError(
            f"{name} does not start: {str(error).strip().partition(chr(10))[0]}",
            code="logger-failed",
            place=name,
            hint="log in with `wandb login`, or set WANDB_MODE=offline and send the run later with `wandb sync`",
        ) from error


_OPENERS: Final[dict[str, Callable[[TrainConfig, Path, int], Logger]]] = {
    "tensorboard": _tensorboard,
    "wandb": _weights_and_biases,
}
