"""Held-out rows, and which training rows share something with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sftprep.prepare.quality_flaws import excerpt
from sftprep.reports.quality_json import Leak, Leakage
from sftprep.stages.dialogue import RowText
from sftprep.stages.leakage import COMMON_AFTER, Match, SetIndex, build_index, contained, ngram_length, similar
from sftprep.stages.near_duplicates import SHINGLE_WORDS, Hashes
from sftprep.stages.words import ngram_hashes, word_hashes, words

_CODES: Final = {"ngrams": "eval-overlap", "prompts": "eval-near-duplicate", "conversations": "eval-near-duplicate"}
# Prompts of a few words, such as "thank you", are said by everybody; a conversation that is the same to its end leaks.
_LEAST_SHINGLES: Final = {"prompts": 4, "conversations": 1}


@dataclass(slots=True)
class HeldOut:
    """The held-out rows as indexes, and the worst match of each row of each kind so far."""

    files: list[str]
    threshold: float
    places: list[str]
    excerpts: list[str]
    ngram: int
    indexes: dict[str, SetIndex]
    num_skipped: int
    worst: dict[tuple[str, int], tuple[float, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterator[RowText | None], *, files: list[str], threshold: float) -> HeldOut:
        """Index held-out rows; None is a row with errors, which is counted."""
        places, excerpts, hashes, prompts = [], [], [], []
        num_skipped = 0
        for row in rows:
            if row is None:
                num_skipped += 1
                continue
            places.append(str(row.address))
            excerpts.append(excerpt(row.prompts or row.conversation))
            hashes.append(word_hashes(words(row.conversation)))
            prompts.append(_shingles(word_hashes(words(row.prompts))))
        length = ngram_length([len(own) for own in hashes])
        indexes = {
            "ngrams": build_index([_ngrams(own, length) for own in hashes], common_after=COMMON_AFTER),
            "prompts": build_index(prompts),
            "conversations": build_index([_shingles(own) for own in hashes]),
        }
        return cls(files, threshold, places, excerpts, length, indexes, num_skipped)

    def compare(self, row: RowText, *, shingles: dict[str, Hashes]) -> None:
        """Note what a training row shares with any held-out row."""
        place = str(row.address)
        grams = _ngrams(word_hashes(words(row.conversation)), self.ngram)
        self._note("ngrams", contained(self.indexes["ngrams"], grams), place=place)
        for kind, least in _LEAST_SHINGLES.items():
            own = shingles[kind]
            if len(own) >= least:
                self._note(kind, similar(self.indexes[kind], own, threshold=self.threshold), place=place)

    def _note(self, kind: str, matches: list[Match], *, place: str) -> None:
        for match in matches:
            key = (kind, match.owner)
            if key not in self.worst or match.score > self.worst[key][0]:
                self.worst[key] = (match.score, place)

    def overlapping(self) -> list[int]:
        """The held-out rows that share an n-gram with a training row, by their numbers among the held-out ones."""
        return sorted(owner for kind, owner in self.worst if kind == "ngrams")

    def report(self) -> Leakage:
        """What was found, the worst first."""
        leaks = [
            Leak(
                code=_CODES[kind],
                what=kind,
                held_out=self.places[owner],
                training=place,
                score=round(score, 4),
                excerpt=self.excerpts[owner],
            )
            for (kind, owner), (score, place) in sorted(
                self.worst.items(), key=lambda item: (-item[1][0], item[0][1], item[0][0])
            )
        ]
        owners = {code: {owner for kind, owner in self.worst if _CODES[kind] == code} for code in _CODES.values()}
        return Leakage(
            held_out_files=self.files,
            num_held_out=len(self.places),
            num_skipped=self.num_skipped,
            ngram=self.ngram,
            num_overlapping=len(owners["eval-overlap"]),
            num_near_duplicates=len(owners["eval-near-duplicate"]),
            leaks=leaks,
        )


def _shingles(hashes: Hashes) -> Hashes:
    return ngram_hashes(hashes, n=SHINGLE_WORDS)


def _ngrams(hashes: Hashes, length: int) -> Hashes:
    """N-grams of a text that has that many words; a shorter one has none to show."""
    return ngram_hashes(hashes, n=length) if len(hashes) >= length else hashes[:0]
