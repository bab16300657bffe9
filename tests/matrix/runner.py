"""All cells of the matrix, template by template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.matrix.judge import Cell, Judge
from tests.matrix.reference import Server, fixed_clock, opening_of
from tests.matrix.suite import cases

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT.parent / "shared" / "corpus" / "templates"
FROZEN = Path(__file__).with_name("misses.json")


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of one template, by the name of the conversation."""

    template: str
    cells: Mapping[str, Cell]

    @property
    def exact(self) -> int:
        """Turns that are exact."""
        return sum(cell.exact for cell in self.cells.values())

    @property
    def misses(self) -> list[str]:
        """`case: turn k: code` of every turn that is wrong, or refused without need."""
        return [f"{case}: {miss}" for case, cell in self.cells.items() for miss in cell.misses]


def template_paths(names: Sequence[str] = ()) -> list[Path]:
    """The corpus' templates, those with one of the names in theirs."""
    return [path for path in sorted(TEMPLATES.glob("*.jinja")) if not names or any(name in path.name for name in names)]


def judge_template(path: Path, only: Sequence[str] = ()) -> Row:
    """One row of the matrix; `only` names the conversations to judge."""
    with fixed_clock():
        judge = Judge(Server(path.read_text(encoding="utf-8")))
        made = cases(judge.stops[min(1, len(judge.stops) - 1)], opening_of(judge.server))
        chosen = {name: case for name, case in made.items() if not only or name in only}
        return Row(path.stem, {name: judge.cell(case) for name, case in chosen.items()})


def judge_templates(paths: Iterable[Path], only: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of the matrix."""
    return (judge_template(path, only) for path in paths)


def rate(rows: Iterable[Row]) -> float:
    """The share of turns that are exact among those that the template does not force us to refuse."""
    exact, missed = map(sum, zip(*((row.exact, len(row.misses)) for row in rows), strict=True))
    return exact / (exact + missed)


def frozen_misses() -> dict[str, set[str]]:
    """The known misses by template."""
    entries = json.loads(FROZEN.read_text(encoding="utf-8"))
    found: dict[str, set[str]] = {}
    for entry in entries:
        for template, misses in entry["misses"].items():
            found.setdefault(template, set()).update(misses)
    return found
