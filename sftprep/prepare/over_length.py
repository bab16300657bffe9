"""A conversation that is longer than a row, as conversations that fit: each is compiled and proven like any other.

A piece is the system messages and a run of messages: one that begins where the conversation does, or at a question.
What precedes a turn in it is then exactly what a server is fed by a client that has forgotten what came before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sftprep.config.pack import OverLength
from sftprep.data import TRAINED_KINDS, Conversation, Document, Role
from sftprep.errors import MaskError, TemplateError
from sftprep.prepare.compile import CompiledRow, CompileRow


@dataclass(frozen=True, slots=True)
class Shortened:
    """What is packed of a conversation (no document where nothing fits), and the trained messages that are not."""

    compiled: CompiledRow
    lost: tuple[int, ...]
    num_trained_lost: int


@dataclass(frozen=True, slots=True)
class _Piece:
    stop: int
    compiled: CompiledRow


def trained_by_message(documents: Sequence[Document]) -> dict[int, int]:
    """Trained tokens of each message that is trained."""
    counts: Counter[int] = Counter()
    for document in documents:
        for span in document.spans:
            counts[span.message] += (span.stop - span.start) * (span.kind in TRAINED_KINDS)
    return dict(+counts)


class Shortener:
    """Shortens conversations to documents of at most `max_length` tokens, by the one rule of `policy`."""

    def __init__(self, compile_row: CompileRow, *, max_length: int, policy: OverLength) -> None:
        self._compile_row = compile_row
        self._max_length = max_length
        self._policy = policy

    def __call__(self, conversation: Conversation, whole: CompiledRow) -> Shortened:
        """Pieces of a conversation whose `whole` has a document that is too long; each turn is trained at most once.

        Raises:
            MaskError: a piece cannot be exact; its place is in the conversation.
        """
        trained = trained_by_message(whole.documents)
        stops = _turn_stops(conversation, trained)
        pieces: list[_Piece] = []
        done = 0
        for start in self._starts(conversation):
            if start < done:
                continue
            piece = self._longest(conversation, start, [stop for stop in stops if stop > start])
            if piece is not None:
                pieces.append(piece)
                done = piece.stop
        compiled = _joined([piece.compiled for piece in pieces], remark=self._policy.value)
        kept = trained_by_message(compiled.documents)
        lost = tuple(message for message in sorted(trained) if message not in kept)
        return Shortened(compiled, lost, sum(trained[message] for message in lost))

    def _starts(self, conversation: Conversation) -> list[int]:
        first = num_system(conversation)
        if self._policy is OverLength.TRUNCATE_AT_TURN:
            return [first]
        later = range(first + 1, len(conversation.messages))
        return [first, *(index for index in later if conversation.messages[index].get("role") == Role.USER)]

    def _longest(self, conversation: Conversation, start: int, stops: Sequence[int]) -> _Piece | None:
        """The piece from `start` to the last of `stops` with which it fits; None where it fits with none.

        More turns make a longer piece, so the middle of what is undecided is tried; the shortest first, as most
        pieces that do not fit fail there.
        """
        best: _Piece | None = None
        low, high = 0, len(stops)
        while low < high:
            middle = low if best is None else (low + high) // 2
            compiled = self._compiled(conversation, start, stops[middle])
            if max(len(document.ids) for document in compiled.documents) <= self._max_length:
                best, low = _Piece(stops[middle], compiled), middle + 1
            else:
                high = middle
        return best

    def _compiled(self, conversation: Conversation, start: int, stop: int) -> CompiledRow:
        piece, origin = without_messages(conversation, start, stop)
        try:
            compiled = self._compile_row(piece)
        except (MaskError, TemplateError) as error:
            place = re.sub(r"(?<=^/messages/)\d+", lambda found: str(origin[int(found.group())]), error.place)
            raise MaskError(error.message, code=error.code, place=place or "/messages", hint=error.hint) from error
        documents = tuple(_with_messages(document, origin) for document in compiled.documents)
        return replace(compiled, documents=documents)


def without_messages(conversation: Conversation, start: int, stop: int | None = None) -> tuple[Conversation, list[int]]:
    """The leading messages of the system and those of `[start, stop)`, and which message of the whole each one is."""
    stop = len(conversation.messages) if stop is None else stop
    origin = [*range(min(start, num_system(conversation))), *range(start, stop)]
    messages = [conversation.messages[index] for index in origin]
    weights = [conversation.weights[index] for index in origin]
    return replace(conversation, messages=messages, weights=weights), origin


def num_system(conversation: Conversation) -> int:
    """Leading messages of the system, which every piece keeps."""
    roles = [message.get("role") for message in conversation.messages]
    return next((index for index, role in enumerate(roles) if role not in (Role.SYSTEM, Role.DEVELOPER)), len(roles))


def _turn_stops(conversation: Conversation, trained: Mapping[int, int]) -> list[int]:
    """Where a piece may end: behind an answer that the whole trains, and behind the answers that follow it at once.

    So no piece trains a turn that the whole does not: what stands before a trained turn is as it is in the whole.
    """
    stops: list[int] = []
    for message in sorted(trained):
        stop = message + 1
        while stop < len(conversation.messages) and conversation.messages[stop].get("role") == Role.ASSISTANT:
            stop += 1
        stops.append(stop)
    return sorted(set(stops))


def _with_messages(document: Document, origin: Sequence[int]) -> Document:
    spans = (replace(s, message=origin[s.message] if s.message >= 0 else s.message) for s in document.spans)
    return replace(document, spans=tuple(spans))


def _joined(pieces: Sequence[CompiledRow], *, remark: str) -> CompiledRow:
    """The documents of all pieces, numbered through."""
    documents = [document for piece in pieces for document in piece.documents]
    classes = sum((Counter(piece.classes) for piece in pieces), Counter[str]())
    remarks = sum((Counter(piece.remarks) for piece in pieces), Counter({remark: 1}))
    numbered = (replace(document, sample=number) for number, document in enumerate(documents))
    return CompiledRow(tuple(numbered), classes, remarks)
