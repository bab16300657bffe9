"""Plain chats that are kept as columns become the chunk that their rows become, one at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sftprep.config.pack import PackConfig
from sftprep.config.validate import ValidateConfig
from sftprep.engines.load import load_model
from sftprep.prepare.check import checker, validated
from sftprep.prepare.chunk import Chunk, RowsRead
from sftprep.prepare.compile import Compiler, batch_compiler
from sftprep.prepare.compile_chunk import compile_chunk
from sftprep.prepare.input_rows import InputRows
from sftprep.prepare.inputs import InputChunk, read_chunk
from sftprep.records.draft import Format
from sftprep.records.plain_lines import plain_conversation
from sftprep.sources.blocks import LineBlock
from tests.prepare.test_plans import SAMPLES, config, same

HOSTILE = [
    "",
    " ",
    "a",
    " x\n",
    "<|im_end|>",
    "<|",
    "</think>",
    "<think>b",
    "潮",
    "\x00",
    '"role":',
    "\n\nx",
    "e\u0301",
]
TEXTS = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
IN_TURN = st.lists(TEXTS, min_size=1, max_size=5).map(
    lambda texts: [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
)
WITH_SYSTEM = st.tuples(TEXTS, IN_TURN).map(lambda pair: [{"role": "system", "content": pair[0]}, *pair[1]])
BACKWARDS = IN_TURN.map(lambda messages: [dict(reversed(message.items())) for message in messages]) | IN_TURN.map(
    lambda messages: [{**message, "weight": 1} if message["role"] == "assistant" else message for message in messages]
)
ROWS = st.fixed_dictionaries(
    {"messages": IN_TURN | WITH_SYSTEM | BACKWARDS},
    optional={"id": st.integers(), "chat_template_kwargs": st.just({"a": 1}), "tools": st.just([])},
)
LINES = (
    ROWS.map(json.dumps) | ROWS.map(lambda row: json.dumps(row, ensure_ascii=False) + "\r") | st.just("{") | st.just("")
)


@pytest.fixture(scope="module")
def own() -> tuple[Compiler, PackConfig]:
    options = config(SAMPLES / "model", max_length=64, over_length="drop", max_drop="100%")
    return batch_compiler(load_model(str(SAMPLES / "model")), options), options


@contextmanager
def no_chats() -> Iterator[None]:
    """Where nothing is taken for a plain chat."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sftprep.prepare.inputs.plain_lines", lambda raws: [None] * len(raws))
        patch.setattr("sftprep.prepare.input_rows.plain_conversation", lambda conversation: None)
        yield


def in_full(chunk: InputChunk) -> tuple[InputRows, RowsRead]:
    """The rows as they are read where no line is taken for a plain chat."""
    with no_chats():
        return read_chunk(chunk, format=None)


def compiled(rows: Any, own: tuple[Compiler, PackConfig]) -> Chunk:
    compile_rows, options = own
    return compile_chunk(rows, compile_row=compile_rows, config=options)


def chunk_of(lines: list[str], *, times: int | tuple[int, ...] = 1) -> InputChunk:
    return InputChunk(3, "chats", LineBlock("\n".join(lines).encode(), 1, 0), times)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(LINES, max_size=8), st.booleans(), st.data())
def test_lines_of_any_kind_are_read_and_compiled_as_one_at_a_time(
    own: tuple[Compiler, PackConfig], lines: list[str], drawn: bool, data: st.DataObject
) -> None:
    num_rows = sum(1 for _ in chunk_of(lines).block.rows("chats"))
    times = tuple(data.draw(st.lists(st.integers(0, 2), min_size=num_rows, max_size=num_rows))) if drawn else 1
    chunk = chunk_of(lines, times=times)
    rows, read = read_chunk(chunk, format=None)
    full, read_in_full = in_full(chunk)
    assert read == read_in_full
    assert list(rows) == list(full)
    assert full.chats == [None] * len(rows)
    fast = compiled(rows, own)
    with no_chats():
        assert same(fast, compiled(list(full), own))


PLAIN = r'{"messages": [{"role": "user", "content": "a\\\":"}, {"role": "assistant", "content": "b"}]'
BESIDE = st.sampled_from(
    [
        '"id": 1',
        '"id": "x"',
        '"id": "\\\\"',
        '"id": "a\\":"',
        '"id": 1.5',
        '"id": 1e999',
        '"id": NaN',
        '"id": -0',
        '"id": null',
        '"id": true',
        '"id": []',
        '"id": ["a"]',
        '"id": {"id": 1}',
        '"id": "\\ud800"',
        '"id": "\\u0041"',
        '"id": [{"role": "user", "content": "x"}]',
        '"id": ' + "9" * 4301,
        '"i\\\\": 1',
        '"i\\"": 1',
        '"i\\u0064": 1',
        '"é": "é"',
        '"\\u00e9": 1',
        '"": 1',
        '"role": "x"',
        '"content": "x"',
        '"messages": []',
        '"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]',
        '"messages": 1',
        '"functions": "x"',
        '"system": "x"',
        '"tools": null',
        '"tools": 1',
        '"chat_template_kwargs": null',
        '"prompt": "x"',
        '"instruction": "x"',
        '"conversations": "x"',
        '"weight": 0',
        "id: 1",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(BESIDE, max_size=3), min_size=1, max_size=5), st.booleans(), st.sampled_from([None, "openai"]))
@example([['"id": 1'], ['"id": 2'], ['"id": 1', '"id": 2'], ['"id": 3']], False, None)
@example([['"id": "x"'], ['"id": "\\ud800"'], ['"id": 1e999'], ['"id": "x"']], True, None)
@example([['"i\\\\": 1'], ['"i\\\\": 1', '"i\\\\": 1']], False, None)
@example([['"messages": []'], ['"tools": null'], ['"tools": 1'], ['"tools": []']], True, None)
@example([['"id": 1'], ['"id": 1e999'], ['"id": [{"role": "user", "content": "x"}]'], ['"id": []']], False, None)
@example([['"id": 1'], ['"id": ' + "9" * 4301], ['"id": ' + "9" * 4300]], True, None)
@example([['"id": 1'], ['"id": 1', '"id": 1'], ['"id": NaN'], ['"id": {"id": 1}']], True, None)
def test_what_stands_beside_a_chat_is_judged_in_every_line_as_in_the_first(
    beside: list[list[str]], before: bool, named: str | None
) -> None:
    """Keys of the row that are known are not read again: their values and their number are looked at all the same."""
    inner = PLAIN.removeprefix("{")
    lines = ["{" + ", ".join([*more, inner] if before else [inner, *more]) + "}" for more in beside]
    rows, read = read_chunk(chunk_of(lines), format=named)
    with no_chats():
        full, read_in_full = read_chunk(chunk_of(lines), format=named)
    assert read == read_in_full
    assert list(rows) == list(full)
    for row, chat in zip(full, rows.chats, strict=True):
        assert chat is None or (row.conversation is not None and plain_conversation(row.conversation) == chat)


def test_of_lines_with_the_same_keys_beside_their_chats_only_the_first_is_read_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [PLAIN + f', "id": {n}, "source": "é\\":", "score": 0.5, "kept": true}}' for n in range(5)]
    in_full: list[int] = []
    monkeypatch.setattr(
        "sftprep.prepare.inputs.validated", lambda r, f: in_full.append(r.address.line) or validated(r, f)
    )
    rows, read = read_chunk(chunk_of(lines), format=None)
    assert in_full == [1]
    assert read.said_once == tuple(("chats", "unknown-row-key", f"/{key}") for key in ("id", "kept", "score", "source"))
    assert [chat is None for chat in rows.chats] == [False] * 5
    row = rows[3]
    assert in_full == [1, 4]
    assert row.conversation is not None
    assert row.conversation.metadata == {"id": 3, "source": 'é":', "score": 0.5, "kept": True}


ASKING = (
    "{% if tools is not none %}{{ 'tools' }}{% endif %}{% if a is defined %}{{ a }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.first %}{{ m | list | join(',') }}{{ 'blank' if not m.content.strip() else '' }}{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_sees_all_of_a_row_sees_it_though_most_rows_are_only_chats(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "model", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(ASKING, encoding="utf-8")
    options = config(tmp_path / "model")
    compile_rows = batch_compiler(load_model(options.model), options)
    user, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}
    rows: list[dict[str, Any]] = [
        {"messages": [user, answer]},
        {"messages": [user, answer], "id": 1},
        {"messages": [user, answer], "tags": ["x"]},
        {"messages": [user, answer], "tools": []},
        {"messages": [user, answer], "chat_template_kwargs": {"a": 1}},
        {"messages": [{"content": "q", "role": "user"}, answer]},
        {"messages": [{"role": "system", "content": "s"}, user, answer], "tags": []},
        {"messages": [{"role": "user", "content": " "}, answer], "tags": []},
        {"messages": [user, {**answer, "weight": 0.5}], "tags": []},
    ]
    found, _ = read_chunk(chunk_of([json.dumps(row) for row in [*rows, *rows]]), format=None)
    fast = compile_chunk(found, compile_row=compile_rows, config=options)
    assert same(fast, compile_chunk(list(found), compile_row=compile_rows.compile_row, config=options))
    assert fast.rendering["replayed"] > len(rows)


def test_rows_of_all_kinds_keep_their_order_and_their_findings(own: tuple[Compiler, PackConfig]) -> None:
    row: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    typed = {"messages": [row["messages"][0], {"role": "assistant", "content": "x<|im_end|>"}]}
    long = {"messages": [row["messages"][0], {"role": "assistant", "content": "long " * 80}]}
    lines = [json.dumps(item) for item in (row, {**row, "id": 1}, typed, long, row, [1], {**row, "id": 2}, row)]
    lines.append(lines[1])
    rows, read = read_chunk(chunk_of(lines, times=(1, 2, 1, 1, 0, 1, 1, 3, 0)), format=None)
    assert [chat is not None for chat in rows.chats] == [True, True, True, True, False, True, True]
    assert rows.others.keys() == {1, 4, 5}
    assert rows[1].conversation is not None
    assert rows[1].conversation.metadata == {"id": 1}
    assert (read.num_rows, read.num_taken, read.num_taken_rows) == (9, 10, 7)
    assert read.said_once == (("chats", "unknown-row-key", "/id"),)
    made = compiled(rows, own)
    assert [(left.address.line, left.code) for left in made.left_out] == [
        (3, "control-token"),
        (4, "over-length"),
        (6, "not-an-object"),
    ]
    assert made.documents["doc_line"].to_pylist() == [1, 2, 7, 8]
    assert made.times.tolist() == [1, 2, 1, 3]
    assert made.classes == {"packed": 7}
    assert made.rendering["replayed"] == 5  # but for the typed token and what is no row


TRIMMING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if 'cat' in m.content %}{{ m.content.strip() }}{% else %}{{ m.content.rstrip() }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def trimming(tmp_path_factory: pytest.TempPathFactory) -> tuple[Compiler, PackConfig]:
    """A model whose template asks what a text says, and takes white space off it."""
    directory = tmp_path_factory.mktemp("trimming") / "model"
    shutil.copytree(SAMPLES / "model", directory)
    (directory / "chat_template.jinja").write_text(TRIMMING, encoding="utf-8")
    options = config(directory)
    return batch_compiler(load_model(str(directory)), options), options


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a cat ", " a dog\n", "a", " cat"]), min_size=2, max_size=2), min_size=1))
@example([["a cat ", " a dog\n"], [" cat", " dog "], [" a dog\n", " cat"], ["a", "a cat "]])
def test_what_a_template_asks_of_texts_and_does_to_them_is_so_for_each_chat(
    trimming: tuple[Compiler, PackConfig], chats: list[list[str]]
) -> None:
    roles = ("user", "assistant")
    rows = [{"messages": [{"role": r, "content": t} for r, t in zip(roles, chat, strict=True)]} for chat in chats]
    chunk = chunk_of([json.dumps(row) for row in rows])
    found, _ = read_chunk(chunk, format=None)
    assert None not in found.chats
    fast = compiled(found, trimming)
    assert fast.rendering["replayed"] == len(chats)
    compile_rows, options = trimming
    assert same(fast, compile_chunk(list(found), compile_row=compile_rows.compile_row, config=options))


def test_a_format_that_is_named_decides_what_is_plain() -> None:
    line = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    assert read_chunk(chunk_of([line]), format="openai")[0].chats[0] is not None
    rows, _ = read_chunk(chunk_of([line]), format="alpaca")
    assert [finding.code for finding in rows[0].findings] == ["other-format"]


def test_a_shape_is_planned_once_and_chats_of_a_known_one_ask_for_no_object(
    own: tuple[Compiler, PackConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ok"}]
    lines = [json.dumps({"messages": turns * (1 + n % 3)}) for n in range(60)]
    first = compiled(read_chunk(chunk_of(lines), format=None)[0], own)
    asked: list[int] = []
    monkeypatch.setattr("sftprep.prepare.recheck._drawn", lambda lines, one_in: [])
    one = InputRows.__getitem__
    monkeypatch.setattr(InputRows, "__getitem__", lambda self, number: asked.append(number) or one(self, number))
    again = compiled(read_chunk(chunk_of(lines), format=None)[0], own)
    assert same(first, again)
    assert again.rendering["replayed"] == 60
    assert asked == []


def test_of_chats_that_are_searched_together_just_those_with_a_typed_token_are_looked_at_by_themselves(
    own: tuple[Compiler, PackConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = {0: 0, 5: 1, 63: 3, 64: 0, 129: 1}
    texts = {n: ["q", "ok"] * (1 + n % 2) for n in range(130)}
    for number, place in typed.items():
        texts[number][place % len(texts[number])] += "<|im_end|>"
    lines = [
        json.dumps(
            {"messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(own_texts)]}
        )
        for own_texts in texts.values()
    ]
    compiled(read_chunk(chunk_of(lines), format=None)[0], own)
    asked: list[int] = []
    monkeypatch.setattr("sftprep.prepare.recheck._drawn", lambda lines, one_in: [])
    one = InputRows.__getitem__
    monkeypatch.setattr(InputRows, "__getitem__", lambda self, number: asked.append(number) or one(self, number))
    chunk = compiled(read_chunk(chunk_of(lines), format=None)[0], own)
    assert set(asked) == set(typed)
    assert [row.address.line for row in chunk.left_out] == [1 + number for number in typed]


@settings(max_examples=100, deadline=None)
@given(st.lists(LINES, max_size=8), st.sampled_from([None, "openai", "alpaca"]), st.booleans())
def test_lines_of_any_kind_are_validated_as_one_at_a_time(lines: list[str], named: str | None, fixes: bool) -> None:
    options = ValidateConfig(files=("chats",), format=named, **({"fix_to": "fixed.jsonl"} if fixes else {}))
    rows = list(chunk_of(lines).block.rows("chats"))
    check = checker(options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sftprep.prepare.check.plain_line", lambda raw: None)
        expected = [check(row) for row in rows]
    assert [check(row) for row in rows] == expected


def test_validation_makes_no_conversation_of_a_plain_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    plain, other = chunk_of([json.dumps(row), json.dumps({**row, "id": 1})]).block.rows("chats")
    read: list[bytes] = []
    whole = validated
    monkeypatch.setattr("sftprep.prepare.check.validated", lambda r, f: read.append(r.raw) or whole(r, f))
    check = checker(ValidateConfig(files=("chats",)))
    assert [check(plain).format, check(other).format] == [Format.OPENAI] * 2
    assert read == [other.raw]


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["qwen3", "smollm2-135m-instruct", "gpt-oss", "mistral-tekken"])
def test_real_lines_are_compiled_as_one_at_a_time(corpus: Path, name: str) -> None:
    options = config(corpus / "models" / name)
    compile_rows = batch_compiler(load_model(options.model), options)
    with zstandard.open(corpus / "bench" / "chat_10k.jsonl.zst", "rt", encoding="utf-8") as file:
        lines = [next(file).rstrip("\n") for _ in range(60)]
    chunk = chunk_of(lines)
    rows, _ = read_chunk(chunk, format=None)
    assert sum(chat is not None for chat in rows.chats) > 40
    assert same(compiled(rows, (compile_rows, options)), compiled(list(in_full(chunk)[0]), (compile_rows, options)))
