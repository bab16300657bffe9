"""Arrow arrays of flat numpy arrays, and back, where the bytes lie.

`pa.array` and `to_numpy` import pandas wherever it is installed, which costs a command 0.2 s that needs none of it:
what `sftprep pack` runs through goes this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def numbers(values: npt.NDArray[Any]) -> pa.Array:
    """Whole or floating numbers `[n]` as an array of the same type, without nulls; the memory is shared."""
    flat = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(flat.dtype), len(flat), [None, pa.py_buffer(flat)])


def lists(values: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> pa.ListArray:
    """A list array: list `i` is `values[offsets[i]:offsets[i + 1]]`; `offsets` `[n + 1]` from 0, below 2^31."""
    return pa.ListArray.from_arrays(numbers(offsets.astype(np.int32, copy=False)), numbers(values))


def texts(values: Sequence[str]) -> pa.StringArray:
    """Texts as UTF-8, less than 2 GiB of them; UnicodeEncodeError where one holds half a character."""
    encoded = [value.encode() for value in values]
    return _cut(b"".join(encoded), np.fromiter(map(len, encoded), np.int64, len(encoded)), pa.string())


def byte_strings(data: bytes | npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64]) -> pa.BinaryArray:
    """Byte strings of these lengths `[n]` that lie end to end, less than 2 GiB of them."""
    return _cut(data, lengths, pa.binary())


def _cut(data: bytes | npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    if len(data) >= 1 << 31:
        raise ValueError("an array of texts holds less than 2 GiB")
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.Array.from_buffers(kind, len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def flat(array: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """The numbers of an array that has no nulls, `[n]`, where they lie, so that they cannot be written.

    Those of several chunks are copied behind each other.

    ValueError where it has nulls; TypeError where its values are no whole or floating numbers.
    """
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise TypeError(f"{array.type} is no type of numbers")
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} values are null")
    dtype = np.dtype(array.type.to_pandas_dtype())
    if isinstance(array, pa.ChunkedArray):
        return np.concatenate([np.zeros(0, dtype), *map(flat, array.chunks)])
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.zeros(0, dtype)
    return np.frombuffer(data, dtype, count=len(array), offset=array.offset * dtype.itemsize)


def list_lengths(column: pa.ListArray) -> npt.NDArray[np.int64]:
    """How many values each list has, `[n]`."""
    lengths: npt.NDArray[np.int64] = np.diff(flat(column.offsets)).astype(np.int64)
    return lengths


def list_values(column: pa.ListArray) -> npt.NDArray[Any]:
    """The numbers of all lists, end to end, as `flat` gives them."""
    return flat(column.flatten())
