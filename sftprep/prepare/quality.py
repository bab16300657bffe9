"""Measure the quality of chat data: repetition, diversity, low-quality answers, and leakage into held-out rows.

from pathlib import Path
from sftprep.config.quality import QualityConfig
from sftprep.prepare.quality import measure_quality

report = measure_quality(QualityConfig(files=(Path("chats.jsonl"),), against=(Path("eval.jsonl"),)))
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from sftprep.config.quality import QualityConfig
from sftprep.prepare.quality_flaws import FlawTally, JudgedText
from sftprep.prepare.quality_leaks import HeldOut
from sftprep.prepare.quality_ranks import Ranks, Wanted
from sftprep.prepare.quality_rows import VIEWS, RowColumns, rereadable
from sftprep.prepare.quality_sources import SourceTally, near_by_source
from sftprep.prepare.validate import read_conversations
from sftprep.reports.quality_json import Distinct, Diversity, Leakage, QualityReport, StockPhrase, write_quality
from sftprep.sources.compressed import OnBytes
from sftprep.stages.answer_phrases import BOILERPLATE, stock_phrases
from sftprep.stages.dialogue import RowText, row_text
from sftprep.stages.diversity import OPENING_WORDS, DistinctTally, sequence_key
from sftprep.stages.language import load_identifier
from sftprep.stages.near_duplicates import Hashes
from sftprep.stages.words import ngram_hashes, word_hashes, words

__all__ = ["QualityReport", "measure_quality"]


_DISTINCT: Final = (1, 2, 3)


def measure_quality(config: QualityConfig, *, on_bytes: OnBytes | None = None) -> QualityReport:
    """Measure every row without errors; the files are read twice, the second time for the texts of examples.

    Writes the report where the config names a file.

    Raises:
        UsageError: a file cannot be opened, or `missing-extra`.
        SourceError: a file is empty, damaged, or its format is not certain.
        OutputError: the report cannot be written.
    """
    config = config.model_copy(update={"files": rereadable(config.files), "against": rereadable(config.against)})
    tally = _Tally(config, FlawTally(config, load_identifier()), SourceTally(config))
    held_out = _held_out(config)
    for row in tally.rows(on_bytes=on_bytes):
        shingles = tally.add(row)
        if held_out is not None:
            held_out.compare(row, shingles=shingles)
    report = _report(tally, held_out.report() if held_out is not None else None)
    if config.json_file is not None:
        write_quality(report, path=config.json_file)
    return report


def _held_out(config: QualityConfig) -> HeldOut | None:
    if not config.against:
        return None
    rows = (
        row_text(row.conversation) if row.conversation is not None else None
        for path in config.against
        for row in read_conversations(path, name=str(path), format=config.format)
    )
    return HeldOut.of(rows, files=[str(path) for path in config.against], threshold=config.near_duplicate)


def _texts(path: Path, *, format: str | None) -> Iterator[RowText]:
    for row in read_conversations(path, name=str(path), format=format):
        if row.conversation is not None:
            yield row_text(row.conversation)


@dataclass(slots=True)
class _Tally:
    """Everything counted over all rows."""

    config: QualityConfig
    flaws: FlawTally
    sources: SourceTally
    columns: RowColumns = field(default_factory=RowColumns)
    distinct: list[DistinctTally] = field(default_factory=lambda: [DistinctTally(n) for n in _DISTINCT])
    stock: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BOILERPLATE, 0))
    num_stock: int = 0
    openings: array[int] = field(default_factory=lambda: array("Q"))
    opening_rows: array[int] = field(default_factory=lambda: array("q"))
    opening_parts: array[int] = field(default_factory=lambda: array("i"))
    num_skipped: int = 0

    def rows(self, *, on_bytes: OnBytes | None) -> Iterator[RowText]:
        """The texts of all rows without errors; those with errors are counted."""
        for path in self.config.files:
            for row in read_conversations(path, name=str(path), format=self.config.format, on_bytes=on_bytes):
                if row.conversation is None:
                    self.num_skipped += 1
                    continue
                self.sources.start_row(row.conversation.metadata)
                yield row_text(row.conversation)

    def add(self, row: RowText) -> dict[str, Hashes]:
        """Count a row and its answers; the shingles of its texts come back."""
        for part, answer in enumerate(row.answers):
            tokens = words(answer.text)
            text = JudgedText(row.address, answer, tokens, word_hashes(tokens))
            phrases = stock_phrases(answer.text)
            self.opening_parts.append(part)
            self._add_answer(text, phrases)
            self.sources.add_answer(text.hashes, stock=bool(phrases), flawed=self.flaws.add(text))
        return self.columns.add(row)

    def _add_answer(self, text: JudgedText, phrases: list[str]) -> None:
        for tally in self.distinct:
            tally.add(ngram_hashes(text.hashes, n=tally.n) if len(text.hashes) >= tally.n else text.hashes[:0])
        self.openings.append(sequence_key(text.hashes[:OPENING_WORDS]))
        self.opening_rows.append(len(self.columns))
        self.num_stock += bool(phrases)
        for phrase in phrases:
            self.stock[phrase] += 1

    @property
    def opening_places(self) -> Sequence[tuple[int, int]]:
        """Row and number within the row of each answer."""
        return list(zip(self.opening_rows, self.opening_parts, strict=True))

    @property
    def num_answers(self) -> int:
        """Trained turns that have text."""
        return len(self.openings)


def _report(tally: _Tally, leakage: Leakage | None) -> QualityReport:
    config = tally.config
    ranks = Ranks(tally.columns, config)
    found = {name: tally.columns.views[name].clusters(threshold=config.near_duplicate) for name in VIEWS}
    duplicates = [ranks.duplicates(name, clusters) for name, clusters in found.items()]
    templates = [ranks.templates(kind) for kind in tally.columns.templates]
    openings = ranks.openings(tally.openings, tally.opening_places)
    texts = _example_texts(tally, ranks.wanted)
    sources = tally.sources.stats(near=near_by_source(tally.sources.numbers, found["responses"].repeated))
    return QualityReport(
        files=[str(path) for path in config.files],
        num_rows=len(tally.columns),
        num_skipped=tally.num_skipped,
        num_answers=tally.num_answers,
        near_duplicate=config.near_duplicate,
        duplicates=[draft.filled(texts) for draft in duplicates],
        diversity=Diversity(
            distinct=[
                Distinct(n=t.n, num_distinct=t.distinct, num_total=t.total, share=t.distinct / max(t.total, 1))
                for t in tally.distinct
            ],
            openings=openings.filled(texts),
            templates=[draft.filled(texts) for draft in templates],
            num_stock=tally.num_stock,
            share_stock=tally.num_stock / max(tally.num_answers, 1),
            stock_phrases=_stock_phrases(tally),
        ),
        flaws=tally.flaws.flaws(),
        sources=sources,
        gaps=tally.sources.gaps(sources),
        leakage=leakage,
    )


def _stock_phrases(tally: _Tally) -> list[StockPhrase]:
    used = sorted((-count, phrase) for phrase, count in tally.stock.items() if count)
    return [StockPhrase(phrase=p, num_answers=-n, share=-n / max(tally.num_answers, 1)) for n, p in used]


def _example_texts(tally: _Tally, wanted: set[Wanted]) -> dict[Wanted, str]:
    """The texts that examples show, read again: only their places were kept."""
    by_row: dict[int, list[Wanted]] = {}
    for want in wanted:
        by_row.setdefault(want.row, []).append(want)
    texts: dict[Wanted, str] = {}
    again = (row for path in tally.config.files for row in _texts(path, format=tally.config.format))
    last = max(by_row, default=-1)
    for number, row in enumerate(islice(again, last + 1)):
        for want in by_row.get(number, ()):
            texts[want] = row.answers[want.answer].text if want.what == "answers" else getattr(row, want.what)
    return texts
