"""Arrow arrays of numpy arrays and back: the same as pyarrow's own conversions, which import pandas."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.arrow import byte_strings, flat, list_lengths, list_values, lists, numbers, texts

DTYPES = (np.int8, np.int32, np.int64, np.float32, np.float64)
VALUES = st.lists(st.integers(-128, 127), max_size=20)


@settings(deadline=None)  # the first call of pyarrow imports pandas
@given(VALUES, st.sampled_from(DTYPES), st.integers(1, 3))
def test_numbers_are_those_of_pyarrow_and_come_back(values: list[int], dtype: type, step: int) -> None:
    array = np.array(values, dtype=dtype)[::step]
    made = numbers(array)
    assert made.equals(pa.array(array))
    assert flat(made).dtype == dtype
    assert flat(made).tolist() == made.to_pylist() == array.tolist()


@settings(deadline=None)  # the first call of pyarrow imports pandas
@given(VALUES, st.integers(0, 5), st.integers(0, 5))
def test_a_part_of_an_array_gives_its_own_numbers(values: list[int], first: int, length: int) -> None:
    part = numbers(np.array(values, dtype=np.int64)).slice(min(first, len(values)), length)
    assert flat(part).tolist() == part.to_pylist()
    assert flat(pa.chunked_array([part, part])).tolist() == part.to_pylist() * 2


@settings(deadline=None)  # the first call of pyarrow imports pandas
@given(st.lists(VALUES, max_size=6))
def test_lists_are_those_of_pyarrow(rows: list[list[int]]) -> None:
    values = [value for row in rows for value in row]
    offsets = np.cumsum([0, *map(len, rows)])
    made = lists(np.array(values, dtype=np.int32), offsets)
    assert made.equals(pa.array(rows, pa.list_(pa.int32())))
    assert flat(made.values).tolist() == values
    assert flat(made.offsets).tolist() == offsets.tolist()


@settings(deadline=None)  # the first call of pyarrow imports pandas
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6))
def test_texts_and_byte_strings_are_those_of_pyarrow(values: list[str]) -> None:
    made = texts(values)
    made.validate(full=True)
    assert made.equals(pa.array(values, pa.string()))
    encoded = [value.encode() for value in values]
    cut = byte_strings(b"".join(encoded), np.array([len(value) for value in encoded], dtype=np.int64))
    assert cut.equals(pa.array(encoded, pa.binary()))


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        texts(["\ud800"])


def test_what_has_no_numbers_or_not_in_each_place_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 values are null"):
        flat(pa.array([1, None]))
    for column in (pa.array([True]), pa.array(["a"]), pa.array([[1]])):
        with pytest.raises(TypeError):
            flat(column)


def test_lists_have_their_lengths_and_their_values_end_to_end_also_in_a_slice() -> None:
    column = pa.array([[1, 2], [], [3], [4, 5, 6]], pa.list_(pa.int32()))
    for part in (column, column.slice(1, 2), column.slice(4)):
        rows = part.to_pylist()
        assert list_lengths(part).tolist() == [len(row) for row in rows]
        assert list_values(part).tolist() == [value for row in rows for value in row]
