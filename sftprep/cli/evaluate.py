"""`sftprep evaluate`: a model and suites to what it can do, what got worse, and one exit code."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sftprep.cli.importing import importing
from sftprep.cli.options import option_of, read_config
from sftprep.config.evaluate import EvaluateConfig
from sftprep.config.extras import require_extra

_FIELDS = EvaluateConfig.model_fields


class _Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def _option(field: str, *names: str, **settings: Any) -> Any:
    return option_of(EvaluateConfig, field, *names, **settings)


def evaluate(
    *,
    model: Annotated[str, _option("model", metavar="DIR_OR_HUB_ID")],
    baseline: Annotated[str | None, _option("baseline", metavar="DIR_OR_HUB_ID")] = None,
    suite: Annotated[list[str] | None, _option("suite", metavar="FILE")] = None,
    held_out: Annotated[str | None, _option("held_out", metavar="DIR_OR_URL")] = None,
    trained_on: Annotated[str | None, _option("trained_on", metavar="DIR_OR_URL")] = None,
    against: Annotated[list[str] | None, _option("against", metavar="FILE")] = None,
    fail_on: Annotated[list[str] | None, _option("fail_on", metavar="GATE")] = None,
    harness: Annotated[list[str] | None, _option("harness", metavar="TASK")] = None,
    harness_limit: Annotated[int | None, _option("harness_limit", min=1)] = None,
    harness_plain: Annotated[bool, _option("harness_plain")] = False,
    endpoint: Annotated[str | None, _option("endpoint", metavar="URL")] = None,
    judge: Annotated[str | None, _option("judge", metavar="NAME")] = None,
    judge_endpoint: Annotated[str | None, _option("judge_endpoint", metavar="URL")] = None,
    concurrency: Annotated[int, _option("concurrency", min=1)] = _FIELDS["concurrency"].default,
    requests_per_second: Annotated[float, _option("requests_per_second", min=0)] = 0.0,
    answers: Annotated[Path | None, _option("answers", metavar="FILE")] = None,
    max_new_tokens: Annotated[int | None, _option("max_new_tokens", min=1)] = None,
    batch_size: Annotated[int, _option("batch_size", min=1)] = _FIELDS["batch_size"].default,
    temperature: Annotated[float, _option("temperature", min=0)] = _FIELDS["temperature"].default,
    seed: Annotated[int, _option("seed", min=0)] = _FIELDS["seed"].default,
    device: Annotated[_Device, _option("device")] = _Device.AUTO,
    threads: Annotated[int | None, _option("threads", min=1)] = None,
    cache_dir: Annotated[Path, _option("cache_dir")] = _FIELDS["cache_dir"].default,
    cache_gb: Annotated[float, _option("cache_gb")] = _FIELDS["cache_gb"].default,
    json_file: Annotated[str | None, _option("json_file", "--json")] = None,
    html: Annotated[str | None, _option("html")] = None,
) -> None:
    """Judge a model on suites and held-out rows, compare it with a baseline, and fail where a gate does not hold.

    Exit code 0: every gate holds; 1: one does not, or the data is wrong; 2: something is wrong with the call.

    Example: sftprep evaluate --model tuned --baseline base --suite harbour.yaml --fail-on pass-rate=0.8

    Example: sftprep evaluate --model tuned --suite safety --suite tone --trained-on packed --html report.html

    Example: sftprep evaluate --model tuned --suite tone --endpoint http://127.0.0.1:8000/v1 --answers answers.jsonl

    Example: sftprep evaluate --model tuned --baseline base --held-out packed_eval --fail-on nll-regression

    Example: sftprep evaluate --model tuned --baseline base --harness arc_easy --fail-on harness.arc_easy=0.4
    """
    options = {**locals(), "suite": tuple(suite or ()), "against": tuple(against or ())}
    options |= {"fail_on": tuple(fail_on or ()), "harness": tuple(harness or ()), "device": device.value}
    config = read_config(EvaluateConfig, options, command="evaluate")
    _run(config)


def _run(config: EvaluateConfig) -> None:
    require_extra("train", ["torch", "transformers"], what="evaluate")
    with importing():
        # torch and transformers take seconds to import, which `sftprep --help` must not wait for.
        from sftprep.train.imports import without_detours

        with without_detours():
            from sftprep.evaluate.run import evaluate as run  # as above
    # These come with it.
    from sftprep.reports.console import terminal_console
    from sftprep.reports.evaluate_html import write_evaluation_page
    from sftprep.reports.evaluate_json import write_evaluation
    from sftprep.reports.evaluate_terminal import print_evaluation
    from sftprep.reports.publication import check_places

    check_places([config.json_file, config.html])
    report = run(config, on_progress=lambda what: typer.echo(what, err=True))
    if config.json_file is not None:
        write_evaluation(report, config.json_file)
    if config.html is not None:
        write_evaluation_page(report, config.html)
    print_evaluation(report, terminal_console())
    if not report.passed:
        raise typer.Exit(1)
