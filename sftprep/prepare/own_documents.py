"""Turns right behind a token after which the tokenizer puts a space: each has a document of its own.

A server encodes such an answer with the space once it is history, and the model must not emit one that its prompt has
not. So the ids of each turn's prompt are those of the prompt alone, and its completion is encoded as text in the middle
(Mistral 3's `[/INST]` before an answer, with a normaliser that prepends).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np

from sftprep.data import TRAINED_KINDS, SpanKind
from sftprep.engines.fast import EngineChoice
from sftprep.engines.reference import ReferenceEngine
from sftprep.prepare.batch_layout import SampleTexts
from sftprep.stages.encode_batch import EncodedTexts, TokenTable, joined_texts
from sftprep.stages.replay import RowPlan, SamplePlan, TurnPlan

_MOST_KEPT: Final = 4_096
"""Plans of rows that are kept: a book keeps as many shapes, and forgets all at once."""
_FIELD: Final = b"\0"
_TRAINED: Final = np.array([int(kind) for kind in TRAINED_KINDS], dtype=np.int8)


@dataclass(frozen=True, slots=True)
class JoinedSample(SamplePlan):
    """A sample that ends with its only turn, whose completion is encoded apart from the prompt."""


class OwnDocuments:
    """Plans of rows, with a sample for each turn where the tokenizer wants that."""

    def __init__(self, reference: ReferenceEngine, table: TokenTable) -> None:
        prefix = table.prefix
        self._cutting = tuple(reference.cutting) if prefix is not None and prefix.inside else ()
        self._known: dict[int, tuple[RowPlan, RowPlan]] = {}
        """By its id, which is its own as long as it is held here, a plan and what became of it."""

    def of(self, plan: RowPlan) -> RowPlan:
        """The plan, or one with more samples."""
        if not self._cutting:
            return plan
        if id(plan) not in self._known:
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            self._known[id(plan)] = (plan, self._made(plan))
        return self._known[id(plan)][1]

    def _made(self, plan: RowPlan) -> RowPlan:
        written = [*[_FIELD] * plan.num_written, *plan.words]
        samples = [own for sample in plan.samples for own in self._samples(sample, sample.take(written))]
        straddled = len(samples) - len(plan.samples)
        remarks = {**plan.remarks, **({"border-straddled": straddled} if straddled else {})}
        return replace(plan, samples=tuple(samples), remarks=remarks)

    def _samples(self, sample: SamplePlan, pieces: Sequence[bytes]) -> Iterator[SamplePlan]:
        if not all(self._is_spaced(turn, pieces[turn.start]) for turn in sample.turns):
            yield sample
            return
        for turn in sample.turns:
            yield _joined(sample, turn, pieces)

    def _is_spaced(self, turn: TurnPlan, first: bytes) -> bool:
        """Whether a space is put before a turn: behind a token that cuts, and before text."""
        return turn.opening.endswith(self._cutting) and not first.decode().startswith(self._cutting)


def _joined(sample: SamplePlan, turn: TurnPlan, pieces: Sequence[bytes]) -> JoinedSample:
    """The sample as far as the end of a turn; the turns before it are history."""
    take, stop = sample.take, turn.stop
    kept = sample.starts < stop
    starts, kinds, weights = sample.starts[kept], sample.kinds[kept], sample.weights[kept]
    is_history = np.isin(kinds, _TRAINED) & (starts < turn.start)
    changed = {
        "take": lambda values: take(values)[:stop],
        "num_pieces": stop,
        "starts": starts,
        "kinds": np.where(is_history, np.int8(SpanKind.HISTORY), kinds),
        "messages": sample.messages[kept],
        "weights": np.where(is_history, np.float32(0), weights),
        "turns": (turn,),
        "written": b"".join(pieces[:stop]).decode(),
    }
    own = {field.name: getattr(sample, field.name) for field in fields(sample)}
    return JoinedSample(**{**own, **changed})


def encode_samples(choice: EngineChoice, samples: SampleTexts) -> EncodedTexts:
    """Encode the texts of samples."""
    are_joined = np.array([isinstance(plan, JoinedSample) for plan in samples.plans], dtype=np.bool_)
    joined = np.flatnonzero(are_joined[samples.chosen]).tolist()
    if not joined:
        return choice.encode_batch(samples.texts)
    prompts, completions = list(samples.texts), []
    for number in joined:
        own, start = samples.pieces[number], samples.plans[samples.chosen[number]].turns[0].start
        prompts[number] = b"".join(own[:start])
        completions.append(b"".join(own[start:]))
    return joined_texts(choice.encode_batch(prompts), choice.middle.encode_batch(completions), joined)
