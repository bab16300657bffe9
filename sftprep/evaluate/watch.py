"""Answers during training: a sample of the suites' cases, asked between steps by the model as it is then.

The prompts are rendered, encoded and proven once, before the first step; tokenizer, template and stop tokens are
those of the packed set, which the trained model will have.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import numpy as np
from transformers import PreTrainedModel

from sftprep.config.train import TrainConfig
from sftprep.engines.load import load_model
from sftprep.engines.reference import ReferenceEngine
from sftprep.errors import UsageError
from sftprep.evaluate.cases import Asking, answer_record, case_answers, shown_prompt
from sftprep.evaluate.local import LocalModel
from sftprep.evaluate.prompts import prompt_ids
from sftprep.evaluate.suite import LoadedCase, LoadedSuite, read_suite
from sftprep.reports.evaluate_json import AnswerRecord
from sftprep.shards.cache import open_set
from sftprep.train.samples import Sample, ShownAnswer, Watcher

METRICS: Final = ("pass-rate", "value", "stops", "repetition")


def watcher(config: TrainConfig) -> Watcher:
    """Who asks the cases of `--eval`.

    Raises:
        SourceError: a suite cannot be used.
        ShardError, ModelFilesError, TemplateError, MaskError: the packed set's files cannot, or a case's prompt.
    """
    suites = [read_suite(name) for name in config.eval_suites]
    names = [loaded.suite.name for loaded in suites]
    if len(set(names)) < len(names):
        raise UsageError("--eval names a suite twice", code="bad-option", hint=f"they are called {', '.join(names)}")
    cases = [case for loaded in suites for case in _drawn(loaded, config)]
    shards = open_set(config.data, cache_dir=config.cache_dir, cache_gb=config.cache_gb)
    directory = shards.directory / "model"
    files = load_model(str(directory))
    prompts = prompt_ids(files, directory, [case.conversation for case in cases], now=datetime.now())
    engine, stop_ids = ReferenceEngine(files.tokenizer_json), tuple(shards.manifest.model.stop_ids)
    asking = Asking(seed=config.seed, batch_size=len(cases))

    def ask(network: PreTrainedModel) -> Sample:
        model = LocalModel(files, directory, network, engine, stop_ids)
        found = case_answers(model, prompts, cases, asking=asking)
        return _sample(cases, [answer_record(case, answer) for case, answer in zip(cases, found, strict=True)])

    metrics = {f"{metric}{name}" for metric in METRICS for name in ("", *(f".{name}" for name in names))}
    return Watcher(frozenset(metrics), ask)


def _drawn(loaded: LoadedSuite, config: TrainConfig) -> list[LoadedCase]:
    """So many cases of a suite, the same ones for the same seed, in the suite's order."""
    count = min(config.eval_cases, len(loaded.cases))
    order = np.random.default_rng(config.seed).permutation(len(loaded.cases))
    return [loaded.cases[number] for number in sorted(order[:count].tolist())]


def _sample(cases: Sequence[LoadedCase], records: Sequence[AnswerRecord]) -> Sample:
    pairs = list(zip(cases, records, strict=True))
    scores = _scores(records, "")
    for name in dict.fromkeys(case.suite for case in cases):
        scores |= _scores([record for case, record in pairs if case.suite == name], f".{name}")
    return Sample(
        scores=scores,
        answers=tuple(
            ShownAnswer(
                case=f"{case.suite}/{case.case.id}",
                prompt=shown_prompt(case.conversation),
                text=record.text,
                num_tokens=record.num_tokens,
                stopped=record.stopped,
                value=record.value,
                passed=record.passed,
            )
            for case, record in pairs
        ),
    )


def _scores(records: Sequence[AnswerRecord], where: str) -> dict[str, float]:
    found = {
        "pass-rate": [float(record.passed) for record in records],
        "value": [record.value for record in records],
        "stops": [float(record.stopped) for record in records],
        "repetition": [record.repetition for record in records],
    }
    return {f"{metric}{where}": sum(values) / len(values) for metric, values in found.items()}
