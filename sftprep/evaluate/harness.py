"""Public tasks: lm-evaluation-harness runs them on the model that is open here, and its numbers go into our report."""

from __future__ import annotations

import importlib.util
import logging
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transformers import AutoTokenizer

from sftprep.config.evaluate import EvaluateConfig
from sftprep.engines.fast import probe_texts
from sftprep.errors import DataError, UsageError
from sftprep.evaluate.compare import ALPHA, comparison
from sftprep.evaluate.local import LocalModel
from sftprep.evaluate.prompts import OTHER_IDS
from sftprep.reports.evaluate_json import Comparison, HarnessScore

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_STDERR: Final = "_stderr"
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One metric of one task; `values` are of its single documents by number, where the harness has such."""

    record: HarnessScore
    values: Mapping[int, float]


def check_harness(config: EvaluateConfig) -> None:
    """The library is there, and knows every task.

    Raises:
        UsageError: `missing-extra`, `no-such-task`.
    """
    if not config.harness:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(
            "--harness needs the package lm-eval", code="missing-extra", hint="pip install 'sftprep[harness]'"
        )
    manager = _task_manager(config)
    unknown = [name for name in config.harness if not (_is_file(name) or manager.match_tasks([name]))]
    if unknown:
        raise UsageError(
            f"the harness has no task called {unknown[0]}",
            code="no-such-task",
            place=unknown[0],
            hint="lm-eval ls tasks shows all; a task of your own is named by its YAML file",
        )


def harness_scores(model: LocalModel, config: EvaluateConfig) -> list[TaskScore]:
    """Every metric of every task of `--harness`, in the harness's own order.

    Raises:
        DataError: `harness-failed`: the task's data cannot be had, or the task itself fails; `prompt-differs`: the
            harness, which encodes with transformers, would ask with other ids than the model's tokenizer has.
    """
    # Its import takes seconds, and only who asks for public tasks waits.
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    tokenizer = AutoTokenizer.from_pretrained(model.directory, local_files_only=True)
    _refuse_other_ids(tokenizer, model)
    # It warns that a model is handed over that is open already.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    opened = HFLM(
        pretrained=model.network, tokenizer=tokenizer, batch_size=config.batch_size, device=str(model.network.device)
    )
    try:
        found = simple_evaluate(
            model=opened,
            tasks=list(config.harness),
            task_manager=_task_manager(config),
            limit=config.harness_limit,
            apply_chat_template=not config.harness_plain,
            log_samples=True,
            random_seed=config.seed,
        )
    # Tasks are programs of others: what they raise has no common class.
    except Exception as error:
        raise DataError(
            f"the harness failed: {(str(error) or type(error).__name__).partition(chr(10))[0]}",
            code="harness-failed",
            place=", ".join(config.harness),
            hint="does the task's data set load by itself? public ones come from the hub",
        ) from error
    return [] if found is None else list(_scores(found, is_plain=config.harness_plain))


def _refuse_other_ids(served: Any, model: LocalModel) -> None:
    """DataError `prompt-differs` where transformers' tokenizer gives other ids than ours for a text of the probe."""
    for text in (probe.decode() for probe in probe_texts(model.files)):
        if served(text, add_special_tokens=False).input_ids != model.engine.encode([text])[0].ids.tolist():
            raise DataError(
                f"transformers, by which the harness encodes, gives other ids for the text {text!r:.80}",
                code="prompt-differs",
                place=str(model.directory),
                hint=OTHER_IDS,
            )


def harness_records(new: Sequence[TaskScore], old: Sequence[TaskScore] | None, *, seed: int) -> list[HarnessScore]:
    """The scores, beside the baseline's: paired by document where both have them, corrected for the number of tasks."""
    if old is None:
        return [score.record for score in new]
    others = {_key(score): score for score in old}
    alpha = ALPHA / max(1, sum(score.record.is_main for score in new))
    return [
        score.record.model_copy(
            update={
                "baseline": others[_key(score)].record.value,
                "against_baseline": _compared(score, others[_key(score)], alpha=alpha, seed=seed),
            }
        )
        for score in new
    ]


def _task_manager(config: EvaluateConfig) -> TaskManager:
    # As above.
    from lm_eval.tasks import TaskManager

    # The index of public tasks takes ten seconds to read.
    return TaskManager(include_defaults=not all(map(_is_file, config.harness)))


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _key(score: TaskScore) -> tuple[str, str, str]:
    return score.record.task, score.record.metric, score.record.filter


def _scores(found: Json, *, is_plain: bool) -> list[TaskScore]:
    scores = []
    for task, results in found["results"].items():
        is_main = True
        for name, value in results.items():
            metric, comma, chosen = name.partition(",")
            if not comma or metric.endswith(_STDERR) or not isinstance(value, numbers.Real):
                continue
            error = results.get(f"{metric}{_STDERR},{chosen}")
            record = HarnessScore(
                task=task,
                metric=metric,
                filter=chosen,
                is_main=is_main,
                value=float(value),
                stderr=float(error) if isinstance(error, numbers.Real) else None,
                higher_is_better=bool(found["higher_is_better"].get(task, {}).get(metric, True)),
                num_documents=int(results.get("sample_len") or found["n-samples"].get(task, {}).get("effective", 0)),
                num_fewshot=int(found["n-shot"].get(task) or 0),
                version=str(found["versions"].get(task, "")),
                chat_template=not is_plain,
            )
            scores.append(TaskScore(record, _values(found["samples"].get(task, ()), metric, chosen)))
            is_main = False
    return scores


def _values(samples: Sequence[Json], metric: str, chosen: str) -> dict[int, float]:
    """The metric of every document; none where it is not one number a document."""
    own = [sample for sample in samples if sample.get("filter", "none") == chosen and metric in sample]
    values = {int(sample["doc_id"]): sample[metric] for sample in own}
    is_number = all(isinstance(value, numbers.Real) and math.isfinite(value) for value in values.values())
    return {number: float(value) for number, value in values.items()} if is_number else {}


def _compared(new: TaskScore, old: TaskScore, *, alpha: float, seed: int) -> Comparison | None:
    """None where documents have no numbers of their own, or a lower one is better."""
    if not new.values or new.values.keys() != old.values.keys() or not new.record.higher_is_better:
        return None
    values = [(value, old.values[number]) for number, value in new.values.items()]
    return comparison(values, [(own >= 1, other >= 1) for own, other in values], alpha=alpha, seed=seed)
