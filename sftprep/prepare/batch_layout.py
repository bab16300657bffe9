"""Where the segments and turns of many samples lie: arrays of each plan once, taken for every sample of a batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sftprep.engines.reference import ReferenceEngine
from sftprep.stages.encode_batch import Batch, Ints, TokenTable, TurnBorders, flat_offsets
from sftprep.stages.replay import SamplePlan, TurnPlan

_MOST_KEPT: Final = 16_384
"""Plans whose layouts are kept: a book keeps fewer, and forgets all at once."""


class _Layout(NamedTuple):
    """Of one plan: a row a turn, `[turns, 3]` pieces, and its opening's bytes and ids, end to end; control tokens."""

    turns: Ints
    opened: Ints
    opening: npt.NDArray[np.int32]
    opening_sizes: Ints
    num_control: int


class Layouts:
    """The layouts of the plans that were met; `reference` says what cuts an encode, `table` what is a control token."""

    def __init__(self, reference: ReferenceEngine, table: TokenTable) -> None:
        self._reference = reference
        self._table = table
        self._openings: dict[tuple[str, str], tuple[int, npt.NDArray[np.int32]] | None] = {}
        self._known: dict[int, _Layout | None] = {}
        self._held: list[SamplePlan] = []

    def can_prove(self, plan: SamplePlan) -> bool:
        """Whether something cuts every encode before each of its completions."""
        return self._of(plan) is not None

    def batch(self, samples: Sequence[SamplePlan], pieces: Sequence[Sequence[bytes]], texts: Sequence[bytes]) -> Batch:
        """The batch of samples, at least one, that can be proven; `pieces` are of each, `texts` the same joined."""
        different = {id(sample): sample for sample in samples}
        numbers = {key: number for number, key in enumerate(different)}
        chosen = np.array([numbers[id(sample)] for sample in samples], dtype=np.int64)
        plans = list(different.values())
        layouts = [layout for layout in map(self._of, plans) if layout is not None]
        first = flat_offsets(np.array([plan.num_pieces for plan in plans], dtype=np.int64)[chosen])[:-1]
        offsets, place = _taken(np.array([len(plan.starts) for plan in plans], dtype=np.int64), chosen)
        return Batch(
            text=b"".join(texts),
            sample_bytes=_sizes(texts),
            piece_bytes=_sizes(list(itertools.chain.from_iterable(pieces))),
            segments=np.concatenate([plan.starts for plan in plans])[place] + np.repeat(first, np.diff(offsets)),
            kinds=np.concatenate([plan.kinds for plan in plans])[place],
            messages=np.concatenate([plan.messages for plan in plans])[place],
            weights=np.concatenate([plan.weights for plan in plans])[place],
            segment_offsets=offsets,
            num_control=np.array([layout.num_control for layout in layouts], dtype=np.int64)[chosen],
            turns=_turns(layouts, chosen, first),
        )

    def _of(self, plan: SamplePlan) -> _Layout | None:
        if id(plan) not in self._known:
            if len(self._held) >= _MOST_KEPT:
                self._known.clear()
                self._held.clear()
            self._held.append(plan)  # what has this id is this plan as long as it is held
            self._known[id(plan)] = self._made(plan)
        return self._known[id(plan)]

    def _made(self, plan: SamplePlan) -> _Layout | None:
        openings = [opening for opening in map(self._opening, plan.turns) if opening is not None]
        if len(openings) < len(plan.turns):
            return None
        ids = [ids for _, ids in openings]
        (written,) = self._reference.encode([plan.written])
        return _Layout(
            turns=np.array([(turn.start, turn.stop_start, turn.stop) for turn in plan.turns], np.int64).reshape(-1, 3),
            opened=np.array([size for size, _ in openings], dtype=np.int64),
            opening=np.concatenate([np.zeros(0, np.int32), *ids]),
            opening_sizes=np.array([len(own) for own in ids], dtype=np.int64),
            num_control=int(np.count_nonzero(self._table.is_control[written.ids])),
        )

    def _opening(self, turn: TurnPlan) -> tuple[int, npt.NDArray[np.int32]] | None:
        """Bytes and ids from the last token that cuts on to the completion; None where nothing cuts there."""
        key = (turn.opening, turn.stop_text)
        if key not in self._openings:
            self._openings[key] = self._encoded_opening(turn) if self._reference.cuts(turn.stop_text) else None
        return self._openings[key]

    def _encoded_opening(self, turn: TurnPlan) -> tuple[int, npt.NDArray[np.int32]] | None:
        cutting = (token for token in self._reference.cutting if token in turn.opening)
        ends = [(turn.opening.rfind(token) + len(token), token) for token in cutting]
        if not ends:
            return None
        end, token = max(ends)
        (encoded,) = self._reference.encode([token + turn.opening[end:]])
        return len((token + turn.opening[end:]).encode()), encoded.ids


def _turns(layouts: Sequence[_Layout], chosen: Ints, first: Ints) -> TurnBorders:
    """The turns of the samples, `chosen` being the layout of each and `first` its first piece."""
    offsets, place = _taken(np.array([len(layout.turns) for layout in layouts], dtype=np.int64), chosen)
    counts = np.diff(offsets)
    borders = np.concatenate([layout.turns for layout in layouts])[place] + np.repeat(first, counts)[:, None]
    opening_offsets, opening = _taken(np.concatenate([layout.opening_sizes for layout in layouts]), place)
    return TurnBorders(
        sample=np.repeat(np.arange(len(chosen)), counts),
        start=borders[:, 0],
        stop_start=borders[:, 1],
        stop=borders[:, 2],
        opened=np.concatenate([layout.opened for layout in layouts])[place],
        opening=np.concatenate([layout.opening for layout in layouts])[opening],
        opening_offsets=opening_offsets,
    )


def _taken(sizes: Ints, chosen: Ints) -> tuple[Ints, Ints]:
    """Of runs of these sizes, end to end, those that are chosen: their offsets, and where each item of theirs lies."""
    counts = sizes[chosen]
    offsets = flat_offsets(counts)
    begins = flat_offsets(sizes)[:-1][chosen]
    return offsets, np.repeat(begins - offsets[:-1], counts) + np.arange(offsets[-1])


def _sizes(texts: Sequence[bytes]) -> Ints:
    return np.fromiter(map(len, texts), np.int64, len(texts))
