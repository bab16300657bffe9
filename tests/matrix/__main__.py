"""`python -m tests.matrix` prints the matrix: a row a template, a column a conversation, a letter a cell.

It writes nothing.

Options: `--template NAME` and `--case NAME` (repeatable) choose cells, `--misses` lists every miss, `--markdown`
prints a table, `--peers` prints the eleven templates and seven conversations that the peers were measured on.
"""

from __future__ import annotations

import argparse
import string
from collections import Counter
from collections.abc import Sequence

from tests.matrix.judge import LEGEND
from tests.matrix.peers import peer_table
from tests.matrix.runner import Row, judge_templates, rate, template_paths

KEYS = string.digits + string.ascii_letters + "!#$%&*+/<=>?@^~"


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge the chosen cells and print them."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--template", action="append", default=[])
    parser.add_argument("--case", action="append", default=[])
    for flag in ("--misses", "--markdown", "--peers"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(arguments)
    if options.peers:
        print(peer_table())
        return
    rows: list[Row] = []
    for row in judge_templates(template_paths(options.template), options.case):
        if not rows:
            print(*_head(list(row.cells), markdown=options.markdown), sep="\n")
        rows.append(row)
        print(_line(row, markdown=options.markdown), flush=True)
        if options.misses:
            print(*(f"    {miss}" for miss in row.misses), sep="\n", end="\n" if row.misses else "")
    print(*_totals(rows), sep="\n")


def _head(names: Sequence[str], *, markdown: bool) -> list[str]:
    columns = [f"{key} {name}" for key, name in zip(KEYS, names, strict=False)]
    if markdown:
        return [*columns, "", f"| template | {' | '.join(KEYS[: len(names)])} |", "|---" * (len(names) + 1) + "|"]
    return [*columns, "", f"{'':52} {KEYS[: len(names)]}"]


def _line(row: Row, *, markdown: bool) -> str:
    letters = [cell.letter for cell in row.cells.values()]
    return f"| {row.template} | {' | '.join(letters)} |" if markdown else f"{row.template:52.52} {''.join(letters)}"


def _totals(rows: Sequence[Row]) -> list[str]:
    counts = Counter(cell.letter for row in rows for cell in row.cells.values())
    missed = sum(len(row.misses) for row in rows)
    letters = " · ".join(f"{letter} {count}" for letter, count in counts.most_common())
    return ["", LEGEND, f"{len(rows)} templates, {counts.total()} cells: {letters}", _rate(rows, missed)]


def _rate(rows: Sequence[Row], missed: int) -> str:
    exact = sum(row.exact for row in rows)
    return f"turns: {exact} exact, {missed} missed: {rate(rows):.2%}" if exact + missed else "no turn can be exact"


if __name__ == "__main__":
    main()
