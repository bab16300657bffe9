"""Samples to documents: token ids, and for every token why it is, or is not, trained.

The ids of a prompt are those of the prompt's text alone, as a server encodes it. A stop token cuts an encode, so the
text between two of them is proven by itself: its encode must begin with the encode of its prompt part. Where a token
straddles the border instead, the completion is encoded as text in the middle, and the turn gets a document of its own,
because a server encodes that answer otherwise once it is history.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sftprep.data import TRAINED_KINDS, Document, Encoded, Engine, Sample, SpanKind, TokenSpan, TrainedTurn
from sftprep.errors import MaskError

_OF_TURNS = [*(int(kind) for kind in TRAINED_KINDS), int(SpanKind.MASKED)]
_ANCHOR_TOKENS = 8
"""How many tokens before a completion are decoded with it, so that a decoder does not treat it as a text's start."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a sample's text that is encoded by itself: `[base, stop)`; its first `skip` tokens are not its own.

    `prompt_stop` is where its prompt part ends: the start of `turn`'s completion, or the end where there is no turn.
    """

    base: int
    prompt_stop: int
    stop: int
    skip: int
    turn: TrainedTurn | None


@dataclass(frozen=True, slots=True)
class _Part:
    """An encoded piece without the skipped tokens: `prompt` are the server's ids, `whole` those of the full piece."""

    piece: _Piece
    prompt: npt.NDArray[np.int32]
    whole: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    clean: bool


def encode(samples: Sequence[Sample], *, engine: Engine, stop_ids: frozenset[int]) -> list[Document]:
    """Encode the samples of one conversation; documents are numbered in order.

    Raises:
        MaskError: `lossy-tokenizer` when ids do not decode to the text, `stop-not-one-token` when a completion does
            not end in a stop id, `no-prompt` when nothing precedes a completion.
    """
    documents: list[Document] = []
    for sample in samples:
        for ids, spans in _documents(sample, engine, stop_ids):
            number = len(documents)
            documents.append(Document(sample.address, number, ids, spans, sample.template_kwargs))
    return documents


def _documents(
    sample: Sample, engine: Engine, stop_ids: frozenset[int]
) -> Iterator[tuple[npt.NDArray[np.int32], tuple[TokenSpan, ...]]]:
    if sample.written_tokens is not None:
        engine, sample = _as_written(sample, sample.written_tokens, engine)
    if not sample.is_exact:
        yield _labelled_document(sample, engine, stop_ids)
        return
    parts = _encoded_parts(sample, engine)
    straddled = frozenset(p.piece.turn.message for p in parts if p.piece.turn is not None and not p.clean)
    if len(straddled) < len(sample.turns):
        labels = [_labels(sample, part, straddled) for part in parts]
        yield _assemble(sample, [part.whole for part in parts], labels, stop_ids)
    for number, part in enumerate(parts):
        if part.piece.turn is not None and part.piece.turn.message in straddled:
            yield _straddled_document(sample, parts[: number + 1], engine, stop_ids)


def _as_written(sample: Sample, written: Sequence[tuple[int, int]], engine: Engine) -> tuple[Engine, Sample]:
    """The sample and an engine in which nothing that somebody typed is a control token."""
    hiding, text = engine.as_written(sample.text, written)
    stops = np.array([stop for _, stop in written], dtype=np.int64)
    gone = np.concatenate([[0], np.cumsum([stop - start - 1 for start, stop in written], dtype=np.int64)])

    def moved(position: int) -> int:
        return position - int(gone[np.searchsorted(stops, position, side="right")])

    segments = [s._replace(start=moved(s.start), stop=moved(s.stop)) for s in sample.segments]
    turns = [replace(t, start=moved(t.start), stop=moved(t.stop)) for t in sample.turns]
    return hiding, replace(sample, text=text, segments=segments, turns=turns, written_tokens=None)


def _labelled_document(
    sample: Sample, engine: Engine, stop_ids: frozenset[int]
) -> tuple[npt.NDArray[np.int32], tuple[TokenSpan, ...]]:
    """The whole text encoded once and labelled by offsets, for turns that nobody proves."""
    (encoded,) = engine.encode([sample.text])
    kinds, messages = _by_offsets(sample, encoded.offsets)
    return _assemble(sample, [encoded.ids], [(kinds, messages)], stop_ids)


def _pieces(sample: Sample, engine: Engine) -> Iterator[_Piece]:
    """Cut the text at the stop tokens of its turns, where the tokenizer cuts it too."""
    base, begin, skip = 0, 0, 0
    for turn in sample.turns:
        yield _Piece(base=base, prompt_stop=turn.start, stop=turn.stop, skip=skip, turn=turn)
        stop_token = _stop_text(sample, turn)
        begin = turn.stop
        if stop_token and engine.cuts(stop_token):
            base, skip = begin - len(stop_token), 1
        else:
            base, skip = 0, -1
    if begin < len(sample.text):
        yield _Piece(base=base, prompt_stop=len(sample.text), stop=len(sample.text), skip=skip, turn=None)


def _stop_text(sample: Sample, turn: TrainedTurn) -> str:
    """The text of the stop token that ends a turn; empty where it has none."""
    stops = [s for s in sample.segments if s.kind is SpanKind.STOP and s.stop == turn.stop]
    return sample.text[stops[0].start : stops[0].stop] if stops else ""


def _encoded_parts(sample: Sample, engine: Engine) -> list[_Part]:
    pieces = list(_pieces(sample, engine))
    texts = [text for p in pieces for text in (sample.text[p.base : p.prompt_stop], sample.text[p.base : p.stop])]
    encoded = engine.encode(texts)
    parts: list[_Part] = []
    done = 0
    for piece, prompt, whole in zip(pieces, encoded[::2], encoded[1::2], strict=True):
        # A piece that begins at the text's start again repeats all that came before it.
        skip = done if piece.skip < 0 else piece.skip
        part = _part(sample, engine, piece, (prompt, whole, skip))
        done += len(part.whole)
        parts.append(part)
    return parts


def _part(sample: Sample, engine: Engine, piece: _Piece, encoded: tuple[Encoded, Encoded, int]) -> _Part:
    prompt, whole, skip = encoded
    size = len(prompt.ids)
    if piece.turn is not None and size - skip <= 0:
        raise MaskError("no token precedes the completion", code="no-prompt", place=_place(piece.turn))
    clean = len(whole.ids) > size and bool(np.array_equal(whole.ids[:size], prompt.ids))
    if piece.turn is not None and clean:
        completion = sample.text[piece.prompt_stop : piece.stop]
        clean = _decodes_to(engine, (whole.ids[:size], whole.ids[size:]), completion)
    return _Part(
        piece=piece,
        prompt=prompt.ids[skip:],
        whole=whole.ids[skip:],
        offsets=whole.offsets[skip:] + piece.base,
        clean=clean or piece.turn is None,
    )


def _decodes_to(engine: Engine, ids: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]], completion: str) -> bool:
    """Whether decode(prompt + completion ids) == decode(prompt ids) + completion, as far as the normaliser lets it."""
    before, after = ids
    for anchor in (before[-_ANCHOR_TOKENS:], before):
        opening = engine.decode(anchor.tolist())
        text = engine.decode([*anchor.tolist(), *after.tolist()])
        if text == opening + completion or text == opening + engine.normalise(completion):
            return True
    return False


def _labels(
    sample: Sample, part: _Part, straddled: frozenset[int]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """Kind and message of each token of a part: proven for the completion, by character offsets for the rest."""
    token_kinds, token_messages = _by_offsets(sample, part.offsets)
    token_kinds[np.isin(token_kinds, _OF_TURNS)] = SpanKind.HEADER
    turn = part.piece.turn
    if turn is None:
        return token_kinds, token_messages
    size = len(part.prompt)
    token_messages[size:] = turn.message
    if turn.message in straddled:
        token_kinds[size:] = SpanKind.HISTORY
    else:
        token_kinds[size:] = _completion_kinds(sample, turn, part.offsets[size:])
    return token_kinds, token_messages


def _by_offsets(sample: Sample, offsets: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32]]:
    """Kind and message of the segment in which each token's first character lies."""
    starts = np.array([segment.start for segment in sample.segments], dtype=np.int64)
    kinds = np.array([segment.kind for segment in sample.segments], dtype=np.int8)
    messages = np.array([segment.message for segment in sample.segments], dtype=np.int32)
    at = np.searchsorted(starts, offsets[:, 0], side="right") - 1
    return kinds[at], messages[at]


def _completion_kinds(sample: Sample, turn: TrainedTurn, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    """Kinds of a completion's tokens: masked where a token lies within what policy masks, the last one its stop."""
    kinds = np.full(len(offsets), SpanKind.COMPLETION, dtype=np.int8)
    for segment in sample.segments:
        if segment.kind is SpanKind.MASKED and segment.message == turn.message:
            kinds[(offsets[:, 0] >= segment.start) & (offsets[:, 1] <= segment.stop)] = SpanKind.MASKED
    if _stop_text(sample, turn):
        kinds[-1] = SpanKind.STOP
    return kinds


def _straddled_document(
    sample: Sample, parts: Sequence[_Part], engine: Engine, stop_ids: frozenset[int]
) -> tuple[npt.NDArray[np.int32], tuple[TokenSpan, ...]]:
    """Prompt as the server encodes it, completion as text in its middle; earlier turns are context."""
    *before, last = parts
    turn = last.piece.turn
    if turn is None:
        raise AssertionError("a straddled part has a turn")
    completion = sample.text[turn.start : turn.stop]
    encoded = engine.encode_middle(completion)
    ids = encoded.ids
    if not _decodes_to(engine, (last.prompt, ids), completion):
        raise MaskError(
            "the tokenizer cannot write the completion: its ids decode to another text",
            code="lossy-tokenizer",
            place=_place(turn),
            hint="the text holds characters that this tokenizer drops or joins",
        )
    others = frozenset(t.message for t in sample.turns)
    labels = [_labels(sample, part, others) for part in before]
    size = len(last.prompt)
    kinds, messages = _labels(sample, last, others)
    own = _completion_kinds(sample, turn, encoded.offsets + turn.start)
    tail = np.full(len(ids), turn.message, dtype=np.int32)
    prompt_kinds = _stretched(kinds[:size], size)
    labels.append((np.concatenate([prompt_kinds, own]), np.concatenate([_stretched(messages[:size], size), tail])))
    whole = [*(part.whole for part in before), np.concatenate([last.prompt, ids])]
    return _assemble(sample, whole, labels, stop_ids)


def _stretched(labels: npt.NDArray[np.generic], size: int) -> npt.NDArray[np.generic]:
    """Labels for `size` tokens from those of as many or fewer: a prompt alone may have more tokens than merged."""
    return np.pad(labels, (0, size - len(labels)), mode="edge")


def _assemble(
    sample: Sample,
    ids: Sequence[npt.NDArray[np.int32]],
    labels: Sequence[tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]],
    stop_ids: frozenset[int],
) -> tuple[npt.NDArray[np.int32], tuple[TokenSpan, ...]]:
    all_ids = np.concatenate(list(ids))
    spans = tuple(_spans(sample, np.concatenate([k for k, _ in labels]), np.concatenate([m for _, m in labels])))
    for span in spans:
        is_stop = span.kind is SpanKind.STOP
        if is_stop and (span.stop - span.start != 1 or int(all_ids[span.start]) not in stop_ids):
            raise MaskError(
                "the completion does not end in the id of a stop token",
                code="stop-not-one-token",
                place=f"/messages/{span.message}",
                hint="the tokenizer does not know the template's stop token as one token",
            )
    return all_ids, spans


def _spans(sample: Sample, kinds: npt.NDArray[np.generic], messages: npt.NDArray[np.generic]) -> Iterator[TokenSpan]:
    weights = {turn.message: turn.weight for turn in sample.turns}
    changes = np.flatnonzero((kinds[1:] != kinds[:-1]) | (messages[1:] != messages[:-1])) + 1
    borders = [0, *changes.tolist(), len(kinds)]
    for start, stop in itertools.pairwise(borders):
        kind, message = SpanKind(int(kinds[start])), int(messages[start])
        weight = weights[message] if kind in TRAINED_KINDS else 0.0
        yield TokenSpan(start=start, stop=stop, kind=kind, message=message, weight=weight)


def _place(turn: TrainedTurn) -> str:
    return f"/messages/{turn.message}"
