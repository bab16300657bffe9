"""Many replayed samples to tokens at once: ids, spans, and the proof of each, without a loop over tokens.

The bytes of the tokens, joined, must be the bytes of the texts: that is the decode proof, and it gives the borders.
A tokenizer that puts a space before a text gives that back: its token counts without the space, and begins no turn.
A turn is exact where a token begins at its completion, the ids before that are those of the opening encoded alone
behind a token at which every encode is cut, and one stop token ends it. A sample has as many control tokens as its
template writes: one more was joined from pieces of which somebody typed one. A sample that fails any of this has `ok`
False, and is for the slow path, which says why or finds another exact form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.arrow import numbers
from sftprep.data import span_stops

Ints = npt.NDArray[np.int64]


_NO_JOINS: Final[Ints] = np.zeros(0, dtype=np.int64)


class EncodedTexts(NamedTuple):
    """Texts encoded: `ids` int32 `[tokens]`, `offsets` int64 `[texts + 1]`.

    `joins`, int64: tokens before which two encodes were joined, at most one of each text, ascending.
    """

    ids: npt.NDArray[np.int32]
    offsets: Ints
    joins: Ints = _NO_JOINS

    def only(self, numbers: Sequence[int] | Ints) -> EncodedTexts:
        """Some of the texts, in their order."""
        kept = [self.ids[self.offsets[number] : self.offsets[number + 1]] for number in numbers]
        offsets = flat_offsets([len(own) for own in kept])
        joins = self.join_of_each()[numbers]
        moved = (joins + offsets[:-1] - self.offsets[numbers])[joins >= 0]
        return EncodedTexts(np.concatenate([np.zeros(0, np.int32), *kept]), offsets, moved)

    def join_of_each(self) -> Ints:
        """Of each text the token before which it is joined, -1 where it is not. `[texts]`."""
        found = np.full(len(self.offsets) - 1, -1, dtype=np.int64)
        found[np.searchsorted(self.offsets, self.joins, side="right") - 1] = self.joins
        return found


def joined_texts(first: EncodedTexts, then: EncodedTexts, numbers: Sequence[int]) -> EncodedTexts:
    """The first texts, and behind those of these numbers, ascending, one of the others each."""
    sizes = np.zeros((len(first.offsets) - 1, 2), dtype=np.int64)
    sizes[:, 0] = np.diff(first.offsets)
    sizes[numbers, 1] = np.diff(then.offsets)
    offsets = flat_offsets(sizes.sum(axis=1))
    is_then = np.repeat(np.tile([False, True], len(sizes)), sizes.ravel())
    ids = np.empty(len(is_then), dtype=np.int32)
    ids[~is_then], ids[is_then] = first.ids, then.ids
    return EncodedTexts(ids, offsets, (offsets[:-1] + sizes[:, 0])[numbers])


@dataclass(frozen=True, slots=True)
class Prefix:
    """Where a tokenizer puts a space before a text that it is given or cuts off: SentencePiece's `▁`.

    `cuts`, bool `[vocabulary]`: ids that are cut out of a text before the space is put. `inside`: whether each stretch
    between two of them gets one, or only the one that a text begins with. `pieces`, Arrow binary `[2 * vocabulary]`:
    the bytes of each id, and then those without the space before them; where it has none, bytes that no text has.
    """

    cuts: npt.NDArray[np.bool_]
    inside: bool
    pieces: pa.Array

    def first(self, encoded: EncodedTexts) -> npt.NDArray[np.bool_]:
        """Which tokens begin with a space that their text has not. bool `[tokens]`."""
        found = np.zeros(len(encoded.ids), dtype=np.bool_)
        is_cut = self.cuts.take(encoded.ids)
        if self.inside:
            found[1:] = is_cut[:-1]
        found[encoded.offsets[:-1][encoded.offsets[:-1] < len(found)]] = True
        found &= ~is_cut
        found[encoded.joins] = False
        return found


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The bytes of each id: `pieces` Arrow binary `[vocabulary]`, `lengths` int64; ids that stop a model.

    `is_control`, bool `[vocabulary]`: which ids are control tokens. `prefix`: None where nothing is put before a text.
    """

    pieces: pa.Array
    lengths: Ints
    stop_ids: npt.NDArray[np.int32]
    is_control: npt.NDArray[np.bool_]
    prefix: Prefix | None = None

    def written(self, encoded: EncodedTexts) -> tuple[pa.Buffer, npt.NDArray[np.int32]]:
        """The bytes of all tokens, joined, and where each begins, int32 `[tokens + 1]`; last where the last one ends.

        Of the tokens that begin with a space which their text has not, the bytes behind it.
        """
        pieces, ids = self.pieces, encoded.ids
        if self.prefix is not None:
            pieces = self.prefix.pieces
            ids = ids + self.prefix.first(encoded).astype(np.int32) * np.int32(len(self.lengths))
        joined = pieces.take(numbers(ids))
        _, offsets, data = joined.buffers()
        if offsets is None or data is None or not len(joined):
            return pa.py_buffer(b""), np.zeros(len(joined) + 1, dtype=np.int32)
        bounds = np.frombuffer(offsets, dtype=np.int32, count=len(joined) + 1)
        return data.slice(0, int(bounds[-1])), bounds


@dataclass(frozen=True, slots=True)
class TurnBorders:
    """Turns of a batch, in pieces of the whole batch, int64 `[turns]` each.

    `sample` is whose turn it is; `opened` bytes before `start` begin the ids `opening[opening_offsets[i]:…]`,
    of which the first is a token that cuts every encode.
    """

    sample: Ints
    start: Ints
    stop_start: Ints
    stop: Ints
    opened: Ints
    opening: npt.NDArray[np.int32]
    opening_offsets: Ints


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of a batch: their texts' bytes end to end, the bytes of each piece, and the segments.

    `sample_bytes`, `piece_bytes` int64; `segments` is the piece at which each begins, with its kind, message and
    weight; `segment_offsets` int64 `[samples + 1]`. `num_control`, int64: control tokens that the template writes.
    """

    text: bytes
    sample_bytes: Ints
    piece_bytes: Ints
    segments: Ints
    kinds: npt.NDArray[np.int8]
    messages: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    segment_offsets: Ints
    num_control: Ints
    turns: TurnBorders


@dataclass(frozen=True, slots=True)
class Spans:
    """Spans of all samples: `starts` count from the sample's first token; `offsets` int64 `[samples + 1]`."""

    starts: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.int8]
    messages: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    offsets: Ints


def prove_batch(batch: Batch, encoded: EncodedTexts, table: TokenTable) -> tuple[npt.NDArray[np.bool_], Spans]:
    """Which samples are exact, bool `[samples]`, and the spans of all of them."""
    written, bounds = table.written(encoded)
    ok = _decoded(batch, written, bounds[encoded.offsets])
    if not ok.all():
        return ok, _no_spans(len(ok))
    # Of the same type: numpy would convert all borders at each search else.
    pieces = flat_offsets(batch.piece_bytes).astype(bounds.dtype)
    at = _Borders(pieces, np.searchsorted(bounds, pieces))
    exact = _exact_turns(batch.turns, at, (encoded, bounds), table)
    ok[batch.turns.sample[~exact]] = False
    is_control = np.flatnonzero(table.is_control.take(encoded.ids))
    ok &= np.diff(np.searchsorted(is_control, encoded.offsets)) == batch.num_control
    return ok, _spans(batch, at.tokens[batch.segments], encoded.offsets)


class _Borders(NamedTuple):
    """Where the pieces of a batch begin, and the last one ends: bytes int32, and the first token from there on."""

    bytes: npt.NDArray[np.int32]
    tokens: Ints


def _decoded(batch: Batch, written: pa.Buffer, bounds: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Of which samples the tokens' bytes are the text's bytes; `bounds` `[samples + 1]` are those of the tokens."""
    expected = flat_offsets(batch.sample_bytes)
    text = pa.py_buffer(batch.text)
    if np.array_equal(bounds, expected) and written.equals(text):
        return np.ones(len(batch.sample_bytes), dtype=np.bool_)
    pairs = zip(bounds[:-1], np.diff(bounds), expected[:-1], np.diff(expected), strict=True)
    equal = [m == n and written.slice(int(a), int(m)).equals(text.slice(int(b), int(n))) for a, m, b, n in pairs]
    return np.array(equal, dtype=np.bool_)


def _exact_turns(
    turns: TurnBorders, at: _Borders, tokens: tuple[EncodedTexts, npt.NDArray[np.int32]], table: TokenTable
) -> npt.NDArray[np.bool_]:
    """Which turns begin behind the ids of their opening and end in one stop token; `tokens`: ids, and their borders."""
    encoded, bounds = tokens
    ids, last = encoded.ids, len(encoded.ids) - 1
    begin, stop = at.bytes[turns.start], at.bytes[turns.stop_start]
    at_begin, at_stop = at.tokens[turns.start], np.minimum(at.tokens[turns.stop_start], last)
    exact = (bounds[at_begin] == begin) & (bounds[at_stop] == stop) & (bounds[at_stop + 1] == at.bytes[turns.stop])
    exact &= (ids[at_stop][:, None] == table.stop_ids).any(axis=1)
    if table.prefix is not None:
        exact &= _begins_bare(at_begin, turns.sample, encoded, table.prefix)
    counts = np.diff(turns.opening_offsets)
    first = np.maximum(at_begin - counts, 0)
    exact &= (bounds[first] == begin - turns.opened.astype(begin.dtype)) & (first + counts == at_begin)
    place = np.repeat(first - turns.opening_offsets[:-1], counts) + np.arange(len(turns.opening))
    equal = ids[np.minimum(place, last)] == turns.opening
    differing = np.add.reduceat(np.append(~equal, False), turns.opening_offsets[:-1]) if len(counts) else counts
    proven: npt.NDArray[np.bool_] = exact & ((counts == 0) | (differing == 0))
    return proven


def _begins_bare(at_begin: Ints, samples: Ints, encoded: EncodedTexts, prefix: Prefix) -> npt.NDArray[np.bool_]:
    """Which turns begin without a space that the tokenizer put there, or where it would have, had nothing been joined.

    Before a token that is cut out itself it puts none: such a turn was to be encoded with its prompt.
    """
    begin = np.minimum(at_begin, len(encoded.ids) - 1)
    bare: npt.NDArray[np.bool_] = ~prefix.first(encoded)[begin]
    if len(encoded.joins):
        # Joined elsewhere, it would begin with the space.
        bare &= (encoded.join_of_each()[samples] < 0) | ~prefix.cuts[encoded.ids[begin]]
    return bare


def _spans(batch: Batch, tokens: Ints, offsets: Ints) -> Spans:
    """Segments to spans: those without a token are dropped, neighbours of one kind and message joined."""
    sample = np.repeat(np.arange(len(offsets) - 1), np.diff(batch.segment_offsets))
    kept = np.flatnonzero(span_stops(tokens, batch.segment_offsets, offsets[1:]) > tokens)
    kinds, messages, owner = batch.kinds[kept], batch.messages[kept], sample[kept]
    begins = np.ones(len(kept), dtype=np.bool_)
    begins[1:] = (kinds[1:] != kinds[:-1]) | (messages[1:] != messages[:-1]) | (owner[1:] != owner[:-1])
    kept, owner = kept[begins], owner[begins]
    counts = np.bincount(owner, minlength=len(offsets) - 1)
    return Spans(
        starts=(tokens[kept] - offsets[owner]).astype(np.int32),
        kinds=batch.kinds[kept],
        messages=batch.messages[kept],
        weights=batch.weights[kept],
        offsets=np.concatenate([[0], np.cumsum(counts)]),
    )


def _no_spans(num_samples: int) -> Spans:
    empty = np.zeros(0, dtype=np.int32)
    offsets = np.zeros(num_samples + 1, dtype=np.int64)
    return Spans(empty, empty.astype(np.int8), empty, empty.astype(np.float32), offsets)


def flat_offsets(counts: Sequence[int] | Ints) -> Ints:
    """Offsets of runs of these sizes, int64 `[n + 1]`."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))])
