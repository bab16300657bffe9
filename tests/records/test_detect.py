"""A file's format is found from its rows, or refused; it is never guessed."""

from __future__ import annotations

from typing import Any

import pytest

from sftprep.errors import SourceError
from sftprep.records.detect import NUM_EVIDENCE_ROWS, detect_format
from sftprep.records.draft import Format

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
    assert detect_format([{"id": 1}, row, row], place="f") is expected


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([CHAT | PAIR], "ambiguous-format"),
        ([PAIR | {"completion": "c"}], "ambiguous-format"),
        ([CHAT, PAIR], "ambiguous-format"),
        ([{"question": "a"}], "unknown-format"),
        ([{}], "unknown-format"),
    ],
)
def test_what_is_not_certain_is_refused_and_the_hint_names_the_option(rows: list[dict[str, Any]], code: str) -> None:
    with pytest.raises(SourceError) as caught:
        detect_format(rows, place="f")
    assert caught.value.code == code
    assert "--format {openai,sharegpt,alpaca,prompt-response}" in caught.value.hint


def test_only_the_first_rows_decide_and_no_rows_decide_nothing() -> None:
    assert detect_format([CHAT] * NUM_EVIDENCE_ROWS + [PAIR], place="f") is Format.OPENAI
    assert detect_format([], place="f") is None
