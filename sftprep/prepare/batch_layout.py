"""Where the segments and turns of many samples lie: arrays of each plan once, taken for every sample of a batch.

What stands before a completion is proven by its opening, where a token that cuts every encode is in it: those ids are
the same in every row. Where the template writes none there, the prompt is encoded by itself, from the stop token before
it on, as the slow path does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sftprep.engines.fast import EngineChoice
from sftprep.stages.encode_batch import Batch, Ints, TokenTable, TurnBorders, flat_offsets
from sftprep.stages.replay import SamplePlan, TurnPlan

_MOST_KEPT: Final = 16_384
"""Plans whose layouts are kept: a book keeps fewer, and forgets all at once."""


class _Layout(NamedTuple):
    """Of one plan: a row a turn, `[turns, 4]` pieces, and its opening's bytes and ids, end to end; control tokens.

    The pieces: start, stop token, stop, and the one from which on the prompt is to be encoded, -1 where the opening is
    enough.
    """

    turns: Ints
    opened: Ints
    opening: npt.NDArray[np.int32]
    opening_sizes: Ints
    num_control: int


@dataclass(frozen=True, slots=True)
class SampleTexts:
    """Samples: which of the `plans`, each there once, each has, int64 `[samples]`; its pieces, and these joined."""

    plans: Sequence[SamplePlan]
    chosen: Ints
    pieces: Sequence[Sequence[bytes]]
    texts: Sequence[bytes]

    @classmethod
    def of(cls, plans: Sequence[SamplePlan], chosen: Ints, pieces: Sequence[Sequence[bytes]]) -> SampleTexts:
        """Of the pieces."""
        return cls(plans, chosen, pieces, list(map(b"".join, pieces)))

    def only(self, numbers: Ints) -> SampleTexts:
        """Some of the samples."""
        pieces, texts = [self.pieces[n] for n in numbers], [self.texts[n] for n in numbers]
        return SampleTexts(self.plans, self.chosen[numbers], pieces, texts)


class Layouts:
    """The layouts of the plans that were met.

    `choice` encodes prompts, and its reference says what cuts an encode; `table` what is a control token.
    """

    def __init__(self, choice: EngineChoice, table: TokenTable) -> None:
        self._choice = choice
        self._reference = choice.reference
        self._table = table
        self._openings: dict[str, tuple[int, npt.NDArray[np.int32]] | None] = {}
        self._num_control: dict[bytes, int] = {}
        """Control tokens in each piece of what templates write."""
        self._known: dict[int, _Layout | None] = {}
        self._held: list[SamplePlan] = []

    def can_prove(self, plan: SamplePlan) -> bool:
        """Whether the stop token of each of its turns cuts every encode."""
        return self._of(plan) is not None

    def batch(self, samples: SampleTexts) -> Batch:
        """The batch of samples, at least one, that can be proven."""
        plans, chosen = samples.plans, samples.chosen
        layouts = [layout for layout in map(self._of, plans) if layout is not None]
        first = flat_offsets(np.array([plan.num_pieces for plan in plans], dtype=np.int64)[chosen])[:-1]
        offsets, place = taken(np.array([len(plan.starts) for plan in plans], dtype=np.int64), chosen)
        text, piece_bytes = b"".join(samples.texts), _sizes(list(itertools.chain.from_iterable(samples.pieces)))
        return Batch(
            text=text,
            sample_bytes=_sizes(samples.texts),
            piece_bytes=piece_bytes,
            segments=np.concatenate([plan.starts for plan in plans])[place] + np.repeat(first, np.diff(offsets)),
            kinds=np.concatenate([plan.kinds for plan in plans])[place],
            messages=np.concatenate([plan.messages for plan in plans])[place],
            weights=np.concatenate([plan.weights for plan in plans])[place],
            segment_offsets=offsets,
            num_control=np.array([layout.num_control for layout in layouts], dtype=np.int64)[chosen],
            turns=self._turns(layouts, (chosen, first), (text, piece_bytes)),
        )

    def _of(self, plan: SamplePlan) -> _Layout | None:
        if id(plan) not in self._known:
            if len(self._held) >= _MOST_KEPT:
                self._known.clear()
                self._held.clear()
                self._num_control.clear()
            self._held.append(plan)  # what has this id is this plan as long as it is held
            self._known[id(plan)] = self._made(plan)
        return self._known[id(plan)]

    def _made(self, plan: SamplePlan) -> _Layout | None:
        if not all(self._reference.cuts(turn.stop_text) for turn in plan.turns):
            return None
        openings = [self._opening(turn) for turn in plan.turns]
        begins = [0, *(turn.stop_start for turn in plan.turns)]
        pieces = [
            (turn.start, turn.stop_start, turn.stop, begin if opening is None else -1)
            for turn, opening, begin in zip(plan.turns, openings, begins, strict=False)
        ]
        known = [_NOTHING if opening is None else opening for opening in openings]
        return _Layout(
            turns=np.array(pieces, np.int64).reshape(-1, 4),
            opened=np.array([size for size, _ in known], dtype=np.int64),
            opening=np.concatenate([np.zeros(0, np.int32), *(ids for _, ids in known)]),
            opening_sizes=np.array([len(ids) for _, ids in known], dtype=np.int64),
            num_control=self._control_tokens(plan.written),
        )

    def _control_tokens(self, written: str) -> int:
        """How many there are in what a template writes: plans have most of its pieces in common."""
        cut = self._choice.cutter.cut([written.encode()])
        fresh = [piece for piece in cut.pieces if piece not in self._num_control]
        encoded = self._reference.encode_batch(fresh)
        for piece, (start, stop) in zip(fresh, itertools.pairwise(encoded.offsets.tolist()), strict=True):
            self._num_control[piece] = int(np.count_nonzero(self._table.is_control[encoded.ids[start:stop]]))
        return sum(self._num_control[cut.pieces[number]] for number in cut.numbers)

    def _opening(self, turn: TurnPlan) -> tuple[int, npt.NDArray[np.int32]] | None:
        """Bytes and ids from the last token that cuts on to the completion; None where nothing cuts there."""
        if turn.opening not in self._openings:
            self._openings[turn.opening] = self._encoded_opening(turn.opening)
        return self._openings[turn.opening]

    def _encoded_opening(self, opening: str) -> tuple[int, npt.NDArray[np.int32]] | None:
        cutting = (token for token in self._reference.cutting if token in opening)
        ends = [(opening.rfind(token) + len(token), token) for token in cutting]
        if not ends:
            return None
        end, token = max(ends)
        (encoded,) = self._reference.encode([token + opening[end:]])
        return len((token + opening[end:]).encode()), encoded.ids

    def _turns(self, layouts: Sequence[_Layout], of: tuple[Ints, Ints], texts: tuple[bytes, Ints]) -> TurnBorders:
        """The turns of the samples, `of` being the layout of each and its first piece, `texts` their own and pieces."""
        chosen, first = of
        offsets, place = taken(np.array([len(layout.turns) for layout in layouts], dtype=np.int64), chosen)
        counts = np.diff(offsets)
        pieces = np.concatenate([layout.turns for layout in layouts])[place]
        borders = pieces + np.repeat(first, counts)[:, None]
        opening_offsets, opening = taken(np.concatenate([layout.opening_sizes for layout in layouts]), place)
        turns = TurnBorders(
            sample=np.repeat(np.arange(len(chosen)), counts),
            start=borders[:, 0],
            stop_start=borders[:, 1],
            stop=borders[:, 2],
            opened=np.concatenate([layout.opened for layout in layouts])[place],
            opening=np.concatenate([layout.opening for layout in layouts])[opening],
            opening_offsets=opening_offsets,
        )
        asked = np.flatnonzero(pieces[:, 3] >= 0)
        return (
            self._with_prompts(turns, (asked, borders[asked, 3], pieces[asked, 3] > 0), texts) if len(asked) else turns
        )

    def _with_prompts(
        self, turns: TurnBorders, asked: tuple[Ints, Ints, npt.NDArray[np.bool_]], texts: tuple[bytes, Ints]
    ) -> TurnBorders:
        """The turns with the prompts of some as what opens them: which, their first pieces, and if these are stops."""
        numbers, begins, follows = asked
        text, at = texts[0], flat_offsets(texts[1])
        starts, stops = at[begins], at[turns.start[numbers]]
        encoded = self._choice.encode_batch([text[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)])
        own = np.diff(encoded.offsets)
        sizes, opened = np.diff(turns.opening_offsets), turns.opened.copy()
        sizes[numbers] = own
        opened[numbers] = np.where(own > follows, stops - starts, _NO_PROMPT)
        offsets = flat_offsets(sizes)
        opening = np.empty(offsets[-1], dtype=np.int32)
        is_prompt = np.zeros(len(sizes), dtype=np.bool_)
        is_prompt[numbers] = True
        of_prompts = np.repeat(is_prompt, sizes)
        opening[of_prompts], opening[~of_prompts] = encoded.ids, turns.opening
        return replace(turns, opened=opened, opening=opening, opening_offsets=offsets)


_NOTHING: Final = (0, np.zeros(0, dtype=np.int32))
_NO_PROMPT: Final = -1
"""Bytes before a completion where no token is before it: no token begins behind it, so that it is not exact."""


def taken(sizes: Ints, chosen: Ints) -> tuple[Ints, Ints]:
    """Of runs of these sizes, end to end, those that are chosen: their offsets, and where each item of theirs lies."""
    counts = sizes[chosen]
    offsets = flat_offsets(counts)
    begins = flat_offsets(sizes)[:-1][chosen]
    return offsets, np.repeat(begins - offsets[:-1], counts) + np.arange(offsets[-1])


def _sizes(texts: Sequence[bytes]) -> Ints:
    return np.fromiter(map(len, texts), np.int64, len(texts))
