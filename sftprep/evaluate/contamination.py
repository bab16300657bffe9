"""Whether training rows hold the cases of suites: compared as validate compares held-out rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sftprep.evaluate.suite import LoadedCase
from sftprep.prepare.quality_leaks import HeldOut
from sftprep.prepare.validate import read_conversations
from sftprep.reports.evaluate_json import Contamination
from sftprep.stages.dialogue import RowText, row_text
from sftprep.stages.near_duplicates import SHINGLE_WORDS, Hashes
from sftprep.stages.words import ngram_hashes, word_hashes, words

_THRESHOLD = 0.8


def contamination(cases: Sequence[LoadedCase], files: Iterable[Path], *, unread: Sequence[str] = ()) -> Contamination:
    """Compare every training row with every case; `unread` is told of. SourceError where a file cannot be read."""
    paths = list(files)
    held = HeldOut.of(
        iter([row_text(case.conversation) for case in cases]), files=[str(p) for p in paths], threshold=_THRESHOLD
    )
    num_rows = 0
    for path in paths:
        for row in read_conversations(path, name=str(path)):
            if row.conversation is None:
                continue
            num_rows += 1
            text = row_text(row.conversation)
            held.compare(text, shingles=_shingles(text))
    found = held.report()
    ids = {str(case.conversation.address): f"{case.suite}/{case.case.id}" for case in cases}
    leaks = [f"{ids[leak.held_out]}: {leak.training} ({leak.code}, {leak.score:.2f})" for leak in found.leaks]
    return Contamination(
        files=found.held_out_files, unread=list(unread), num_rows=num_rows, ngram=found.ngram, found=leaks
    )


def _shingles(row: RowText) -> dict[str, Hashes]:
    texts = {"prompts": row.prompts, "conversations": row.conversation}
    return {kind: ngram_hashes(word_hashes(words(text)), n=SHINGLE_WORDS) for kind, text in texts.items()}
