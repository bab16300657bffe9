"""The quick way through plain rows says what the full way says: it never misses a fault (D10, E5, D6, M3)."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sftprep.data import RowAddress
from sftprep.records import plain
from sftprep.records.draft import Format
from sftprep.records.json_text import parse_json
from sftprep.records.plain import has_suspect_text, is_suspect, plain_chat
from sftprep.records.read import read_record
from sftprep.sources.lines import read_rows
from sftprep.stages.validate import validate_row

ADDRESS = RowAddress("f", 1)
PIECES = (
    "</think>",
    "<think>",
    "<thinking>",
    "[THINK]",
    "</reasoning>",
    "<thought>",
    "<tool_response>",
    "<tool_output>",
    "<function_result>",
    "<function_response>",
    "<observation>",
    "<execution_result>",
    "[TOOL_RESULTS]",
    "<|tool_response|>",
    "<|observation|>",
    "\nObservation: 1",
    "cafÃ©",
    "itâ€™s",
    "ðŸŒŠ",
    "Ð¿Ñ€Ð¸Ð²ÐµÑ‚",
    "РџСЂРёРІРµС‚",
    "æ½®æ±\x90",
    "\ufffd",
    "\x00",
    "\x08",
    "\x0c",
    "\x1b[0m",
    "\x7f",
    "\x9d",
    "\x85",
    "a",
    " ",
    "\n",
    '":',
    '" :',
    "\\",
    "潮",
    "é »",
    "https://a/b",
)
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=4).map("".join)
MESSAGES = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXTS})
ROWS = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES, max_size=5)},
    optional={"id": st.integers(), "tools": st.just([]), "system": TEXTS, "functions": st.none()},
)
IN_TURN = st.tuples(TEXTS, TEXTS).map(
    lambda pair: {
        "messages": [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}],
        "id": 1,
        "functions": [],
    }
)


def full(raw: bytes) -> list[tuple[str, str]]:
    """Codes and places as the full way finds them."""
    parsed = parse_json(raw)
    record = read_record(parsed.value, named=None, suspect=True)
    return [(fault.code, fault.pointer) for fault in (*parsed.faults, *record.faults)]


@settings(deadline=None, max_examples=500)
@given(ROWS | IN_TURN, st.booleans(), st.booleans())
@example({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "</think>"}]}, True, False)
def test_both_ways_find_the_same(row: Any, ascii_only: bool, html_safe: bool) -> None:
    text = json.dumps(row, ensure_ascii=ascii_only)
    if html_safe:
        text = text.replace("<", "\\u003c").replace(">", "\\u003E")
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        return
    checked = validate_row(raw, address=ADDRESS, format=None)
    assert [(finding.code, finding.pointer) for finding in checked.findings] == full(raw)


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_each_piece_is_judged_alike_both_ways_in_either_spelling(piece: str, *, ascii_only: bool) -> None:
    answered = {"messages": [{"role": "user", "content": f"a{piece}"}, {"role": "assistant", "content": f"b{piece}"}]}
    lower = json.dumps(answered, ensure_ascii=ascii_only)
    upper = re.sub(r"(?<=\\u)[0-9a-f]{4}", lambda found: found.group().upper(), lower)
    for text in (lower, upper):
        checked = validate_row(text.encode(), address=ADDRESS, format=None)
        assert [(finding.code, finding.pointer) for finding in checked.findings] == full(text.encode())


@settings(deadline=None, max_examples=500)
@given(ROWS, st.booleans())
def test_a_row_in_ascii_is_suspect_for_what_is_suspect_anywhere(row: Any, compact: bool) -> None:
    raw = json.dumps(row, separators=(",", ":") if compact else None).encode()
    assert has_suspect_text(raw) == plain._holds_any(raw)
    assert is_suspect(raw) == (plain._holds_any(raw) or re.search(rb'"[ \t\r\n]+:', raw) is not None)


@pytest.mark.parametrize("piece", ["cafÃ©", "Â»", "itâ€™s", "ðŸŒŠ", "Ð¿Ñ€Ð¸", "\u00f4\u0080\u0080\u0080" * 3, "РІРµС‚"])
def test_text_of_the_wrong_encoding_is_found_whatever_it_begins_with(piece: str) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"b {piece}"}]}
    assert ("mojibake", "/messages/1/content") in full(json.dumps(row).encode())


@settings(deadline=None, max_examples=400)
@given(
    TEXTS.flatmap(
        lambda text: st.tuples(st.just(text), st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
    )
)
@example(("cafÃ©", [False] * 4 + [True]))
@example(("cafÃ©", [False] * 3 + [True, False]))
@example(("РџСЂРё", [True, False] * 3))
def test_whichever_of_the_characters_are_escaped_both_ways_find_the_same(spelled: tuple[str, list[bool]]) -> None:
    body = "".join(
        f"\\u{ord(char):04x}" if escaped and ord(char) < 1 << 16 else json.dumps(char, ensure_ascii=False)[1:-1]
        for char, escaped in zip(*spelled, strict=True)
    )
    raw = f'{{"messages": [{{"role": "user", "content": "a"}}, {{"role": "assistant", "content": "b{body}"}}]}}'
    try:
        found = validate_row(raw.encode(), address=ADDRESS, format=None).findings
    except UnicodeEncodeError:
        return
    assert [(finding.code, finding.pointer) for finding in found] == full(raw.encode())


@pytest.mark.corpus
def test_real_rows_are_not_suspect_for_being_written_in_ascii(corpus: Path) -> None:
    """As pandas and Python's own json write them unless told otherwise."""
    rows = [json.loads(row.raw) for row in read_rows(corpus / "bench" / "chat_10k.jsonl.zst", name="f")][::7]
    assert sum(is_suspect(json.dumps(row).encode()) for row in rows) < len(rows) / 50


@pytest.mark.parametrize(
    "roles", list(itertools.product(["system", "user", "assistant", "tool"], repeat=3)), ids="-".join
)
def test_every_order_of_roles_is_judged_alike_both_ways(roles: tuple[str, ...]) -> None:
    raw = json.dumps({"messages": [{"role": role, "content": "a"} for role in roles]}).encode()
    checked = validate_row(raw, address=ADDRESS, format=None)
    assert [(finding.code, finding.pointer) for finding in checked.findings] == full(raw)


@pytest.mark.parametrize("escape", [r"\u0022", r"\"", r"\\", r"\u005c\"", r"\u005C"])
@pytest.mark.parametrize("colon", [":", " :", r"\u003a", r"\u003A"])
def test_a_key_given_twice_is_found_whatever_stands_in_the_texts(escape: str, colon: str) -> None:
    between = colon if colon in {":", " :"} else ":"
    text = (
        '{"messages"%s [{"role": "user", "content": "a%s%s"}, {"role": "assistant", "content": "b", "content": "c"}]}'
    )
    raw = (text % (between, escape, colon)).encode()
    findings = validate_row(raw, address=ADDRESS, format=None).findings
    assert [finding.code for finding in findings] in (["duplicate-key"], ["bad-json"])
    once = raw.replace(b'"content": "b", ', b"")
    codes = [finding.code for finding in validate_row(once, address=ADDRESS, format=None).findings]
    assert codes in ([], ["bad-json"])


@pytest.mark.parametrize(
    "row",
    [
        {"messages": []},
        {"messages": {}},
        {"messages": [[], []]},
        {"messages": [{"role": [], "content": "a"}]},
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "text": "a"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}], "tools": 1},
    ],
)
def test_what_is_not_plain_goes_the_full_way(row: Any) -> None:
    assert plain_chat(row) is None
    if not isinstance(row["messages"], dict):
        assert validate_row(json.dumps(row).encode(), address=ADDRESS, format=None).findings


def test_a_plain_row_goes_the_quick_way_and_other_formats_that_were_named_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    raw = json.dumps(row).encode()
    assert not is_suspect(raw)
    assert validate_row(raw, address=ADDRESS, format=Format.ALPACA).findings[0].code == "other-format"
    taken = []
    monkeypatch.setattr("sftprep.records.read.plain_chat", lambda value: taken.append(value) or plain.plain_chat(value))
    assert validate_row(raw, address=ADDRESS, format=None).conversation is not None
    assert taken == [row]


@pytest.mark.corpus
def test_on_real_rows_both_ways_find_the_same_and_nearly_all_go_the_quick_way(corpus: Path) -> None:
    rows = [row.raw for row in read_rows(corpus / "bench" / "chat_10k.jsonl.zst", name="f")][::7]
    for raw in rows:
        checked = validate_row(raw, address=ADDRESS, format=None)
        assert [(finding.code, finding.pointer) for finding in checked.findings] == full(raw)
    assert sum(map(is_suspect, rows)) < len(rows) / 50
