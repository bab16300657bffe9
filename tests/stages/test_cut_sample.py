"""A planned sample is cut at its borders and its fields, and nowhere else."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftprep.data import RowAddress, Sample, Segment, SpanKind
from sftprep.stages.replay import cut_sample
from sftprep.templates.runs import Run, Source
from sftprep.templates.symbolic import SymbolicStr
from sftprep.templates.symbolic_tracer import SymbolicTracer, begins
from sftprep.templates.symbols import Field, Guard, OpaqueError
from sftprep.templates.trace import TracedStr

Parts = list[tuple[bool, str]]
PARTS = st.lists(
    st.tuples(st.just(True), st.text("xyé", max_size=3))
    | st.tuples(st.just(False), st.text("abé", min_size=1, max_size=4)),
    min_size=1,
    max_size=6,
).filter(lambda parts: any(text for _, text in parts))


def written(parts: Parts) -> tuple[SymbolicTracer, TracedStr]:
    """A text of fields, where the first of a part is true, and of the template's words."""
    tracer = SymbolicTracer(text_class=SymbolicStr)
    runs = []
    for number, (is_field, text) in enumerate(parts):
        tracer.sources.append(Source(number, "/content", text))
        if is_field:
            tracer.fields[number] = Field(number, ("content",))
        runs.append(Run(len(text), number, 0))  # also of an empty field, as where passes are put together
    return tracer, TracedStr.of(tracer, "".join(text for _, text in parts), tuple(runs))


def sample(text: str, borders: list[int]) -> Sample:
    """A sample whose segments lie between these borders."""
    segments = [Segment(a, b, SpanKind.HEADER, n) for n, (a, b) in enumerate(pairwise(borders))]
    return Sample(RowAddress("f", 1), 0, text, segments, [])


def inside_words(parts: Parts) -> list[int]:
    """The positions at which no field is cut."""
    ends = list(accumulate([len(text) for _, text in parts], initial=0))
    within = [
        p for (is_field, _), a, b in zip(parts, ends, ends[1:], strict=False) if not is_field for p in range(a, b)
    ]
    return sorted({*ends, *within})


@given(PARTS, st.data())
def test_pieces_are_the_text_and_begin_at_each_border_and_field(parts: Parts, data: st.DataObject) -> None:
    tracer, text = written(parts)
    size = str.__len__(text)
    borders = sorted({0, size, *data.draw(st.lists(st.sampled_from(inside_words(parts)), max_size=5))})
    cut = cut_sample(sample(text, borders))
    shown = [p.decode() if isinstance(p, bytes) else tracer.sources[p.message].text for p in cut.pieces]
    starts = list(accumulate(map(len, shown), initial=0))
    assert "".join(shown) == str.__str__(text)
    assert [starts[number] for number in cut.plan.starts] == borders[:-1]
    assert [p.message for p in cut.pieces if isinstance(p, Field)] == [
        number for number, (is_field, _) in enumerate(parts) if is_field
    ]
    for piece, (a, b) in zip(cut.pieces, pairwise(starts), strict=True):
        assert isinstance(piece, Field) or not any(a < border < b for border in borders)
    joins = [
        a for (a, b), p, q in zip(pairwise(starts[1:]), cut.pieces, cut.pieces[1:], strict=False) if is_words(p, q)
    ]
    assert set(joins) <= set(borders)


def is_words(*pieces: Field | bytes) -> bool:
    return all(isinstance(piece, bytes) for piece in pieces)


@pytest.mark.parametrize("border", [3, 4])
def test_a_border_within_a_field_is_of_no_plan(border: int) -> None:
    _, text = written([(False, "ab"), (True, "xyz"), (False, "c")])
    with pytest.raises(OpaqueError, match="within a field"):
        cut_sample(sample(text, [0, border, 6]))


@pytest.mark.parametrize(("prefix", "is_asked"), [("abx", True), ("abcd", True), ("ac", False), ("acx", False)])
def test_words_that_meet_a_field_are_asked_of_it_and_others_of_nobody(prefix: str, is_asked: bool) -> None:
    tracer, text = written([(False, "ab"), (True, "yz")])
    assert not begins(text, prefix)
    asked = {Guard(Field(1, ("content",)), "begins", (prefix[2:],)): False} if is_asked else {}
    assert tracer.guards == asked


def test_words_that_begin_as_a_field_does_are_of_no_plan() -> None:
    _, text = written([(False, "ab"), (True, "yz")])
    with pytest.raises(OpaqueError):
        begins(text, "aby")
