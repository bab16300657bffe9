"""Cases asked of a model in this process, and what their scorers say of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sftprep.data import Conversation
from sftprep.evaluate.answer import Answer, Score
from sftprep.evaluate.behaviour_scorers import repetition_rate
from sftprep.evaluate.local import LocalModel, Sampling
from sftprep.evaluate.score import score
from sftprep.evaluate.suite import LoadedCase
from sftprep.reports.evaluate_json import AnswerRecord, ScoreRecord
from sftprep.stages.dialogue import content_text


@dataclass(frozen=True, slots=True)
class Asking:
    """How cases are asked; `max_new_tokens` None leaves it to each suite."""

    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 8


def case_answers(
    model: LocalModel, prompts: Sequence[Sequence[int]], cases: Sequence[LoadedCase], *, asking: Asking
) -> list[Answer]:
    """The answers in the cases' order; those with the same limit are asked together."""
    limits = [asking.max_new_tokens or case.max_new_tokens for case in cases]
    found: dict[int, Answer] = {}
    for limit in sorted(set(limits)):
        own = [i for i, other in enumerate(limits) if other == limit]
        sampling = Sampling(limit, asking.temperature, asking.seed)
        answers = model.answers([prompts[i] for i in own], sampling=sampling, batch_size=asking.batch_size)
        found.update(zip(own, answers, strict=True))
    return [found[i] for i in range(len(cases))]


def shown_prompt(conversation: Conversation) -> str:
    """The messages as lines of role and text."""
    return "\n".join(f"{message['role']}: {content_text(message)}" for message in conversation.messages)


def answer_record(loaded: LoadedCase, answer: Answer) -> AnswerRecord:
    """An answer and what each scorer of its case says of it."""
    found: list[tuple[str, Score]] = [(spec.kind, score(spec, answer)) for spec in loaded.scorers]
    return AnswerRecord(
        text=answer.text,
        num_tokens=answer.num_tokens,
        stopped=answer.stopped,
        repetition=repetition_rate(answer.text),
        value=sum(one.value for _, one in found) / len(found),
        passed=all(one.passed for _, one in found),
        scores=[ScoreRecord(kind=kind, value=one.value, passed=one.passed, note=one.note) for kind, one in found],
    )
