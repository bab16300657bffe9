"""`ungrounded` and `length-outlier` on labelled sets of their own, made without a look at what the detectors count.

Twenty contexts that we wrote, each with four sentences that it supports and two that are made up. An answer is two
of them: supported, made up, true of another context, or half and half.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from sftprep.config.quality import QualityConfig
from sftprep.data import Conversation, RowAddress
from sftprep.prepare.quality_flaws import JudgedText, scores
from sftprep.prepare.validate import read_conversations
from sftprep.stages.answer_shape import is_outlier, log_length_spread
from sftprep.stages.dialogue import Answer, row_text
from sftprep.stages.groundedness import gives_context, unsupported
from sftprep.stages.words import word_hashes, words

CONTEXTS = [
    json.loads(line) for line in (Path(__file__).parent / "contexts.jsonl").read_text(encoding="utf-8").splitlines()
]
CONFIG = QualityConfig(files=(Path("labelled"),))
ASKS = (
    "Based on the following passage, what should I know?\n\n{}",
    "Passage: {}\n\nAnswer from the passage alone: what matters here?",
    "Summarise this for a colleague who has no time.\n\n{}",
)


def answers() -> Iterator[tuple[str, str, str]]:
    """The kind of each answer, its context and its text."""
    for number, own in enumerate(CONTEXTS):
        other = CONTEXTS[(number + 7) % len(CONTEXTS)]
        for pair in combinations(own["grounded"], 2):
            yield "supported", own["context"], " ".join(pair)
        yield "made up", own["context"], " ".join(own["invented"])
        for text in own["invented"]:
            yield "made up", own["context"], text
            yield "half", own["context"], f"{own['grounded'][0]} {text}"
        for pair in list(combinations(other["grounded"], 2))[::2]:
            yield "of another", own["context"], " ".join(pair)


def is_ungrounded(context: str, answer: str, number: int) -> bool:
    messages = [
        {"role": "user", "content": ASKS[number % len(ASKS)].format(context)},
        {"role": "assistant", "content": answer},
    ]
    (judged,) = row_text(Conversation(RowAddress("labelled", 1), messages, [1.0, 1.0])).answers
    text = JudgedText(RowAddress("labelled", 1), judged, words(answer), word_hashes(words(answer)))
    found = dict(scores(text, config=CONFIG, identify=lambda _: ("en", 1.0)))
    return found["ungrounded"] > 0


def test_made_up_answers_are_found_and_supported_ones_left_alone() -> None:
    rows = list(answers())
    found: dict[str, list[bool]] = {}
    for number, (kind, context, answer) in enumerate(rows):
        found.setdefault(kind, []).append(is_ungrounded(context, answer, number))
    assert len(rows) >= 200
    assert len({answer for _, _, answer in rows}) >= 200
    counts = {kind: (sum(flags), len(flags)) for kind, flags in found.items()}
    bad = found["made up"] + found["of another"]
    assert sum(bad) / (sum(bad) + sum(found["supported"])) >= 0.98, counts
    assert sum(bad) / len(bad) >= 0.95, counts


REAL = (
    "llamafactory_alpaca_en_demo",
    "gpteacher_toolformer",
    "llamafactory_glaive_toolcall_en_demo",
    "gpteacher_roleplay",
    "self_instruct_seed_and_user_tasks",
    "tau_bench_gpt4o_airline",
)


def real_answers(corpus: Path) -> Iterator[Answer]:
    """Real answers to prompts that give a context."""
    for name in REAL:
        for row in read_conversations(corpus / "chat" / f"{name}.jsonl.zst", name=name):
            judged = row_text(row.conversation).answers if row.conversation is not None else ()
            yield from (own for own in judged if gives_context(own.prompt, tool_results=own.tool_results))


@pytest.mark.corpus
def test_real_answers_are_supported_by_their_context_and_not_by_that_of_another_row(corpus: Path) -> None:
    rows = list(real_answers(corpus))
    shares: dict[str, list[float]] = {"own": [], "other": []}
    for number, own in enumerate(rows):
        # A row from far away: neighbours often are about the same thing.
        other = rows[(number + len(rows) // 2) % len(rows)]
        for kind, context in (("own", own.context), ("other", other.context)):
            shares[kind].append(unsupported(own.text, context=context, by_words=not own.tool_results))
    found = {kind: sum(share >= CONFIG.unsupported_share for share in own) for kind, own in shares.items()}
    counts = f"{found} of {len(rows)}"
    assert len(rows) >= 200
    assert found["other"] / (found["own"] + found["other"]) >= 0.95, counts
    # Most of the others say nothing that can be looked up: "Done. Is there anything else?"
    assert found["other"] / len(rows) >= 0.45, counts


# Median and spread of the lengths, and whether their tails are heavier than a normal's.
POPULATIONS = [(m, s, heavy) for m in (15, 60, 250) for s in (0.25, 0.4, 0.6) for heavy in (False, True)]


@pytest.mark.parametrize("times", [30])
def test_answers_thirty_times_as_long_or_as_short_as_the_median_are_outliers(times: int) -> None:
    rng = np.random.default_rng(11)
    hits = flagged = planted = rows = 0
    for median, spread, heavy in POPULATIONS:
        noise = rng.standard_t(6, 300) if heavy else rng.standard_normal(300)
        usual = np.maximum(np.round(median * np.exp(spread * noise)), 1)
        odd = np.array([median * times] * 4 + [max(median / times, 0)] * 4).round()
        lengths = np.concatenate([usual, odd]).astype(np.int64)
        middle, width = log_length_spread(lengths)
        judge = [is_outlier(int(n), median=middle, spread=width, deviations=CONFIG.length_deviations) for n in lengths]
        rows += len(lengths)
        hits, flagged, planted = hits + sum(judge[300:]), flagged + sum(judge), planted + len(odd)
    assert rows >= 200
    assert hits / flagged >= 0.80, (hits, flagged)
    assert hits / planted >= 0.85, (hits, planted)
