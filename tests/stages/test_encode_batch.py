"""The proof of a batch by arrays is that of a loop over its tokens, for exact samples and for others."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.engines.load import load_model
from sftprep.prepare.batch import BatchCompiler
from sftprep.prepare.batch_layout import SampleTexts
from sftprep.prepare.compile import batch_compiler
from sftprep.prepare.own_documents import encode_samples
from sftprep.stages.encode_batch import (
    Batch,
    EncodedTexts,
    Spans,
    TurnBorders,
    flat_offsets,
    joined_texts,
    prove_batch,
)
from tests.engines.spaced import CLOSE, INST, PHI, write_model
from tests.prepare.test_plans import SAMPLES, config, conversation
from tests.stages.slow_proof import Span, proven

WORDS = st.sampled_from(["the", " a", "an inn", "\n", "  ", "é", "日本", ".", "[in]", "x"])
TEXTS = st.lists(WORDS, min_size=1, max_size=4).map("".join)
CHATS = st.lists(st.lists(TEXTS, min_size=2, max_size=6).filter(lambda own: len(own) % 2 == 0), min_size=1, max_size=4)
MODELS = {"sample": None, "prepend": PHI, "first": INST, "never": INST, "split": PHI, "prepend-inst": INST}
MODELS |= {"prepend-close": CLOSE, "first-close": CLOSE}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@functools.cache
def made(name: str, directory: Path) -> BatchCompiler:
    template = MODELS[name]
    form, _, _ = name.partition("-")
    path = SAMPLES / "model" if template is None else write_model(directory / name, form, template)
    batch = batch_compiler(load_model(str(path)), config(path)).batch
    assert batch is not None
    return batch


def laid_out(compiler: BatchCompiler, chats: Sequence[Sequence[str]]) -> tuple[Batch, EncodedTexts]:
    found = [compiler._book.replay(conversation(n, texts)) for n, texts in enumerate(chats)]
    plans = [(compiler._own_documents.of(plan[0]), plan[1]) for plan in found if isinstance(plan, tuple)]
    samples = [sample for plan, _ in plans for sample in plan.samples]
    pieces = [sample.take(values) for plan, values in plans for sample in plan.samples]
    assert samples
    texts = SampleTexts.of(samples, np.arange(len(samples)), pieces)
    return compiler._layouts.batch(texts), encode_samples(compiler.choice, texts)


def as_lists(spans: Spans) -> list[list[Span]]:
    columns = (spans.starts, spans.kinds, spans.messages, spans.weights)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    return [rows[a:b] for a, b in itertools.pairwise(spans.offsets.tolist())]


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=60)
@given(chats=CHATS)
def test_what_is_encoded_as_a_server_does_is_proven_as_by_a_loop(
    name: str, directory: Path, chats: list[list[str]]
) -> None:
    compiler = made(name, directory)
    batch, encoded = laid_out(compiler, chats)
    ok, spans = prove_batch(batch, encoded, compiler.table)
    assert (ok.tolist(), as_lists(spans)) == proven(batch, encoded, compiler.table)


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a batch."""

    kind: str
    at: int
    other: int


FAULTS = st.builds(
    Fault,
    st.sampled_from(["other-id", "swap", "split", "drop", "opening", "opened", "join", "stop", "start", "control"]),
    st.integers(0, 999),
    st.integers(0, 999),
)


def broken(batch: Batch, encoded: EncodedTexts, fault: Fault, compiler: BatchCompiler) -> tuple[Batch, EncodedTexts]:
    """The two with a fault: ids that decode otherwise, or to the same by other borders; turns that are elsewhere."""
    if fault.kind == "split":
        return batch, _split(encoded, fault.at % len(encoded.ids), compiler)
    if fault.kind == "drop":
        return batch, _dropped(encoded, fault.at % len(encoded.ids), compiler)
    if fault.kind == "control":
        return replace(batch, num_control=batch.num_control + fault.at % 2), encoded
    ids = encoded.ids.copy()
    at = fault.at % len(ids)
    if fault.kind == "other-id":
        ids[at] = fault.other % len(compiler.table.lengths)
    elif fault.kind == "swap":
        ids[[at, at - 1]] = ids[[at - 1, at]]
    turns = _moved(batch.turns, fault, len(compiler.table.lengths))
    joins = encoded.joins - fault.other % 2 if fault.kind == "join" else encoded.joins
    return replace(batch, turns=turns), EncodedTexts(ids, encoded.offsets, joins)


def _moved(turns: TurnBorders, fault: Fault, vocabulary: int) -> TurnBorders:
    """Turns with another opening, or that begin or end elsewhere."""
    if fault.kind == "opening" and len(turns.opening):
        opening = turns.opening.copy()
        opening[fault.at % len(opening)] = fault.other % vocabulary
        return replace(turns, opening=opening)
    if fault.kind == "opened":
        return replace(turns, opened=turns.opened + fault.other % 3 - 1)
    if fault.kind == "stop":
        return replace(turns, stop_start=turns.stop_start - 1, stop=turns.stop - fault.other % 2)
    if fault.kind == "start":
        return replace(turns, start=np.maximum(turns.start - 1 - fault.other % 2, 0))
    return turns


def _dropped(encoded: EncodedTexts, at: int, compiler: BatchCompiler) -> EncodedTexts:
    """Without a token: one that is but the space before a text, where there is any from there on."""
    bounds = compiler.table.written(encoded)[1]
    empty = np.flatnonzero(np.diff(bounds) == 0)
    gone = empty[np.searchsorted(empty, at) % len(empty)] if len(empty) else at
    sizes = np.diff(encoded.offsets)
    sizes[np.searchsorted(encoded.offsets, gone, side="right") - 1] -= 1
    joins = encoded.joins - (encoded.joins > gone)
    return EncodedTexts(np.delete(encoded.ids, gone), flat_offsets(sizes), joins)


def _split(encoded: EncodedTexts, at: int, compiler: BatchCompiler) -> EncodedTexts:
    """The same bytes with one token written by two, where any two make it."""
    pieces = compiler.table.pieces.to_pylist()
    numbers = {piece: number for number, piece in enumerate(pieces)}
    token = pieces[encoded.ids[at]]
    cuts = [n for n in range(1, len(token)) if token[:n] in numbers and token[n:] in numbers]
    if not cuts:
        return encoded
    two = [numbers[token[: cuts[0]]], numbers[token[cuts[0] :]]]
    ids = np.concatenate([encoded.ids[:at], two, encoded.ids[at + 1 :]]).astype(np.int32)
    sizes = np.diff(encoded.offsets)
    sizes[np.searchsorted(encoded.offsets, at, side="right") - 1] += 1
    return EncodedTexts(ids, flat_offsets(sizes), encoded.joins + (encoded.joins > at))


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=80)
@given(chats=CHATS, fault=FAULTS)
def test_what_is_wrong_is_refused_as_by_a_loop(
    name: str, directory: Path, chats: list[list[str]], fault: Fault
) -> None:
    compiler = made(name, directory)
    batch, encoded = broken(*laid_out(compiler, chats), fault, compiler)
    ok, spans = prove_batch(batch, encoded, compiler.table)
    expected, of_samples = proven(batch, encoded, compiler.table)
    assert ok.tolist() == expected
    assert as_lists(spans) == of_samples


def test_a_space_that_the_tokenizer_puts_before_an_answer_is_not_the_models(directory: Path) -> None:
    compiler = made("prepend-close", directory)
    batch, encoded = laid_out(compiler, [["the inn", "an answer"]])
    assert prove_batch(batch, encoded, compiler.table)[0].tolist() == [True]
    whole = compiler.choice.encode_batch([batch.text])
    assert compiler.table.written(whole)[0].to_pybytes() == batch.text
    assert whole.ids.tolist() != encoded.ids.tolist()
    assert prove_batch(batch, whole, compiler.table)[0].tolist() == [False]


def test_an_answer_that_begins_with_a_token_that_cuts_is_not_encoded_apart(directory: Path) -> None:
    compiler = made("prepend-close", directory)
    found = compiler._book.replay(conversation(1, ["the inn", "a"]))
    assert isinstance(found, tuple)
    (sample,) = compiler._own_documents.of(found[0]).samples
    pieces = [sample.take(found[1]), tuple(b"" if piece == b"a" else piece for piece in sample.take(found[1]))]
    texts = SampleTexts.of([sample], np.zeros(2, np.int64), pieces)
    encoded, batch = encode_samples(compiler.choice, texts), compiler._layouts.batch(texts)
    assert batch.sample_bytes.tolist() == [len(texts.texts[0]), len(texts.texts[0]) - 1]
    assert prove_batch(batch, encoded, compiler.table)[0].tolist() == [True, False]


TOKENS = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6)


@given(TOKENS, st.data())
def test_texts_are_joined_one_by_one(first: list[list[int]], data: st.DataObject) -> None:
    numbers = sorted(data.draw(st.sets(st.sampled_from(range(len(first)))))) if first else []
    then = [data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)) for _ in numbers]
    found = joined_texts(flat(first), flat(then), numbers)
    expected = [own + (then[numbers.index(n)] if n in numbers else []) for n, own in enumerate(first)]
    assert as_texts(found) == expected
    joins = [len(own) if n in numbers else -1 for n, own in enumerate(first)]
    assert (found.join_of_each() - np.where(found.join_of_each() < 0, 0, found.offsets[:-1])).tolist() == joins
    kept = sorted(data.draw(st.sets(st.sampled_from(range(len(first)))))) if first else []
    only = found.only(kept)
    assert as_texts(only) == [expected[n] for n in kept]
    own = only.join_of_each() - np.where(only.join_of_each() < 0, 0, only.offsets[:-1])
    assert own.tolist() == [joins[n] for n in kept]


def flat(texts: Sequence[Sequence[int]]) -> EncodedTexts:
    ids = np.array([i for own in texts for i in own], dtype=np.int32)
    return EncodedTexts(ids, flat_offsets([len(own) for own in texts]))


def as_texts(encoded: EncodedTexts) -> list[list[int]]:
    return [encoded.ids[a:b].tolist() for a, b in itertools.pairwise(encoded.offsets.tolist())]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "sample"])
def test_a_chat_in_plain_words_is_proven(name: str, directory: Path) -> None:
    compiler = made(name, directory)
    batch, encoded = laid_out(compiler, [["the inn", "a line.", "an", "answer"], ["the", "sea"]])
    ok, spans = prove_batch(batch, encoded, compiler.table)
    assert ok.tolist() == [True] * (3 if name == "prepend-close" else 2)
    assert len(batch.turns.start) == 3
    assert spans.offsets[-1] > 6
