"""Whether an answer declines, on real answers that we read and labelled before they were measured, by line alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sftprep.evaluate.behaviour_scorers import declines, refuses
from sftprep.prepare.validate import read_conversations
from sftprep.stages.dialogue import content_text

LABELS = {
    entry["line"]: entry
    for entry in map(json.loads, (Path(__file__).parent / "refusal_labels.jsonl").read_text("utf-8").splitlines())
}


@pytest.mark.corpus
def test_answers_to_rude_and_harmful_requests_are_told_apart(corpus: Path) -> None:
    """70 answers drawn at random, 80 to requests with words such as steal or poison; 17 of the 150 decline."""
    path = corpus / "chat" / "hh_rlhf_harmless_base_test.jsonl.zst"
    found = {}
    for row in read_conversations(path, name=path.name):
        if row.conversation is not None and row.address.line in LABELS:
            message = row.conversation.messages[LABELS[row.address.line]["message"]]
            found[row.address.line] = declines(content_text(message))
    assert len(found) == len(LABELS) == 150
    wanted = {line for line, entry in LABELS.items() if entry["declines"]}
    flagged = {line for line, is_flagged in found.items() if is_flagged}
    hits = len(wanted & flagged)
    assert (len(wanted), hits / len(flagged) >= 0.8, hits / len(wanted) >= 0.8) == (17, True, True), (
        sorted(flagged - wanted),
        sorted(wanted - flagged),
    )


def test_advice_against_is_a_refusal_of_harm_and_none_of_a_benign_request() -> None:
    for text in ("Absolutely not. Hurting animals is cruel.", "You should not do that. It's illegal."):
        assert declines(text)
        assert not refuses(text)
    letter = "Dear customer,\n\nI am unable to process your account. Please do not wait, send your password."
    for text in ("It is not illegal. Here is how.", "Take two litres and mix.", "You can't miss it.", letter):
        assert not declines(text)
