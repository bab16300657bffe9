"""JSON is read strictly, and the quick way never hides what the slow way would find."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sftprep.records.json_text import parse_json

TEXTS = st.text(alphabet='ab":\\ {},\u00e9\u2028', max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : "), (",\t", "\t:")])


def codes(text: bytes) -> list[tuple[str, str]]:
    return [(fault.code, fault.pointer) for fault in parse_json(text).faults]


@settings(deadline=None)
@given(VALUES, SEPARATORS, st.booleans())
def test_sound_json_gives_the_same_value_as_the_standard_library(
    value: object, separators: tuple[str, str], ascii_only: bool
) -> None:
    text = json.dumps(value, separators=separators, ensure_ascii=ascii_only)
    parsed = parse_json(text.encode())
    assert parsed.faults == ()
    assert repr(parsed.value) == repr(json.loads(text))


@settings(deadline=None)
@given(VALUES, VALUES, TEXTS, SEPARATORS)
@example(1, 2, "\\", (",", ":"))
@example({"a\\": '":'}, '\\":', "a", (",", ":"))
def test_a_key_given_twice_is_always_found(
    first: object, second: object, key: str, separators: tuple[str, str]
) -> None:
    comma, colon = separators
    name = json.dumps(key)
    pairs = comma.join(f"{name}{colon}{json.dumps(v, separators=separators)}" for v in (first, second))
    found = codes(f'{{"x"{colon}[{{{pairs}}}]}}'.encode())
    escaped = key.replace("~", "~0").replace("/", "~1")
    assert ("duplicate-key", f"/x/0/{escaped}") in found


@settings(deadline=None)
@given(st.binary(max_size=60))
@example(b"[" * 100_000)
@example(b"1" * 5000)
@example(b'{"a":' * 2000)
def test_any_bytes_give_a_value_or_a_fault(data: bytes) -> None:
    parsed = parse_json(data)
    assert parsed.readable or parsed.faults


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"a": "\xff"}', [("invalid-utf8", "")]),
        (b'{"a": "\xed\xa0\x80"}', [("invalid-utf8", "")]),
        (b'{"a": [1, ', [("bad-json", "")]),
        (b"\xef\xbb\xbf{}", [("bad-json", "")]),
        (b'{"a": [NaN, -Infinity, 1e999]}', [("non-finite-number", f"/a/{i}") for i in range(3)]),
        (b'{"a":{"b":1e999}}', [("non-finite-number", "/a/b")]),
        (b"1e999", [("non-finite-number", "")]),
        (b'{"a": "\\ud83c", "b": "\\ud83c\\udf0a"}', [("lone-surrogate", "/a")]),
        (b'{"a": "\\\\ud83c\\udf0a"}', [("lone-surrogate", "/a")]),
        (b"[" * 300 + b"]" * 300, [("too-deep", "")]),
        (b"[" * 99_999 + b"]" * 99_999, [("too-deep", "")]),
        (b'{"\\ud83c": 1, "b": ' + b"[" * 800 + b"]" * 800 + b"}", [("lone-surrogate", ""), ("too-deep", "")]),
    ],
)
def test_each_fault_of_the_text_has_its_code_and_place(text: bytes, expected: list[tuple[str, str]]) -> None:
    assert codes(text) == expected


def test_where_the_text_breaks_is_said() -> None:
    assert "byte 8" in parse_json(b'{"a": "\xff"}').faults[0].message
    assert "column 11" in parse_json(b'{"a": [1, ').faults[0].message
    assert "cut off" in parse_json(b'{"a": "b').faults[0].message


def test_a_finite_number_keeps_its_type() -> None:
    value = parse_json(b'{"a":[1,1.0,1e2,-0.0,12345678901234567890123]}').value["a"]
    assert [type(item) for item in value] == [int, float, float, float, int]
    assert math.copysign(1, value[3]) == -1
