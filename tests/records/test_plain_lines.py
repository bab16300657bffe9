"""A line that is read as a plain chat: the full way has nothing to say of it, and reads the same messages."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sftprep.data import Conversation, RowAddress
from sftprep.records.plain_lines import plain_line, plain_lines
from sftprep.sources.lines import read_rows
from sftprep.stages.validate import validate_row

ADDRESS = RowAddress("f", 1)
PLAIN = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
TEXTS = st.text(max_size=4) | st.sampled_from(
    ['{"role":', '"role":', '"content":', '"messages":', "\\", '"', " ", "\n", "潮", "<think>", "\x7f", "\x00", "é »"]
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "developer"])
MESSAGES = st.fixed_dictionaries({"role": ROLES, "content": TEXTS}, optional={"name": TEXTS, "weight": st.just(1)})
IN_TURN = st.lists(TEXTS, min_size=2, max_size=5).map(
    lambda texts: [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
)
ROWS = st.fixed_dictionaries(
    {"messages": IN_TURN | st.lists(MESSAGES, max_size=4)}, optional={"id": st.integers(), "tools": st.just([])}
)


def agrees(raw: bytes) -> bool:
    """Whether a line is a plain chat; it must then be one to the full way, down to the order of keys."""
    chat = plain_line(raw)
    if chat is None:
        return False
    row = validate_row(raw, address=ADDRESS, format=None)
    assert row.findings == ()
    assert row.conversation == Conversation(ADDRESS, chat.messages(), [1.0] * len(chat.texts))
    assert [list(message) for message in row.conversation.messages] == [["role", "content"]] * len(chat.texts)
    return True


def written(row: Any, *, ascii_only: bool, compact: bool) -> bytes:
    text = json.dumps(row, ensure_ascii=ascii_only, separators=(",", ":") if compact else None)
    return text.encode("utf-8", "surrogatepass")


@settings(deadline=None, max_examples=400)
@given(ROWS, st.booleans(), st.booleans())
@example({"messages": [{"role": "user", "content": '"role":'}, {"role": "assistant", "content": "潮"}]}, False, True)
def test_whatever_a_row_says_it_is_read_as_the_full_way_reads_it(row: Any, ascii_only: bool, compact: bool) -> None:
    agrees(written(row, ascii_only=ascii_only, compact=compact))


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_bytes_that_are_altered_anywhere_are_read_alike_or_not_at_all(data: st.DataObject) -> None:
    raw = bytearray(written(data.draw(ROWS), ascii_only=data.draw(st.booleans()), compact=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(raw)))
        stop = data.draw(st.integers(start, min(len(raw), start + 3)))
        raw[start:stop] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b'"role":', b'"content": ""', b"[]", b"{}"])
        )
    agrees(bytes(raw))


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_chats_are_plain_in_either_spelling(*, ascii_only: bool, compact: bool) -> None:
    texts = ['say {"role": 1}', "潮 is a word", "a\nb\\n", '"content":', "x", "y"]
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    system = {"role": "system", "content": '{"messages": [{"role":'}
    assert agrees(written({"messages": messages}, ascii_only=ascii_only, compact=compact))
    assert agrees(written({"messages": [system, *messages]}, ascii_only=ascii_only, compact=compact))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"role": "user"', b'"role": "system", "role": "user"'),
        (b'"role": "user"', b'"role": "user", "role": "user"'),
        (b'"content": "a"', b'"content": "b", "content": "a"'),
        (b'{"messages":', b'{"messages": [], "messages":'),
        (b'{"messages":', b'{"messages": [{"role": "user", "content": "x"}], "messages":'),
        (b"]}", b'], "messages": []}'),
        (b"]}", b'], "id": 1}'),
        (b'"role": "user", "content": "a"', b'"content": "a", "role": "user"'),
        (b'"role": "user"', b'"r\\u006fle": "user"'),
        (b'"role": "user"', b'"role" : "system", "role": "user"'),
        (b'"role": "user"', b'"role": "system","role" : "user"'),
        (b'"role": "user"', b'"role": "system",\t"role": "user"'),
        (b'"role": "user"', b' "role": "user"'),
        (b'"content": "a"', b'"content" : "b", "content": "a"'),
        (b'"content": "a"', b'"content": "b", "content" : "a"'),
        (b'"content": "a"', b'"content": "content"'),
        (b'"content": "a"', b'"content": "role"'),
        (b'"role": "user"', b'"role": "tool"'),
        (b'"role": "user"', b'"role": 1'),
        (b'"content": "a"', b'"content": " \\n"'),
        (b'"content": "a"', b'"content": ""'),
        (b'"content": "a"', b'"content": null'),
        (b'"content": "a"', b'"content": "a", "name": "b"'),
        (b'"content": "a"', b'"content": "\\ud800"'),
        (b'"content": "a"', b'"content": "\xff"'),
        (b'"content": "a"', b'"content": "\xed\xa0\x80"'),
        (b'"content": "a"', b'"content": "\x01"'),
        (b'"content": "a"', b'"content": "\\u0001"'),
        (b'"content": "b"', b'"content": "<think>b"'),
        (b"]}", b"]} x"),
        (b"]}", b"],}"),
    ],
)
def test_a_line_that_is_not_certainly_plain_goes_the_full_way(old: bytes, new: bytes) -> None:
    assert agrees(PLAIN)
    assert old in PLAIN
    assert not agrees(PLAIN.replace(old, new, 1))


@pytest.mark.parametrize("key", [b'"role"', b'"content"'])
def test_space_before_a_colon_hides_no_key(key: bytes) -> None:
    assert agrees(PLAIN.replace(key, key + b" \t"))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("text", ["", " \n"])
def test_of_lines_that_are_read_together_just_those_that_say_nothing_are_not_plain(text: str, place: int) -> None:
    said = PLAIN.replace(b'"a"', json.dumps(text).encode())
    lines = [said if number == place else PLAIN for number in range(3)]
    assert [chat is None for chat in plain_lines(lines)] == [number == place for number in range(3)]


@pytest.mark.parametrize(
    "roles", list(itertools.product(["system", "user", "assistant", "tool"], repeat=3)), ids="-".join
)
def test_roles_are_plain_in_just_the_orders_of_which_nothing_is_to_be_said(roles: tuple[str, ...]) -> None:
    raw = written({"messages": [{"role": r, "content": "a"} for r in roles]}, ascii_only=True, compact=False)
    is_fine = not validate_row(raw, address=ADDRESS, format=None).findings
    assert agrees(raw) == (is_fine and "tool" not in roles)


@pytest.mark.corpus
def test_most_real_lines_are_plain(corpus: Path) -> None:
    rows = [row.raw for row in read_rows(corpus / "bench" / "chat_10k.jsonl.zst", name="f")][::5]
    assert sum(map(agrees, rows)) > 0.9 * len(rows)
