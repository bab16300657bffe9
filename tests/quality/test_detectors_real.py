"""Detectors on real answers that we read and labelled: by address alone, as the texts are not ours to copy."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from sftprep.config.quality import QualityConfig
from sftprep.prepare.quality_flaws import JudgedText, scores
from sftprep.prepare.validate import read_conversations
from sftprep.stages.dialogue import row_text
from sftprep.stages.language import load_identifier
from sftprep.stages.words import word_hashes, words

LABELS = [
    json.loads(line)
    for line in (Path(__file__).parent / "corpus_labels.jsonl").read_text(encoding="utf-8").splitlines()
]
# Precision and recall that must not be lost again: a little under what they were when the labels were made.
FLOORS = {
    "refusal": (0.85, 0.85),
    "truncated-ending": (0.90, 0.75),
    "leaked-instructions": (0.90, 0.90),
    "repeats-prompt": (0.85, 0.80),
    "repetition-loop": (0.90, 0.90),
    "wrong-language": (0.75, 0.75),
}


@pytest.fixture(scope="module")
def found(corpus: Path) -> dict[tuple[str, int, int], set[str]]:
    """The flaws found in each labelled answer."""
    config, identify = QualityConfig(files=(Path("labelled"),)), load_identifier()
    wanted = {(entry["file"], entry["line"], entry["message"]) for entry in LABELS}
    flaws = {}
    for name in sorted({file for file, _, _ in wanted}):
        for row in read_conversations(corpus / "chat" / name, name=name):
            if row.conversation is None:
                continue
            for answer in row_text(row.conversation).answers:
                key = (name, row.address.line, answer.message)
                if key in wanted:
                    tokens = words(answer.text)
                    text = JudgedText(row.address, answer, tokens, word_hashes(tokens))
                    flaws[key] = {code for code, score in scores(text, config=config, identify=identify) if score}
    return flaws


@pytest.mark.corpus
def test_three_hundred_real_answers_are_labelled(found: dict[tuple[str, int, int], set[str]]) -> None:
    assert len(LABELS) >= 300
    assert len(found) == len(LABELS)
    assert Counter(label for entry in LABELS for label in entry["labels"]).keys() >= FLOORS.keys()


@pytest.mark.corpus
@pytest.mark.parametrize("code", FLOORS)
def test_precision_and_recall_on_real_answers_stay_above_their_floors(
    found: dict[tuple[str, int, int], set[str]], code: str
) -> None:
    labelled = {(e["file"], e["line"], e["message"]) for e in LABELS if code in e["labels"]}
    flagged = {key for key, codes in found.items() if code in codes}
    hits = len(labelled & flagged)
    precision, recall = hits / max(len(flagged), 1), hits / len(labelled)
    least_precision, least_recall = FLOORS[code]
    assert precision >= least_precision, f"precision {precision:.2f}: {sorted(flagged - labelled)}"
    assert recall >= least_recall, f"recall {recall:.2f}: {sorted(labelled - flagged)}"
