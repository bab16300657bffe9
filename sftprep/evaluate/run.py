"""Evaluate a model: suites answered and scored, held-out loss, comparison with a baseline, gates.

from sftprep.config.evaluate import EvaluateConfig
from sftprep.evaluate.run import evaluate

report = evaluate(EvaluateConfig(model="tuned", baseline="base", suite=("harbour.yaml",)))
assert report.passed
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch

from sftprep.config.evaluate import EvaluateConfig, EvaluateGate
from sftprep.config.places import recorded
from sftprep.evaluate.answer import Answer
from sftprep.evaluate.cases import answer_record, shown_prompt
from sftprep.evaluate.compare import groups
from sftprep.evaluate.contamination import contamination
from sftprep.evaluate.gates import Measured, judged
from sftprep.evaluate.harness import check_harness, harness_records
from sftprep.evaluate.judge import Pair, questions, win_rate
from sftprep.evaluate.loss_records import likelihood_record
from sftprep.evaluate.models import OnProgress, Run, Seen, server
from sftprep.evaluate.provenance import provenance_faults
from sftprep.evaluate.suite import LoadedCase, read_suite
from sftprep.prepare.recorded_sources import source_state
from sftprep.reports.evaluate_json import (
    CaseRecord,
    Contamination,
    EvaluateReport,
    LikelihoodRecord,
    WinRate,
)
from sftprep.reports.wording import counted
from sftprep.shards.cache import open_set
from sftprep.shards.manifest import refuse_trained
from sftprep.shards.read import ShardSet
from sftprep.sources.lines import content_name, require_source
from sftprep.sources.paths import expand


def evaluate(config: EvaluateConfig, *, on_progress: OnProgress | None = None) -> EvaluateReport:
    """Everything that the configuration asks for, judged by its gates and those of its suites.

    Raises:
        SourceError: a suite or a file of rows cannot be used.
        ModelFilesError, TemplateError, MaskError, ShardError: a model or a packed set cannot.
        UsageError: a gate names nothing that was evaluated; `missing-extra`, `no-such-task`, `harness-failed`.
    """
    check_harness(config)
    suites = [read_suite(name) for name in config.suite]
    cases = [case for suite in suites for case in suite.cases]
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    trained_on = _opened(config, config.trained_on)
    held_out = _opened(config, config.held_out)
    if held_out is not None and trained_on is not None:
        refuse_trained(held_out.manifest, trained=trained_on.manifest, place=str(config.held_out))
    _refuse_unreadable(config, [trained_on, held_out])
    run = Run(config, cases, held_out, datetime.now(), on_progress or (lambda what: None), source_state)
    new = run.see(config.model, trained_on)
    old = None if config.baseline is None else run.see(config.baseline, None)
    records = _case_records(cases, new, old)
    measured = Measured(
        suites=groups(records, by="suite", seed=config.seed),
        tags=groups(records, by="tag", seed=config.seed),
        sources=groups(records, by="source", seed=config.seed),
        likelihood=_likelihood(config, new, old),
        contamination=_contamination(config, cases, trained_on),
        win_rate=_win_rate(run, records),
        parity=new.parity,
        provenance=None if trained_on is None else provenance_faults(trained_on),
        harness=harness_records(new.harness, None if old is None else old.harness, seed=config.seed),
    )
    own = [EvaluateGate.parse(_placed(text, suite.suite.name)) for suite in suites for text in suite.suite.gates]
    gates = judged([*config.gates, *own], measured)
    return EvaluateReport(
        passed=all(gate.passed for gate in gates),
        model=new.record,
        baseline=None if old is None else old.record,
        suites=list(measured.suites),
        tags=list(measured.tags),
        sources=list(measured.sources),
        likelihood=measured.likelihood,
        contamination=measured.contamination,
        win_rate=measured.win_rate,
        harness=list(measured.harness),
        gates=gates,
        cases=records,
    )


def _opened(config: EvaluateConfig, place: Path | None) -> ShardSet | None:
    return None if place is None else open_set(place, cache_dir=config.cache_dir, cache_gb=config.cache_gb)


def _refuse_unreadable(config: EvaluateConfig, sets: Sequence[ShardSet | None]) -> None:
    """What cannot be read is told before hours of answers, not after them."""
    for path in expand(config.against):
        require_source(path)
    for source in (source for shards in sets if shards is not None for source in shards.manifest.sources):
        if source.identity:  # of a store, which says at once whether it lets us in; a file would be read whole
            source_state(source)


def _placed(gate: str, suite: str) -> str:
    """A suite's gate is of that suite, unless it names a tag."""
    parsed = EvaluateGate.parse(gate)
    is_of_groups = parsed.kind in {"pass-rate", "stops", "repetition", "regression", "improvement", "not-worse"}
    if parsed.where or not is_of_groups:
        return gate
    return gate.replace(parsed.kind, f"{parsed.kind}.{suite}", 1)


def _case_records(cases: Sequence[LoadedCase], new: Seen, old: Seen | None) -> list[CaseRecord]:
    others: Sequence[Answer | None] = [None] * len(cases) if old is None else old.answers
    return [
        CaseRecord(
            suite=loaded.suite,
            id=loaded.case.id,
            tags=list(loaded.case.tags),
            source=loaded.case.source,
            prompt=shown_prompt(loaded.conversation),
            reference=loaded.case.reference,
            answer=answer_record(loaded, own),
            baseline=None if other is None else answer_record(loaded, other),
        )
        for loaded, own, other in zip(cases, new.answers, others, strict=True)
    ]


def _likelihood(config: EvaluateConfig, new: Seen, old: Seen | None) -> LikelihoodRecord | None:
    if new.loss is None or config.held_out is None:
        return None
    return likelihood_record(config.held_out, new.loss, None if old is None else old.loss, seed=config.seed)


def _contamination(
    config: EvaluateConfig, cases: Sequence[LoadedCase], trained_on: ShardSet | None
) -> Contamination | None:
    """Over the files given, and the sources of the set that the model was trained on; those that are gone are named."""
    against = expand(config.against)
    given = {content_name(path) for path in against}
    sources = [] if trained_on is None else trained_on.manifest.sources
    states = {source.path: source_state(source) for source in sources if source.bytes_name not in given}
    files = [*against, *(recorded(path) for path, state in states.items() if state == "read")]
    unread = [f"{path} ({state})" for path, state in states.items() if state != "read"]
    return contamination(cases, files, unread=unread) if cases and (files or unread) else None


def _win_rate(run: Run, records: Sequence[CaseRecord]) -> WinRate | None:
    """By the judge, over all cases that have another answer: the baseline's, else the reference."""
    config = run.config
    if config.judge is None or config.judge_endpoint is None:
        return None
    others = [case.reference if case.baseline is None else case.baseline.text for case in records]
    pairs = [
        Pair(case.prompt, case.answer.text, other)
        for case, other in zip(records, others, strict=True)
        if other is not None
    ]
    run.tell(f"{config.judge} judges {counted(len(pairs), 'case')} in both orders")
    verdicts = server(config, config.judge_endpoint).answers(config.judge, questions(pairs))
    against = "the suites' references" if config.baseline is None else config.baseline
    return win_rate(pairs, verdicts, judge=config.judge, against=against, seed=config.seed)
