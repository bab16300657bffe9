"""A sample of replayed rows, done again the slow way: by the reference tokenizer, and by the template itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa

from sftprep.arrow import numbers
from sftprep.data import TRAINED_KINDS, Conversation, Document
from sftprep.engines.fast import EngineChoice
from sftprep.errors import DataError, EngineDiffersError, MaskError
from sftprep.prepare.batch import Replayed
from sftprep.prepare.chunk import InputRow
from sftprep.prepare.input_rows import InputRows
from sftprep.prepare.own_documents import JoinedSample
from sftprep.stages.encode_batch import EncodedTexts, TokenTable, flat_offsets
from sftprep.stages.replay import SamplePlan

_ENCODED_AGAIN: Final = 256
_COMPILED_AGAIN: Final = 1024
_REFUSED_AGAIN: Final = 64
"""One row in so many is encoded again by the reference, compiled again without its plan, refused again without it."""


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
    encoded = [
        place for place, number in enumerate(replayed.rows) if _is_drawn(rows.lines[number], one_in=_ENCODED_AGAIN)
    ]
    for place in encoded:
        number, documents = replayed.rows[place], slice(*replayed.offsets[place : place + 2].tolist())
        for sample, document in zip(
            replayed.plans[place].samples, replayed.documents[documents].to_pylist(), strict=True
        ):
            _check_ids(rows[number], sample, document, tokens)
        conversation = rows[number].conversation
        if conversation is not None and _is_drawn(rows.lines[number], one_in=_COMPILED_AGAIN):
            _refuse_other(rows[number], replayed.documents[documents], compile_row(conversation))
    for number, error in replayed.refused.items():
        conversation = rows[number].conversation
        if conversation is not None and _is_drawn(rows.lines[number], one_in=_REFUSED_AGAIN):
            _refuse_other_error(rows[number], error, conversation, compile_row)
    return len(encoded)


def _is_drawn(line: int, *, one_in: int) -> bool:
    """Whether a row is in the sample: by its line alone, so that it is the same rows in every run."""
    return (line * 2654435761 >> 7) % one_in == 0


def _check_ids(
    row: InputRow, sample: SamplePlan, document: Mapping[str, Any], tokens: tuple[EngineChoice, TokenTable]
) -> None:
    """EngineDiffersError where the document, or the prompt of a turn, is encoded otherwise by the reference."""
    choice, table = tokens
    ids = np.array(document["input_ids"], dtype=np.int32)
    begins = _turn_begins(document)
    # The bytes of the ids are those of the text: that was proven.
    borders = begins if isinstance(sample, JoinedSample) else [*begins, len(ids)]
    texts = [table.written(EncodedTexts(ids[:border], flat_offsets([border])))[0].to_pybytes() for border in borders]
    found = [choice.reference.encode_batch([text]).ids for text in texts]
    is_equal = all(np.array_equal(own, ids[:border]) for own, border in zip(found, borders, strict=True))
    if isinstance(sample, JoinedSample):
        (begin,) = begins
        completion = b"".join(table.pieces.take(numbers(ids[begin:])).to_pylist()).decode()
        is_equal = is_equal and np.array_equal(choice.reference.encode_middle(completion).ids, ids[begin:])
    if not is_equal:
        raise EngineDiffersError(
            f"{choice.engine.name} gives other ids than the reference",
            code="engine-differs",
            place=str(row.address),
            hint="--tokenizer-engine reference",
        )


def _turn_begins(document: Mapping[str, Any]) -> list[int]:
    """The first token of each trained turn."""
    spans = list(zip(document["span_starts"], document["span_kinds"], document["span_messages"], strict=True))
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
