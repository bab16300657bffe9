"""The measures by source, where rows name theirs, and the gap between human and synthetic ones."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from sftprep.config.quality import QualityConfig
from sftprep.data import Json
from sftprep.reports.quality_json import UNNAMED, Gap, SourceStats
from sftprep.stages.words import Hashes, ngram_hashes

_MOST_SOURCES: Final = 50
_OTHER: Final = "(other)"
# Shares of distinct bigrams compare only where as many were drawn.
_BIGRAMS: Final = 20_000
_GAPS: Final = ("mean_words", "share_near_duplicates", "share_stock", "share_flawed", "distinct_bigrams")


@dataclass(slots=True)
class _Source:
    rows: int = 0
    answers: int = 0
    words: int = 0
    stock: int = 0
    flawed: int = 0
    met: int = 0
    bigrams: set[int] = field(default_factory=set)


@dataclass(slots=True)
class SourceTally:
    """Counts by source; beyond 50 sources the rest are counted as one."""

    config: QualityConfig
    names: dict[str, int] = field(default_factory=dict)
    sources: list[_Source] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("i"))

    def start_row(self, metadata: Mapping[str, Json]) -> None:
        """The answers added next are of a row with this metadata."""
        value = metadata.get(self.config.source_key)
        name = str(value) if value is not None else UNNAMED
        if name not in self.names and len(self.names) >= _MOST_SOURCES:
            name = _OTHER
        number = self.names.setdefault(name, len(self.names))
        if number == len(self.sources):
            self.sources.append(_Source())
        self.sources[number].rows += 1
        self.numbers.append(number)

    def add_answer(self, hashes: Hashes, *, stock: bool, flawed: bool) -> None:
        """Count an answer of the current row."""
        source = self.sources[self.numbers[-1]]
        source.answers += 1
        source.words += len(hashes)
        source.stock += stock
        source.flawed += flawed
        if source.met < _BIGRAMS and len(hashes) > 1:
            own = ngram_hashes(hashes, n=2)[: _BIGRAMS - source.met]
            source.met += len(own)
            source.bigrams.update(own.tolist())

    def stats(self, *, near: npt.NDArray[np.float64]) -> list[SourceStats]:
        """A line a source, the largest first; none where no row names its source."""
        if not set(self.names) - {UNNAMED}:
            return []
        lines = [
            self._stats(name, self.sources[number], near=float(near[number])) for name, number in self.names.items()
        ]
        return sorted(lines, key=lambda line: (-line.num_rows, line.source))

    def _stats(self, name: str, source: _Source, *, near: float) -> SourceStats:
        answers = max(source.answers, 1)
        return SourceStats(
            source=name,
            human=name in self.config.human_sources,
            num_rows=source.rows,
            num_answers=source.answers,
            mean_words=source.words / answers,
            share_near_duplicates=near,
            share_stock=source.stock / answers,
            share_flawed=source.flawed / answers,
            distinct_bigrams=len(source.bigrams) / max(source.met, 1),
        )

    def gaps(self, lines: list[SourceStats]) -> list[Gap]:
        """Each measure as the mean over human and over synthetic rows; rows without a source are in neither."""
        human = [line for line in lines if line.human]
        synthetic = [line for line in lines if not line.human and line.source != UNNAMED]
        if not human or not synthetic:
            return []
        return [Gap(measure=name, human=_mean(human, name), synthetic=_mean(synthetic, name)) for name in _GAPS]


def near_by_source(numbers: array[int], repeated: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The share of each source's rows that repeat an earlier one, float64 `[num_sources]`."""
    if not len(numbers):
        return np.zeros(0)
    of_row = np.array(numbers, dtype=np.int64)
    shares: npt.NDArray[np.float64] = np.bincount(of_row, weights=repeated) / np.maximum(np.bincount(of_row), 1)
    return shares


def _mean(lines: list[SourceStats], name: str) -> float:
    rows = sum(line.num_rows for line in lines)
    return float(sum(getattr(line, name) * line.num_rows for line in lines) / max(rows, 1))
