"""Arrays that are taken from plans for a whole batch are those that each sample's own plan says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.engines.load import load_model
from sftprep.prepare.batch_layout import SampleTexts
from sftprep.prepare.compile import batch_compiler
from sftprep.stages.encode_batch import Batch, prove_batch
from sftprep.stages.replay import SamplePlan, TurnPlan
from tests.engines.spaced import INST, write_model
from tests.prepare.test_plans import SAMPLES, config, conversation

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
CHATS = st.lists(TEXTS, min_size=2, max_size=8).filter(lambda texts: len(texts) % 2 == 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(CHATS, st.none() | TEXTS), min_size=1, max_size=6))
def test_a_batch_is_its_samples_one_after_another(chats: list[tuple[list[str], str | None]]) -> None:
    made = batch_compiler(load_model(str(SAMPLES / "model")), config(SAMPLES / "model")).batch
    assert made is not None
    layouts = made._layouts
    found = [made._book.replay(conversation(n, texts, system=system)) for n, (texts, system) in enumerate(chats)]
    plans = [plan for plan in found if isinstance(plan, tuple)]
    samples = [sample for plan, _ in plans for sample in plan.samples]
    pieces = [sample.take(values) for plan, values in plans for sample in plan.samples]
    if not samples:
        return
    assert all(map(layouts.can_prove, samples))
    different = {id(sample): sample for sample in samples}
    numbers = {key: number for number, key in enumerate(different)}
    chosen = np.array([numbers[id(sample)] for sample in samples])
    batch = layouts.batch(SampleTexts.of(list(different.values()), chosen, pieces))
    expected = expected_batch(samples, pieces)
    assert batch.text == expected["text"]
    for name in ("piece_bytes", "sample_bytes", "segments", "kinds", "messages", "weights", "segment_offsets"):
        assert getattr(batch, name).tolist() == expected[name], name
    assert turns_of(batch) == expected["turns"]
    openings = batch.turns.opening_offsets.tolist()
    assert len(openings) == len(expected["turns"]) + 1
    for number, (sample, _, _, _) in enumerate(expected["turns"]):
        ids = batch.turns.opening[openings[number] : openings[number + 1]]
        size = int(batch.turns.opened[number])
        (alone,) = made.choice.reference.encode([opening_text(samples[sample].turns[0].opening, size)])
        assert ids.tolist() == alone.ids.tolist()


@pytest.mark.parametrize("earlier", [0, 1])
def test_a_prompt_without_a_token_opens_nothing(tmp_path: Path, earlier: int) -> None:
    path = write_model(tmp_path / "model", "never", INST)
    made = batch_compiler(load_model(str(path)), config(path)).batch
    assert made is not None
    turn = TurnPlan(
        start=3 * earlier + 1, stop_start=3 * earlier + 2, stop=3 * earlier + 3, opening="", stop_text="</s>"
    )
    before = [TurnPlan(start=1, stop_start=2, stop=3, opening="", stop_text="</s>")] * earlier
    plan = SamplePlan(
        take=tuple,
        num_pieces=3 + 3 * earlier,
        starts=np.arange(3 + 3 * earlier),
        kinds=np.zeros(3 + 3 * earlier, np.int8),
        messages=np.zeros(3 + 3 * earlier, np.int32),
        weights=np.zeros(3 + 3 * earlier, np.float32),
        turns=(*before, turn),
        kwargs="{}",
        written="\0\0</s>" * (1 + earlier),
    )
    pieces = [[b"q", b"a", b"</s>"] * earlier + [asked, b"a", b"</s>"] for asked in (b"q", b"", b"the")]
    samples = SampleTexts.of([plan], np.zeros(3, np.int64), pieces)
    ok, _ = prove_batch(made._layouts.batch(samples), made.choice.encode_batch(samples.texts), made.table)
    assert ok.tolist() == [True, False, True]


def opening_text(opening: str, size: int) -> str:
    """So many bytes of an opening, from its end."""
    return opening.encode()[-size:].decode()


def turns_of(batch: Batch) -> list[tuple[int, int, int, int]]:
    turns = batch.turns
    columns = (turns.sample, turns.start, turns.stop_start, turns.stop)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def expected_batch(samples: Sequence[SamplePlan], pieces: Sequence[Sequence[bytes]]) -> dict[str, Any]:
    """The obvious way."""
    found: dict[str, Any] = {
        name: [] for name in ("piece_bytes", "sample_bytes", "segments", "kinds", "messages", "weights", "turns")
    }
    offsets = [0]
    for number, (sample, own) in enumerate(zip(samples, pieces, strict=True)):
        first = len(found["piece_bytes"])
        found["piece_bytes"] += [len(piece) for piece in own]
        found["sample_bytes"].append(len(b"".join(own)))
        found["segments"] += [first + start for start in sample.starts.tolist()]
        for name in ("kinds", "messages", "weights"):
            found[name] += getattr(sample, name).tolist()
        found["turns"] += [(number, first + t.start, first + t.stop_start, first + t.stop) for t in sample.turns]
        offsets.append(len(found["kinds"]))
    return {**found, "text": b"".join(b"".join(own) for own in pieces), "segment_offsets": offsets}
