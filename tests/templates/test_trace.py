"""A traced string behaves as `str` does and never forgets who wrote a character."""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftprep.templates.runs import DERIVED, stamp_of
from sftprep.templates.trace import TracedStr, Tracer
from sftprep.templates.values import JsonWriter, dumps

TEXTS = st.text(alphabet="ab \n\t,;<>ßİé日🙂\u2028x", max_size=12)
METHODS: dict[str, Callable[[str, str], Any]] = {
    "strip": lambda s, _: s.strip(),
    "strip chars": lambda s, t: s.strip(t) if t else s.strip(),
    "lstrip": lambda s, _: s.lstrip("\n"),
    "rstrip": lambda s, _: s.rstrip(),
    "split": lambda s, _: s.split(),
    "split at": lambda s, t: s.split(t or ","),
    "split once": lambda s, t: s.split(t or ",", 1),
    "rsplit": lambda s, t: s.rsplit(t or ",", 1),
    "splitlines": lambda s, _: s.splitlines(),
    "splitlines kept": lambda s, _: s.splitlines(True),
    "partition": lambda s, t: s.partition(t or ","),
    "rpartition": lambda s, t: s.rpartition(t or ","),
    "replace": lambda s, t: s.replace(t or ",", "<new>"),
    "replace nothing": lambda s, _: s.replace("", "-"),
    "removeprefix": lambda s, t: s.removeprefix(t),
    "removesuffix": lambda s, t: s.removesuffix(t),
    "lower": lambda s, _: s.lower(),
    "upper": lambda s, _: s.upper(),
    "title": lambda s, _: s.title(),
    "zfill": lambda s, _: s.zfill(9),
    "center": lambda s, _: s.center(9, "*"),
    "join": lambda s, t: s.join([t, "b", t]),
    "add": lambda s, t: s + t,
    "radd": lambda s, t: t + s,
    "multiply": lambda s, _: s * 3,
    "slice": lambda s, _: s[1:-1],
    "step": lambda s, _: s[::-1],
    "iterate": lambda s, _: list(s),
    "index": lambda s, _: s[0] if s else s,
}


def pieces_of(value: Any) -> list[str]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


@pytest.mark.parametrize("name", METHODS)
@given(text=TEXTS, other=TEXTS)
def test_every_method_gives_the_text_that_str_gives_and_runs_that_cover_it(name: str, text: str, other: str) -> None:
    traced = Tracer().add_field(0, "/content", text)
    expected, actual = METHODS[name](text, other), METHODS[name](traced, other)
    assert actual == expected
    for piece in pieces_of(actual):
        assert type(piece) is TracedStr
        assert sum(run.length for run in piece.runs) == len(piece)


@pytest.mark.parametrize("name", METHODS)
@given(text=TEXTS, other=TEXTS)
def test_every_character_said_to_come_from_a_field_is_that_field_s_character(name: str, text: str, other: str) -> None:
    traced = Tracer().add_field(0, "/content", text)
    exact = name not in {"lower", "upper", "title"}
    for piece in pieces_of(METHODS[name](traced, other)):
        position = 0
        for run in piece.runs:
            shown = str.__getitem__(piece, slice(position, position + run.length))
            if run.source == 0 and run.offset != DERIVED and exact:
                assert shown == text[run.offset : run.offset + run.length]
            position += run.length


@given(text=TEXTS.filter(bool), other=TEXTS)
def test_a_method_that_loses_track_still_knows_the_field(text: str, other: str) -> None:
    traced = Tracer().add_field(0, "/content", text)
    for changed in (
        traced.zfill(20),
        traced[::-1],
        operator.mod("%s", traced),
        traced.format(),
        traced.replace("", other),
    ):
        assert all(run.source == 0 for run in changed.runs), "a field's text may never pass for the template's"


def test_a_literal_carries_the_turn_that_it_was_written_in() -> None:
    tracer = Tracer()
    tracer.stamp = 3
    joined = "<|im_start|>" + tracer.add_field(3, "/role", "user") + "\n"
    assert [stamp_of(run.source) for run in joined.runs if run.source < 0] == [3, 3]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(TEXTS, children, max_size=3),
    max_leaves=8,
)


@given(value=JSON, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans())
def test_traced_json_is_the_json_that_json_dumps_writes(value: Any, indent: int | None, ascii_only: bool) -> None:
    options: dict[str, Any] = {"ensure_ascii": ascii_only, "indent": indent, "separators": None, "sort_keys": False}
    traced = JsonWriter(Tracer(), **options).write(value)
    assert traced == dumps(value, **options) == json.dumps(value, ensure_ascii=ascii_only, indent=indent)


@given(st.lists(TEXTS, min_size=2, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6), st.integers(1, 5))
def test_two_texts_are_put_together_as_many_are(texts: list[str], written: list[bool], at: int) -> None:
    tracer = Tracer()
    whole = tracer.add_field(0, "/content", "".join(texts))
    ends = list(itertools.accumulate(map(len, texts), initial=0))
    # Parts of one field stand side by side again where they did, and words of the template do where nothing does.
    pieces = [
        tracer.literal(text) if is_written else whole.piece(*span)
        for text, is_written, span in zip(texts, written, itertools.pairwise(ends), strict=False)
    ]
    left, right = tracer.concat(pieces[:at]), tracer.concat(pieces[at:])
    made, expected = left + right, tracer.concat(pieces)
    assert (str.__str__(made), made.runs, type(made)) == (str.__str__(expected), expected.runs, type(expected))
