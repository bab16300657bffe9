"""Detectors on rows that we wrote and labelled: good and bad ones of each kind, side by side."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from sftprep.config.quality import QualityConfig
from sftprep.data import Conversation, RowAddress
from sftprep.errors import UsageError
from sftprep.prepare.quality_flaws import FLAWS, JudgedText, scores
from sftprep.stages.dialogue import row_text
from sftprep.stages.language import load_identifier
from sftprep.stages.words import word_hashes, words

ROWS = [
    json.loads(line) for line in (Path(__file__).parent / "labelled.jsonl").read_text(encoding="utf-8").splitlines()
]
# Precision and recall that must not be lost again. The rows were before us when the detectors were made: what
# they do on rows that nobody wrote for them is in test_detectors_real.py.
FLOORS = {
    "refusal": (0.95, 0.90),
    "truncated-ending": (0.95, 0.85),
    "wrong-language": (0.95, 0.90),
    "leaked-instructions": (0.95, 0.90),
    "repetition-loop": (0.95, 0.90),
    "repeats-prompt": (0.90, 0.90),
    "ungrounded": (0.90, 0.90),
}


@pytest.fixture(scope="module")
def found() -> list[set[str]]:
    """The flaws found in each row."""
    config, identify = QualityConfig(files=(Path("labelled"),)), load_identifier()
    flaws = []
    for number, row in enumerate(ROWS, start=1):
        conversation = Conversation(RowAddress("labelled", number), row["messages"], [1.0] * len(row["messages"]))
        (answer,) = row_text(conversation).answers
        tokens = words(answer.text)
        text = JudgedText(conversation.address, answer, tokens, word_hashes(tokens))
        flaws.append({code for code, score in scores(text, config=config, identify=identify) if score})
    return flaws


def test_the_rows_are_many_and_hold_every_flaw_and_clean_rows() -> None:
    labels = Counter(label for row in ROWS for label in row["labels"])
    assert len(ROWS) >= 200
    assert labels.keys() == FLOORS.keys() == FLAWS.keys()
    assert min(labels.values()) >= 10
    assert sum(not row["labels"] for row in ROWS) >= 80
    assert len({json.dumps(row["messages"]) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("code", FLOORS)
def test_precision_and_recall_stay_above_their_floors(found: list[set[str]], code: str) -> None:
    labelled = {number for number, row in enumerate(ROWS) if code in row["labels"]}
    flagged = {number for number, codes in enumerate(found) if code in codes}
    hits = len(labelled & flagged)
    least_precision, least_recall = FLOORS[code]
    assert hits / max(len(flagged), 1) >= least_precision, sorted(flagged - labelled)
    assert hits / len(labelled) >= least_recall, sorted(labelled - flagged)


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    load_identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(UsageError) as caught:
        load_identifier()
    assert caught.value.code == "missing-extra"
    assert "sftprep[quality]" in caught.value.hint
