"""The proof of a batch in its obvious form: a loop over samples, turns and tokens."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from sftprep.stages.encode_batch import Batch, EncodedTexts, TokenTable

Span = tuple[int, int, int, float]
"""Start, kind, message, weight."""


def proven(batch: Batch, encoded: EncodedTexts, table: TokenTable) -> tuple[list[bool], list[list[Span]]]:
    """Which samples are exact, and the spans of each; no spans where any sample does not decode to its text."""
    ends = list(itertools.accumulate(batch.sample_bytes.tolist()))
    texts = [batch.text[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    ids = [encoded.ids[a:b].tolist() for a, b in itertools.pairwise(encoded.offsets.tolist())]
    joins = _joins(encoded)
    tokens = [written(own, table, join) for own, join in zip(ids, joins, strict=True)]
    decoded = [b"".join(own) == text for own, text in zip(tokens, texts, strict=True)]
    if not all(decoded):
        return decoded, [[] for _ in texts]
    control = [sum(bool(table.is_control[i]) for i in own) for own in ids]
    ok = [found == wanted for found, wanted in zip(control, batch.num_control.tolist(), strict=True)]
    laid = _Laid.of(batch, ids, tokens)
    laid.joins = [
        first + join if join >= 0 else -1 for first, join in zip(encoded.offsets.tolist(), joins, strict=False)
    ]
    for turn, sample in enumerate(batch.turns.sample.tolist()):
        ok[sample] = ok[sample] and _is_exact(batch, turn, laid, table)
    return ok, [_spans(batch, laid, sample, encoded.offsets.tolist()) for sample in range(len(texts))]


@dataclass
class _Laid:
    """All tokens of a batch, where each begins, and where each piece does."""

    ids: list[int]
    begins: list[int]
    pieces: list[int]
    joins: list[int]

    @classmethod
    def of(cls, batch: Batch, ids: Sequence[Sequence[int]], tokens: Sequence[Sequence[bytes]]) -> _Laid:
        return cls(
            ids=[i for own in ids for i in own],
            begins=[0, *itertools.accumulate(len(token) for own in tokens for token in own)],
            pieces=[0, *itertools.accumulate(batch.piece_bytes.tolist())],
            joins=[],
        )

    def token(self, piece: int) -> int:
        """The first token that begins at a piece or behind it."""
        return bisect_left(self.begins, self.pieces[piece])


def _joins(encoded: EncodedTexts) -> list[int]:
    """Of each text the token of its own before which two encodes were joined, else -1."""
    texts = itertools.pairwise(encoded.offsets.tolist())
    return [next((join - a for join in encoded.joins.tolist() if a <= join < b), -1) for a, b in texts]


def written(ids: Sequence[int], table: TokenTable, join: int = -1) -> list[bytes]:
    """The bytes of each token of a text, which is joined before a token where that is not -1."""
    found: list[bytes] = []
    for number, token in enumerate(ids):
        piece: bytes = table.pieces[token].as_py()
        if is_first(ids, number, table) and number != join:
            piece = piece[1:] if piece.startswith(b" ") else b"\xff"
        found.append(piece)
    return found


def is_first(ids: Sequence[int], number: int, table: TokenTable) -> bool:
    """Whether a token of a text is the first one behind nothing, or behind one that is cut out."""
    if table.prefix is None or table.prefix.cuts[ids[number]]:
        return False
    return number == 0 or (table.prefix.inside and bool(table.prefix.cuts[ids[number - 1]]))


def _is_exact(batch: Batch, turn: int, laid: _Laid, table: TokenTable) -> bool:
    turns = batch.turns
    start, stop_start, stop = (int(part[turn]) for part in (turns.start, turns.stop_start, turns.stop))
    begin, end = laid.token(start), laid.token(stop_start)
    opening = turns.opening[turns.opening_offsets[turn] : turns.opening_offsets[turn + 1]].tolist()
    first = begin - len(opening)
    join = laid.joins[int(turns.sample[turn])]
    if end >= len(laid.ids) or first < 0:
        return False
    return (
        laid.begins[begin] == laid.pieces[start]
        and laid.begins[end] == laid.pieces[stop_start]
        and laid.begins[end + 1] == laid.pieces[stop]
        and laid.ids[end] in table.stop_ids
        and laid.ids[first:begin] == opening
        and laid.begins[first] == laid.pieces[start] - int(turns.opened[turn])
        and (join == begin or not is_first(laid.ids, begin, table))
        and (join < 0 or (join == begin and not (table.prefix and table.prefix.cuts[laid.ids[begin]])))
    )


def _spans(batch: Batch, laid: _Laid, sample: int, offsets: Sequence[int]) -> list[Span]:
    segments = list(range(*batch.segment_offsets[sample : sample + 2].tolist()))
    firsts = [laid.token(int(batch.segments[segment])) for segment in segments]
    found: list[Span] = []
    for token in range(offsets[sample], offsets[sample + 1]):
        segment = segments[bisect_right(firsts, token) - 1]
        label = (int(batch.kinds[segment]), int(batch.messages[segment]))
        if not found or found[-1][1:3] != label:
            found.append((token - offsets[sample], *label, float(batch.weights[segment])))
    return found
