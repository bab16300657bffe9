"""A row's format is found from its keys, or refused; it is never guessed."""

from __future__ import annotations

from typing import Any

import pytest

from sftprep.records.codes import Fault
from sftprep.records.detect import SIGNATURES, detect_format
from sftprep.records.draft import Format
from sftprep.records.read import read_record

CHAT = {"messages": []}
PAIR = {"prompt": "a", "response": "b"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (CHAT, Format.OPENAI),
        (CHAT | {"prompt": "a", "prompt_id": "b"}, Format.OPENAI),
        ({"conversations": []}, Format.SHAREGPT),
        ({"instruction": "a", "output": "b"}, Format.ALPACA),
        (PAIR, Format.PROMPT_RESPONSE),
        ({"prompt": "a", "completion": "b"}, Format.PROMPT_RESPONSE),
    ],
)
def test_a_format_is_known_by_the_keys_that_it_must_have(row: dict[str, Any], expected: Format) -> None:
    assert detect_format(row) is expected


@pytest.mark.parametrize(
    ("row", "code", "evidence"),
    [
        (CHAT | PAIR, "ambiguous-row", "messages: openai; prompt, response: prompt-response"),
        (PAIR | {"completion": "c"}, "ambiguous-row", "completion, prompt: prompt-response"),
        ({"question": "a"}, "unknown-format", "'question'"),
        ({"prompt": "a"}, "unknown-format", "'prompt'"),
        ({}, "unknown-format", "none"),
    ],
)
def test_what_is_not_certain_is_refused_with_evidence_and_the_hint_names_the_option(
    row: dict[str, Any], code: str, evidence: str
) -> None:
    fault = detect_format(row)
    assert isinstance(fault, Fault)
    assert (fault.code, evidence in fault.message) == (code, True)
    assert "--format {openai,sharegpt,alpaca,prompt-response}" in fault.hint


def test_no_other_format_does_without_the_keys_that_the_quick_way_looks_for() -> None:
    others = [keys for known, keys in SIGNATURES if known is not Format.OPENAI]
    assert all(keys & {"conversations", "instruction", "prompt"} for keys in others)
    for _, keys in SIGNATURES[1:]:
        row = dict.fromkeys(keys, "a") | {"messages": []}
        assert read_record(row, named=None).faults[0].code == "ambiguous-row"
