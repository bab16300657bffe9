"""What one model does in a run: its answers to all cases and its held-out loss, in process or behind an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sftprep.config.evaluate import EvaluateConfig
from sftprep.evaluate.answer import Answer
from sftprep.evaluate.cases import Asking, case_answers
from sftprep.evaluate.endpoint import Endpoint
from sftprep.evaluate.harness import TaskScore, harness_scores
from sftprep.evaluate.journal import Journal
from sftprep.evaluate.likelihood import HeldOutLoss, held_out_loss
from sftprep.evaluate.local import open_local
from sftprep.evaluate.origins import read_origins
from sftprep.evaluate.prompts import prompt_ids
from sftprep.evaluate.provenance import parity_faults
from sftprep.evaluate.suite import LoadedCase
from sftprep.reports.evaluate_json import ModelRecord
from sftprep.reports.wording import counted
from sftprep.shards.manifest import SourceRecord
from sftprep.shards.read import ShardSet

OnProgress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """What one model did: its answers in the cases' order, and its held-out loss."""

    record: ModelRecord
    answers: Sequence[Answer]
    loss: HeldOutLoss | None = None
    parity: Sequence[str] | None = None
    harness: Sequence[TaskScore] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """What every model of a run is given."""

    config: EvaluateConfig
    cases: Sequence[LoadedCase]
    held_out: ShardSet | None
    now: datetime
    tell: OnProgress
    state: Callable[[SourceRecord], str]
    """`read` where a file of a packed set is there and is what it was."""

    def see(self, name: str, trained_on: ShardSet | None) -> Seen:
        """Open a model, let it answer and read; `trained_on` says what ends its answers, and is compared with it."""
        if self.config.endpoint is not None:
            return self._see_served(name, self.config.endpoint)
        config, cases = self.config, self.cases
        stop_ids = None if trained_on is None else trained_on.manifest.model.stop_ids
        self.tell(f"opening {name}")
        model = open_local(name, device=config.device, stop_ids=stop_ids)
        prompts = prompt_ids(model.files, model.directory, [case.conversation for case in cases], now=self.now)
        if cases:
            self.tell(f"{name} answers {counted(len(cases), 'case')}")
        asking = Asking(config.max_new_tokens, config.temperature, config.seed, config.batch_size)
        answers = case_answers(model, prompts, cases, asking=asking)
        loss = None
        if self.held_out is not None:
            self.tell(f"{name} reads {self.held_out.place}")
            self.held_out.verify()
            origins = read_origins(self.held_out, state=self.state)
            loss = held_out_loss(model, self.held_out, batch_size=config.batch_size, origins=origins)
        if config.harness:
            self.tell(f"{name} runs {', '.join(config.harness)}")
        return Seen(
            harness=harness_scores(model, config) if config.harness else (),
            record=ModelRecord(
                name=name,
                num_prompts_proven=len(prompts),
                stop_tokens=[model.engine.decode([i]) for i in model.stop_ids],
                tokenizer_sha256=model.files.tokenizer_sha256,
                template_sha256=model.files.template_sha256,
            ),
            answers=answers,
            loss=loss,
            parity=None if trained_on is None else parity_faults(model.files, model.directory, trained_on),
        )

    def _see_served(self, name: str, url: str) -> Seen:
        """Ask a server, which renders the messages itself: nothing is proven of its prompts."""
        self.tell(f"{name} at {url} answers {counted(len(self.cases), 'case')}")
        answers = server(self.config, url).answers(name, [_question(self.config, case) for case in self.cases])
        record = ModelRecord(
            name=name, num_prompts_proven=0, stop_tokens=[], tokenizer_sha256="", template_sha256="", endpoint=url
        )
        return Seen(record, answers)


def server(config: EvaluateConfig, url: str) -> Endpoint:
    """An endpoint that is asked as the configuration allows."""
    return Endpoint(
        url, concurrency=config.concurrency, per_second=config.requests_per_second, journal=Journal(config.answers)
    )


def _question(config: EvaluateConfig, case: LoadedCase) -> dict[str, Any]:
    talk = case.conversation
    question: dict[str, Any] = {
        "messages": [dict(message) for message in talk.messages],
        "max_tokens": config.max_new_tokens or case.max_new_tokens,
        "temperature": config.temperature,
        "seed": config.seed,
    }
    if talk.tools is not None:
        question["tools"] = list(talk.tools)
    if talk.template_kwargs:
        question["chat_template_kwargs"] = dict(talk.template_kwargs)
    return question
