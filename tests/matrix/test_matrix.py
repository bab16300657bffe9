"""Every real template against every kind of conversation, judged on transformers' own text (A1, A2, A7, A11, C1, C4).

A miss is a turn that is wrong, or refused although the template does not force it (`forced.py`). The misses that are
known stand in `misses.json` with their reasons; the list may only shrink.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.matrix.judge import Judge
from tests.matrix.reference import Server, stop_tokens
from tests.matrix.runner import FROZEN, Row, frozen_misses, judge_template, rate, template_paths
from tests.matrix.suite import cases

LOWEST_RATE = 0.983
"""What the trial before this code reached."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sample() -> list[Path]:
    """The same sixth of the templates in every run."""
    paths = template_paths()
    return random.Random(4).sample(paths, len(paths) // 6)


def unexpected(rows: list[Row]) -> tuple[list[str], list[str]]:
    """Misses that are not in the list, and entries of the list that are none any more."""
    known = frozen_misses()
    new, stale = [], []
    for row in rows:
        found, listed = set(row.misses), known.get(row.template, set())
        new += [f"{row.template}: {miss}" for miss in sorted(found - listed)]
        stale += [f"{row.template}: {miss}" for miss in sorted(listed - found)]
    return new, stale


def test_the_suite_holds_at_least_34_kinds_and_every_kind_trains_something() -> None:
    suite = cases("<|im_end|>", "<|im_start|>assistant\n")
    assert len(suite) >= 34
    assert all(case.trained for case in suite.values())


@pytest.mark.corpus
def test_a_sixth_of_the_real_templates_has_no_miss_that_is_not_listed_a1_a7_a11_c1(corpus: Path) -> None:
    rows = [judge_template(path) for path in sample()]
    assert sum(row.exact for row in rows) > 1800, "turns were judged"
    assert unexpected(rows) == ([], [])


@pytest.mark.corpus
@pytest.mark.slow
def test_all_real_templates_reach_the_rate_and_have_no_miss_that_is_not_listed_a1_a7_a11_c1(corpus: Path) -> None:
    rows = [judge_template(path) for path in template_paths()]
    assert sum(row.exact for row in rows) > 14000, "turns were judged"
    assert unexpected(rows) == ([], [])
    assert rate(rows) >= LOWEST_RATE


def test_every_listed_miss_has_a_reason() -> None:
    entries = json.loads(FROZEN.read_text(encoding="utf-8"))
    assert all(len(entry["reason"]) > 20 and entry["misses"] for entry in entries)


@pytest.mark.parametrize(
    ("template", "case", "letter"),
    [
        (CHATML, "multi", "p"),
        (CHATML, "consecutive", "i"),
        (CHATML, "reasoning", "l"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "single", "n"),
        (CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif"), "single", "c"),
        ("{{ raise_exception('no') }}", "single", "-"),
        (
            CHATML.replace("{{ m.content }}", "{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}"),
            "multi",
            "r",
        ),
    ],
)
def test_the_judge_tells_the_classes_apart_on_templates_small_enough_to_see(
    template: str, case: str, letter: str
) -> None:
    judge = Judge(Server(template))
    cell = judge.cell(cases("<|im_end|>", "<|im_start|>assistant\n")[case])
    assert (cell.letter, list(cell.misses)) == (letter, [])


@pytest.mark.parametrize(
    ("between", "stop"),
    [("<|im_end|>\n", "<|im_end|>"), ("</s>", "</s>"), ("<turn|>\n", "<turn|>"), ("[|endofturn|]\n", "[|endofturn|]")],
)
def test_the_stop_set_is_what_the_template_writes_behind_an_answer(between: str, stop: str) -> None:
    text = "{% for m in messages %}<|" + "{{ m.role }}|>{{ m.content }}" + between + "{% endfor %}"
    assert stop_tokens(Server(text))[-1] == stop


def test_the_stop_is_the_token_that_opens_the_next_turn_where_nothing_ends_this_one_b3() -> None:
    assert stop_tokens(Server("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"))[-1] == "<|user|>"
