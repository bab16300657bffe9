"""What a model answered while it was trained: a section of the run's page, each case with its answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from sftprep.reports.line_plot import COLOURS, Line
from sftprep.reports.wording import counted

_MOST_STEPS: Final = 8
"""More answers side by side are not read; metrics.jsonl has all."""

STYLE: Final = """
details { margin: .5rem 0; border: 1px solid #8886; border-radius: .4rem; padding: .4rem .8rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.answers { display: flex; gap: .8rem; overflow-x: auto; padding-bottom: .3rem; }
.answers > div { flex: 1 0 15rem; }
pre { margin: .2rem 0; padding: .4rem .6rem; background: #8882; border-radius: .3rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace; }
.soft { opacity: .75; } .good::before { content: "✓ "; } .bad::before { content: "✗ "; }
"""

Record = Mapping[str, Any]


def score_lines(records: Sequence[Record]) -> dict[str, list[Line]]:
    """A plot for each metric that was measured, a line for each suite."""
    found: dict[str, list[Line]] = {}
    measured = [record for record in records if record.get("eval_scores")]
    names = list(measured[0]["eval_scores"]) if measured else []
    suites = {name.partition(".")[2] for name in names} - {""}
    for name in names:
        metric, _, suite = name.partition(".")
        # Of one suite, the whole is the same line again.
        if not suite and len(suites) == 1:
            continue
        lines = found.setdefault(metric, [])
        lines.append(
            Line(
                suite or "all",
                [record["step"] for record in measured],
                [record["eval_scores"][name] for record in measured],
                colour=COLOURS[len(lines) % len(COLOURS)],
                dotted=True,
            )
        )
    return found


def answers_section(records: Sequence[Record]) -> str:
    """The cases with their answers by step, as HTML; empty where none was asked. Texts are never markup."""
    measured = [record for record in records if record.get("eval_answers")]
    if not measured:
        return ""
    shown = _spread(measured)
    left_out = len(measured) - len(shown)
    between = counted(left_out, "measurement between them is", "measurements between them are")
    note = f" {between} in metrics.jsonl only." if left_out else ""
    cases = "\n".join(_case(number, shown) for number in range(len(shown[0]["eval_answers"])))
    return f'<h2>Answers by step</h2>\n<p class="soft">The same cases, greedy.{note}</p>\n{cases}'


def _spread(measured: Sequence[Record]) -> list[Record]:
    """The first, the last, and evenly many between."""
    if len(measured) <= _MOST_STEPS:
        return list(measured)
    last = len(measured) - 1
    return [measured[round(number * last / (_MOST_STEPS - 1))] for number in range(_MOST_STEPS)]


def _case(number: int, shown: Sequence[Record]) -> str:
    first = shown[0]["eval_answers"][number]
    answers = "".join(_answer(record["step"], record["eval_answers"][number]) for record in shown)
    passed = sum(record["eval_answers"][number]["passed"] for record in shown)
    steps = counted(len(shown), "step")
    return (
        f"<details{' open' if number < 2 else ''}><summary>{escape(first['case'])} "
        f'<span class="soft">passed at {passed} of {steps}</span></summary>'
        f'<pre class="soft">{escape(first["prompt"])}</pre><div class="answers">{answers}</div></details>'
    )


def _answer(step: int, answer: Record) -> str:
    ended = "ended by itself" if answer["stopped"] else "did not end by itself"
    size = counted(answer["num_tokens"], "token")
    verdict = "good" if answer["passed"] else "bad"
    return (
        f'<div><b class="{verdict}">step {step:,}</b> <span class="soft">{size}, {ended}</span>'
        f"<pre>{escape(answer['text'])}</pre></div>"
    )
