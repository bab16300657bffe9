"""A sample of replayed rows, done again the slow way: by the reference tokenizer, and by the template itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np
import pyarrow as pa

from sftprep.arrow import flat
from sftprep.data import Conversation, Document
from sftprep.engines.fast import EngineChoice
from sftprep.errors import DataError, EngineDiffersError, MaskError
from sftprep.prepare.batch import Replayed
from sftprep.prepare.chunk import InputRow
from sftprep.prepare.input_rows import InputRows
from sftprep.stages.encode_batch import EncodedTexts, TokenTable, flat_offsets

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
        for ids in replayed.documents["input_ids"][documents]:
            _check_ids(rows[number], ids.values, *tokens)
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


def _check_ids(row: InputRow, ids: pa.Array, choice: EngineChoice, table: TokenTable) -> None:
    # The bytes of the ids are those of the text: that was proven.
    own = flat(ids)
    text, _ = table.written(EncodedTexts(own, flat_offsets([len(own)])))
    if not np.array_equal(choice.reference.encode_batch([text.to_pybytes()]).ids, own):
        raise EngineDiffersError(
            f"{choice.engine.name} gives other ids than the reference",
            code="engine-differs",
            place=str(row.address),
            hint="--tokenizer-engine reference",
        )


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
