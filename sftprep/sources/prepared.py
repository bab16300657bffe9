"""Datasets that other trainers prepared: token ids and what is trained, whatever columns say so.

Read are directories that `datasets` wrote, Arrow files, Parquet files and directories of them. Trained is what `labels`
do not ignore, else what every mask column that is there selects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sftprep.data import IGNORE_INDEX
from sftprep.errors import SourceError, UsageError

MASK_COLUMNS: Final = ("assistant_masks", "assistant_mask", "completion_mask", "loss_mask")
_LIST_TYPES: Final = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


@dataclass(frozen=True, slots=True)
class PreparedRows:
    """Some rows: `ids` int32 and `trained` bool, both `[tokens]`; of documents `[docs]`: length and row.

    Padding is left out. Rows count from the first of the whole dataset.
    """

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.bool_]
    doc_lengths: npt.NDArray[np.int64]
    doc_rows: npt.NDArray[np.int64]


def read_prepared(path: Path) -> Iterator[PreparedRows]:
    """The rows of a prepared dataset, batch by batch.

    Raises:
        UsageError: `not-prepared`, `several-splits`, `no-input-ids`, `no-labels`.
        SourceError: `labels-shifted`, `labels-differ`, `row-lengths-differ`, `damaged-dataset`.
    """
    first = 0
    for file in _data_files(path):
        try:
            for batch in _batches(file):
                yield _rows(batch, first=first, place=file)
                first += batch.num_rows
        except (OSError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise SourceError(f"cannot be read: {reason}", code="damaged-dataset", place=str(file)) from error


def _data_files(path: Path) -> list[Path]:
    if path.is_file() and path.suffix in {".parquet", ".arrow"}:
        return [path]
    splits = path / "dataset_dict.json"
    if splits.is_file():
        names = _json(splits, "splits")
        if len(names) == 1:
            return _data_files(path / names[0])
        raise UsageError(
            f"the dataset has several splits: {', '.join(names)}",
            code="several-splits",
            place=str(path),
            hint=f"name one of them: {path / names[0]}",
        )
    state = path / "state.json"
    if state.is_file():
        return [path / str(entry.get("filename")) for entry in _json(state, "_data_files")]
    inner = sorted({file.parent for name in ("state.json", "dataset_dict.json") for file in path.glob(f"*/{name}")})
    if len(inner) > 1:
        raise UsageError(
            f"the directory holds several datasets: {', '.join(own.name for own in inner)}",
            code="several-splits",
            place=str(path),
            hint=f"name one of them: {inner[0]}",
        )
    if inner:
        return _data_files(inner[0])
    found = sorted(path.glob("**/*.parquet")) or sorted(path.glob("*.arrow"))
    if not found:
        raise UsageError(
            "neither a shard set nor a prepared dataset",
            code="not-prepared",
            place=str(path),
            hint="name a shard set, a directory that datasets saved, or Parquet or Arrow files",
        )
    return found


def _json(file: Path, key: str) -> list[Any]:
    try:
        return list(json.loads(file.read_bytes())[key])
    except (ValueError, KeyError, TypeError) as error:
        message = f"there is no list of {key} in it"
        raise SourceError(message, code="damaged-dataset", place=str(file)) from error


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    if file.suffix == ".parquet":
        yield from pq.ParquetFile(file).iter_batches(batch_size=256, use_threads=False)
        return
    with pa.memory_map(str(file)) as mapped:
        try:
            reader: Any = pa.ipc.open_stream(mapped)
        except pa.ArrowInvalid:
            file_reader = pa.ipc.open_file(mapped)
            reader = (file_reader.get_batch(number) for number in range(file_reader.num_record_batches))
        yield from reader


def _rows(batch: pa.RecordBatch, *, first: int, place: Path) -> PreparedRows:
    columns = {
        name: _Lists.of(batch[name])
        for name, kind in zip(batch.schema.names, batch.schema.types, strict=True)
        if any(is_list(kind) for is_list in _LIST_TYPES) and _is_number(kind.value_type)
    }
    if "input_ids" not in columns:
        raise UsageError("the dataset has no input_ids", code="no-input-ids", place=str(place))
    lengths = columns["input_ids"].lengths
    for name in ("labels", "attention_mask", "position_ids", *MASK_COLUMNS):
        if name in columns and not np.array_equal(columns[name].lengths, lengths):
            raise SourceError(f"{name} is not as long as input_ids", code="row-lengths-differ", place=str(place))
    ids = columns["input_ids"].values.astype(np.int32)
    trained = _trained(columns, ids, place=place)
    starts = _document_starts(columns, lengths)
    rows = first + np.repeat(np.arange(batch.num_rows), lengths)
    kept = _kept(columns, starts, trained)
    if not kept.all():
        # A document keeps its border where padding before it goes.
        numbers = np.cumsum(starts)[kept]
        ids, trained, rows = ids[kept], trained[kept], rows[kept]
        starts = np.diff(numbers, prepend=0) != 0
    begins = np.flatnonzero(starts)
    return PreparedRows(ids, trained, np.diff(begins, append=len(ids)).astype(np.int64), rows[begins])


def _kept(
    columns: dict[str, _Lists], starts: npt.NDArray[np.bool_], trained: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """All but padding: by the attention mask, and where LLaMA-Factory packs, positions of 0 up to the row's end."""
    kept = np.ones(len(starts), np.bool_)
    if "attention_mask" in columns:
        kept &= columns["attention_mask"].values != 0
    if "position_ids" in columns:
        lengths = columns["input_ids"].lengths
        is_alone = starts & np.append(starts[1:], True) & ~trained
        row = np.repeat(np.arange(len(lengths)), lengths)
        content = np.flatnonzero(~is_alone)
        last = np.full(len(lengths), -1)
        np.maximum.at(last, row[content], content)
        kept &= (np.arange(len(starts)) <= last[row]) | (last[row] < 0)
    return kept


@dataclass(frozen=True, slots=True)
class _Lists:
    values: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, column: pa.Array) -> _Lists:
        lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return cls(column.flatten().to_numpy(zero_copy_only=False), lengths.astype(np.int64))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _trained(columns: dict[str, _Lists], ids: npt.NDArray[np.int32], *, place: Path) -> npt.NDArray[np.bool_]:
    if "labels" in columns:
        labels = columns["labels"].values
        trained: npt.NDArray[np.bool_] = labels != IGNORE_INDEX
        _check_labels(labels, ids, trained, place=place)
        return trained
    masks = [columns[name].values != 0 for name in MASK_COLUMNS if name in columns]
    if not masks:
        raise UsageError(
            "the dataset does not say what is trained",
            code="no-labels",
            place=str(place),
            hint=f"it needs labels or one of {', '.join(MASK_COLUMNS)}",
        )
    selected: npt.NDArray[np.bool_] = np.logical_and.reduce(masks)
    return selected


def _check_labels(
    labels: npt.NDArray[Any], ids: npt.NDArray[np.int32], trained: npt.NDArray[np.bool_], *, place: Path
) -> None:
    at = np.flatnonzero(trained)
    if np.array_equal(labels[at], ids[at]):
        return
    inside = at[at + 1 < len(ids)]
    if np.array_equal(labels[inside], ids[inside + 1]):
        raise SourceError(
            "the labels are shifted by one token already",
            code="labels-shifted",
            place=str(place),
            hint="compare the dataset from before the shift",
        )
    raise SourceError("trained labels are not the ids beside them", code="labels-differ", place=str(place))


def _document_starts(columns: dict[str, _Lists], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Where a document begins: by seq_lengths, position_ids, or an attention_mask that numbers documents."""
    size = int(lengths.sum())
    starts = np.zeros(size, np.bool_)
    starts[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
    if "seq_lengths" in columns:
        ends = np.cumsum(columns["seq_lengths"].values)
        starts[ends[ends < size]] = True
    elif "position_ids" in columns:
        starts |= columns["position_ids"].values == 0
    elif "attention_mask" in columns:
        mask = columns["attention_mask"].values.astype(np.int64)
        starts[1:] |= mask[1:] != mask[:-1]
    return starts
