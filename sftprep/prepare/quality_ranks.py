"""Rankings over the columns: the largest clusters and groups, as counts first, their texts filled in later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final, NamedTuple

import numpy as np

from sftprep.config.quality import QualityConfig
from sftprep.prepare.quality_flaws import excerpt
from sftprep.prepare.quality_rows import RowColumns, as_hashes
from sftprep.reports.quality_json import Duplicates, Example, Groups, Ranked
from sftprep.stages.diversity import Group, largest_groups
from sftprep.stages.near_duplicates import Clusters

_EARLY: Final = 80


class Wanted(NamedTuple):
    """A text that an example shows: a row's number, the name of one of its texts, or `answers` and which of them."""

    row: int
    what: str
    answer: int = 0


@dataclass(frozen=True, slots=True)
class DuplicatesDraft:
    """Duplicates of a view, still without the texts of its clusters."""

    report: Duplicates
    groups: Sequence[Group]
    what: str
    columns: RowColumns

    def filled(self, texts: Mapping[Wanted, str]) -> Duplicates:
        """The report with its examples."""
        ranked = [
            _ranked(group.size, [Wanted(row, self.what) for row in (group.first, group.last)], self.columns, texts)
            for group in self.groups
        ]
        return self.report.model_copy(update={"clusters": ranked})


@dataclass(frozen=True, slots=True)
class GroupsDraft:
    """Groups, still without the texts of their examples."""

    report: Groups
    groups: Sequence[tuple[int, list[Wanted]]]
    columns: RowColumns

    def filled(self, texts: Mapping[Wanted, str]) -> Groups:
        """The report with its examples."""
        ranked = [_ranked(size, shown, self.columns, texts) for size, shown in self.groups]
        return self.report.model_copy(update={"largest": ranked})


@dataclass(slots=True)
class Ranks:
    """Makes the drafts, and remembers which texts they will show."""

    columns: RowColumns
    config: QualityConfig
    wanted: set[Wanted] = field(default_factory=set)

    def duplicates(self, view: str, clusters: Clusters) -> DuplicatesDraft:
        """Duplicates of a view; its clusters are of at least two rows."""
        present = as_hashes(self.columns.views[view].digests) != 0
        num_texts, num_near = int(present.sum()), int(clusters.repeated.sum())
        keys = np.where(present, clusters.labels + 1, 0).astype(np.uint64)
        _, groups = largest_groups(keys, at_least=2, count=self.config.examples)
        what = view if view != "conversations" else "conversation"
        self._want(groups, what)
        report = Duplicates(
            view=view,
            num_texts=num_texts,
            num_exact=int(clusters.exact.sum()),
            num_near=num_near,
            share_near=num_near / max(num_texts, 1),
            clusters=[],
        )
        return DuplicatesDraft(report, groups, what, self.columns)

    def templates(self, kind: str) -> GroupsDraft:
        """Prompts that are one template filled in."""
        column = as_hashes(self.columns.templates[kind])
        grouped, groups = largest_groups(column, at_least=self.config.group_rows, count=self.config.examples)
        shown = [(g.size, [Wanted(g.first, "prompts"), Wanted(g.last, "prompts")]) for g in groups]
        self.wanted |= {want for _, wants in shown for want in wants}
        return GroupsDraft(_groups(kind, grouped, int((column != 0).sum())), shown, self.columns)

    def openings(self, keys: Sequence[int], places: Sequence[tuple[int, int]]) -> GroupsDraft:
        """Answers that open with the same words; `places` holds each answer's row and its number in the row."""
        least = self.config.group_rows
        grouped, groups = largest_groups(as_hashes(keys), at_least=least, count=self.config.examples)
        shown = [(g.size, [Wanted(places[n][0], "answers", places[n][1]) for n in (g.first, g.last)]) for g in groups]
        self.wanted |= {want for _, wants in shown for want in wants}
        return GroupsDraft(_groups("opening", grouped, len(keys)), shown, self.columns)

    def _want(self, groups: Sequence[Group], what: str) -> None:
        self.wanted |= {Wanted(row, what) for group in groups for row in (group.first, group.last)}


def _groups(kind: str, num_grouped: int, num_texts: int) -> Groups:
    return Groups(kind=kind, num_grouped=num_grouped, share=num_grouped / max(num_texts, 1), largest=[])


def _ranked(size: int, shown: Sequence[Wanted], columns: RowColumns, texts: Mapping[Wanted, str]) -> Ranked:
    """A group with its first member from its beginning, and its last from where it differs."""
    distinct = list(dict.fromkeys(shown))
    start = _common_start([texts[want] for want in distinct])
    examples = [
        Example(place=str(columns.address(want.row)), excerpt=excerpt(texts[want], start=start if number else 0))
        for number, want in enumerate(distinct)
    ]
    return Ranked(size=size, examples=examples)


def _common_start(texts: Sequence[str]) -> int:
    """Where to begin to show how texts differ: three words before they do, 0 where they do so early or never."""
    pairs = zip(texts[0], texts[-1], strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if common < _EARLY or common == min(map(len, texts)):
        return 0
    return len(" ".join(texts[0][:common].split(" ")[:-3]))
