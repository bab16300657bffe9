"""Documents that are encoded again by the reference, and the prompts of their turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sftprep.arrow import numbers
from sftprep.data import RowAddress
from sftprep.engines.fast import EngineChoice
from sftprep.errors import EngineDiffersError
from sftprep.stages.encode_batch import EncodedTexts, TokenTable, flat_offsets

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class DrawnDocument:
    """A document: its row's place, its ids, int32 `[tokens]`, and the first token of each trained turn.

    The one turn of what `is_joined` is encoded apart from its prompt.
    """

    address: RowAddress
    ids: Ids
    begins: Sequence[int]
    is_joined: bool


class _Expected(NamedTuple):
    """A text and the ids that it was given; and where."""

    text: bytes
    ids: Ids
    address: RowAddress


def check_ids(drawn: Sequence[DrawnDocument], choice: EngineChoice, table: TokenTable) -> None:
    """EngineDiffersError where the reference encodes a document, or the prompt of a turn, otherwise.

    A document is encoded whole. Its prompts are its beginnings: of each the last piece is encoded, from the token on
    before which the document and the prompt are cut alike, and most rows share that piece.
    """
    wanted = [expected for document in drawn for expected in _expected(document, choice, table)]
    texts = {text: number for number, text in enumerate(dict.fromkeys(expected.text for expected in wanted))}
    found = choice.reference.encode_batch(list(texts))
    for text, ids, address in wanted:
        if not np.array_equal(found.ids[slice(*found.offsets[texts[text] :][:2])], ids):
            raise _differs(address, choice)
    for document in drawn:
        if document.is_joined and not _is_middle(document, choice, table):
            raise _differs(document.address, choice)


def _expected(document: DrawnDocument, choice: EngineChoice, table: TokenTable) -> Iterator[_Expected]:
    """What the whole document is to be encoded to, and the last piece of each prompt."""
    ids = document.ids[: document.begins[0]] if document.is_joined else document.ids
    # The bytes of the ids are those of the text: that was proven.
    written, bounds = table.written(EncodedTexts(ids, flat_offsets([len(ids)])))
    text = written.to_pybytes()
    yield _Expected(text, ids, document.address)
    for begin in () if document.is_joined else document.begins:
        stop = int(bounds[begin])
        start = choice.cutter.last_piece(text, stop)
        yield _Expected(text[start:stop], ids[np.searchsorted(bounds, start) : begin], document.address)


def _is_middle(document: DrawnDocument, choice: EngineChoice, table: TokenTable) -> bool:
    """Whether a completion that is encoded apart from its prompt has the ids of a text in the middle."""
    (begin,) = document.begins
    ids = document.ids[begin:]
    completion = b"".join(table.pieces.take(numbers(ids)).to_pylist()).decode()
    return np.array_equal(choice.reference.encode_middle(completion).ids, ids)


def _differs(address: RowAddress, choice: EngineChoice) -> EngineDiffersError:
    return EngineDiffersError(
        f"{choice.engine.name} gives other ids than the reference",
        code="engine-differs",
        place=str(address),
        hint="--tokenizer-engine reference",
    )
