"""`ungrounded` on real answers that we read, by address alone, as the texts are not ours to copy.

All answers that weak models gave to two prompts with a passage to rewrite, and every answer of the corpora that was
flagged before or after the rules were changed with these before us: the next ones may fare worse.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sftprep.config.quality import QualityConfig
from sftprep.prepare.validate import read_conversations
from sftprep.stages.dialogue import row_text
from sftprep.stages.groundedness import gives_context, unsupported

LABELS = {
    (entry["file"], entry["line"], entry["message"]): bool(entry["ungrounded"])
    for entry in map(json.loads, (Path(__file__).parent / "corpus_contexts.jsonl").read_text("utf-8").splitlines())
}
WEAK = "openassistant_sampling_reports.jsonl.zst"
LEAST = QualityConfig(files=(Path("labelled"),)).unsupported_share


@pytest.fixture(scope="module")
def flagged(corpus: Path) -> dict[tuple[str, int, int], bool]:
    """Whether each labelled answer is taken for one that its context does not support."""
    found = {}
    for name in sorted({name for name, _, _ in LABELS}):
        for row in read_conversations(corpus / "chat" / name, name=name):
            for answer in row_text(row.conversation).answers if row.conversation is not None else ():
                key = (name, row.address.line, answer.message)
                if key in LABELS:
                    judged = gives_context(answer.prompt, tool_results=answer.tool_results)
                    share = unsupported(answer.text, context=answer.context, by_words=not answer.tool_results)
                    found[key] = judged and share >= LEAST
    return found


@pytest.mark.corpus
def test_of_ten_unsupported_answers_of_weak_models_six_are_found_and_nothing_else(
    flagged: dict[tuple[str, int, int], bool],
) -> None:
    weak = {key: is_flagged for key, is_flagged in flagged.items() if key[0] == WEAK}
    wanted = {key for key in weak if LABELS[key]}
    hits = {key for key, is_flagged in weak.items() if is_flagged and key in wanted}
    assert (len(weak), len(wanted)) == (36, 10)
    assert len(hits) >= 6, sorted(wanted - hits)
    assert [key for key, is_flagged in weak.items() if is_flagged and key not in wanted] == []


@pytest.mark.corpus
def test_of_sixteen_flagged_answers_of_all_corpora_ten_are_unsupported(
    flagged: dict[tuple[str, int, int], bool],
) -> None:
    hits = sum(LABELS[key] for key, is_flagged in flagged.items() if is_flagged)
    assert flagged.keys() == LABELS.keys()
    assert hits >= 10
    assert hits / sum(flagged.values()) >= 0.6
