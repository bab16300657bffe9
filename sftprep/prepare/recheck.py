"""A sample of replayed rows, done again the slow way: by the reference tokenizer, and by the template itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.arrow import list_values
from sftprep.data import TRAINED_KINDS, Conversation, Document
from sftprep.engines.fast import EngineChoice
from sftprep.errors import DataError, MaskError
from sftprep.prepare.batch import Replayed
from sftprep.prepare.chunk import InputRow
from sftprep.prepare.input_rows import InputRows
from sftprep.prepare.own_documents import JoinedSample
from sftprep.prepare.recheck_ids import DrawnDocument, check_ids
from sftprep.stages.encode_batch import TokenTable

_ENCODED_AGAIN: Final = 256
_COMPILED_AGAIN: Final = 1024
_REFUSED_AGAIN: Final = 64
"""One row in so many is encoded again by the reference, compiled again without its plan, refused again without it."""

_SPANS: Final = ["span_starts", "span_kinds", "span_messages"]


class RowDocuments(Protocol):
    """What compiling a row gives."""

    @property
    def documents(self) -> Sequence[Document]:
        """Its documents."""


CompileAgain = Callable[[Conversation], RowDocuments]


def recheck(
    rows: InputRows,
    replayed: Replayed,
    compile_row: CompileAgain,
    *,
    tokens: tuple[EngineChoice, TokenTable],
) -> int:
    """Encode a sample of replayed rows again, compile smaller ones without plans; how many were encoded.

    Raises:
        EngineDiffersError: the engine gave other ids than the reference.
        DataError: `replay-differs` where a plan made another document than the template, or another error.
    """
    lines = np.array(rows.lines, dtype=np.uint64)
    of_replayed = lines[replayed.rows]
    encoded = _drawn(of_replayed, one_in=_ENCODED_AGAIN)
    check_ids([document for place in encoded for document in _documents(rows, replayed, place)], *tokens)
    for place in _drawn(of_replayed, one_in=_COMPILED_AGAIN):
        row, documents = rows[replayed.rows[place]], slice(*replayed.offsets[place : place + 2].tolist())
        if row.conversation is not None:
            _refuse_other(row, replayed.documents[documents], compile_row(row.conversation))
    refused = np.array(list(replayed.refused), dtype=np.int64)
    for number in refused[_drawn(lines[refused], one_in=_REFUSED_AGAIN)].tolist():
        row = rows[number]
        if row.conversation is not None:
            _refuse_other_error(row, replayed.refused[number], row.conversation, compile_row)
    return len(encoded)


def _drawn(lines: npt.NDArray[np.uint64], *, one_in: int) -> list[int]:
    """The places of the rows that are in the sample: by their lines alone, so that they are the same in every run."""
    places: list[int] = np.flatnonzero(
        (lines * np.uint64(2654435761) >> np.uint64(7)) % np.uint64(one_in) == 0
    ).tolist()
    return places


def _documents(rows: InputRows, replayed: Replayed, place: int) -> Iterator[DrawnDocument]:
    """The documents of a replayed row."""
    row = rows[replayed.rows[place]]
    for number, sample in enumerate(replayed.plan(place).samples, int(replayed.offsets[place])):
        (document,) = replayed.documents[number : number + 1].select(_SPANS).to_pylist()
        ids = list_values(replayed.documents["input_ids"][number : number + 1])
        yield DrawnDocument(row.address, ids, _turn_begins(document), is_joined=isinstance(sample, JoinedSample))


def _turn_begins(document: Mapping[str, Any]) -> list[int]:
    """The first token of each trained turn."""
    spans = list(zip(*(document[name] for name in _SPANS), strict=True))
    trained = [(start, message) for start, kind, message in spans if kind in TRAINED_KINDS]
    return [start for number, (start, message) in enumerate(trained) if not number or trained[number - 1][1] != message]


def _refuse_other(row: InputRow, own: pa.RecordBatch, compiled: RowDocuments) -> None:
    """DataError where a row was not replayed as the documents that it was compiled to."""
    spans = {"span_starts": "start", "span_kinds": "kind", "span_messages": "message", "span_weights": "weight"}
    documents = compiled.documents
    expected = {
        column: [[float(getattr(s, name)) for s in d.spans] for d in documents] for column, name in spans.items()
    }
    expected["input_ids"] = [document.ids.tolist() for document in documents]
    if any(own[column].to_pylist() != values for column, values in expected.items()):
        raise _differs(row, "makes another document of it than the template")


def _refuse_other_error(row: InputRow, error: MaskError, conversation: Conversation, compile_row: CompileAgain) -> None:
    """DataError where the template does not refuse a row as its plan does."""
    try:
        compile_row(conversation)
    except MaskError as own:
        if (own.code, own.place, own.message, own.hint) == (error.code, error.place, error.message, error.hint):
            return
    raise _differs(row, f"says {error.code} of it, and the template does not")


def _differs(row: InputRow, what: str) -> DataError:
    return DataError(
        f"the row's plan {what}: a fault of sftprep's own",
        code="replay-differs",
        place=str(row.address),
        hint="report it with this row; --no-plans packs without plans",
    )
