"""The trained turns of shard rows, each with a digest of the token ids before it. No loop over tokens."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.arrow import list_lengths, list_values
from sftprep.data import TRAINED_KINDS, SpanKind

TURN: Final = np.dtype(
    [
        ("source", np.int32),
        ("line", np.int64),
        ("message", np.int32),
        ("kwargs", np.int32),
        ("digest", np.uint64, (2,)),
        ("num_prompt", np.int32),
        ("stop_id", np.int32),
        ("row", np.int64),
        ("document", np.int32),
        ("first_user", np.int32),
    ]
)
"""`digest` is of the ids before the turn, `num_prompt` their number; `stop_id` is -1 where the turn has none.

`row` counts from the batch's first, `document` from the row's first; `first_user` is the first message of a user that
the document shows, -1 where it shows none.
"""

Turns = npt.NDArray[np.void]


def trained_turns(batch: pa.RecordBatch) -> Turns:
    """The trained turns of rows whose columns fit together, in order. TURN `[turns]`."""
    row_lengths, doc_counts = list_lengths(batch["input_ids"]), list_lengths(batch["seq_lengths"])
    doc_lengths = list_values(batch["seq_lengths"]).astype(np.int64)
    doc_starts = np.cumsum(doc_lengths) - doc_lengths
    row_starts = np.cumsum(row_lengths) - row_lengths
    starts = list_values(batch["span_starts"]) + np.repeat(row_starts, list_lengths(batch["span_starts"]))
    kinds, messages = list_values(batch["span_kinds"]), list_values(batch["span_messages"])
    docs = np.searchsorted(doc_starts, starts, side="right") - 1
    first, last = _turn_spans(kinds, docs, messages)
    ids = list_values(batch["input_ids"]).astype(np.int32)
    turns = np.zeros(len(first), TURN)
    doc_rows = np.repeat(np.arange(batch.num_rows), doc_counts)
    own = docs[first]
    turns["source"] = list_values(batch["doc_files"])[own]
    turns["line"] = list_values(batch["doc_lines"])[own]
    turns["kwargs"] = list_values(batch["doc_kwargs"])[own]
    turns["message"] = messages[first]
    turns["num_prompt"] = starts[first] - doc_starts[own]
    turns["stop_id"] = np.where(kinds[last] == SpanKind.STOP, ids[starts[last]], -1)
    turns["row"] = doc_rows[own]
    turns["document"] = own - (np.cumsum(doc_counts) - doc_counts)[doc_rows[own]]
    turns["first_user"] = _first_users(kinds, docs, messages, len(doc_starts))[own]
    begins = doc_starts[own]
    for number, (begin, size) in enumerate(zip(begins.tolist(), turns["num_prompt"].tolist(), strict=True)):
        turns["digest"][number] = digest(ids[begin : begin + size])
    return turns


def digest(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
    """Of token ids: 128 bits, as two numbers."""
    found = hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").tobytes(), digest_size=16).digest()
    return np.frombuffer(found, dtype="<u8")


def _first_users(
    kinds: npt.NDArray[Any], docs: npt.NDArray[Any], messages: npt.NDArray[Any], num_docs: int
) -> npt.NDArray[np.int32]:
    """The first message of a user in each document, -1 where there is none."""
    of_user = np.flatnonzero(kinds == SpanKind.USER)[::-1]
    found = np.full(num_docs, -1, dtype=np.int32)
    found[docs[of_user]] = messages[of_user]
    return found


def _turn_spans(
    kinds: npt.NDArray[Any], docs: npt.NDArray[Any], messages: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first and the last span of each turn of which anything is trained."""
    is_trained = np.isin(kinds, [int(kind) for kind in TRAINED_KINDS])
    own = np.flatnonzero(is_trained | (kinds == SpanKind.MASKED))
    borders = np.flatnonzero((np.diff(docs[own]) != 0) | (np.diff(messages[own]) != 0))
    firsts = np.concatenate([[0], borders + 1]) if len(own) else np.zeros(0, np.int64)
    lasts = np.concatenate([borders, [len(own) - 1]]) if len(own) else np.zeros(0, np.int64)
    if not len(own):
        return firsts, lasts
    kept = np.add.reduceat(is_trained[own], firsts) > 0
    return own[firsts[kept]], own[lasts[kept]]
