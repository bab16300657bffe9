"""Every fault of a row, at once, at its place, with what to do about it (D1 to D7, D10, E5, L1, M3)."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sftprep.data import RowAddress, Severity
from sftprep.records.codes import CODES
from sftprep.records.draft import Format
from sftprep.stages.validate import ValidatedRow, validate_row

ADDRESS = RowAddress("f.jsonl", 7)
USER = {"role": "user", "content": "Tide?"}
ANSWER = {"role": "assistant", "content": "At six."}


def check(row: Any, kind: Format | None = Format.OPENAI) -> ValidatedRow:
    return validate_row(json.dumps(row).encode(), address=ADDRESS, format=kind)


def found(row: Any, kind: Format | None = Format.OPENAI) -> list[tuple[str, str]]:
    return [(finding.code, finding.pointer) for finding in check(row, kind).findings]


def chat(*messages: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": list(messages), **keys}


TIDE = {
    "type": "function",
    "function": {
        "name": "tide",
        "parameters": {"type": "object", "properties": {"hour": {"type": "integer"}, "at": {"enum": ["quay", "bar"]}}},
    },
}


def tooled(*messages: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": list(messages), "tools": [TIDE], **keys}


def call(arguments: Any = "{}", **keys: Any) -> dict[str, Any]:
    return {**keys, "type": "function", "function": {"name": "tide", "arguments": arguments}}


def calling(*calls: Any, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **keys}


def result(key: str | None = None) -> dict[str, Any]:
    return {"role": "tool", "content": "18:40"} | ({} if key is None else {"tool_call_id": key})


FAULTS = {
    "unknown role": (chat(USER, {"role": "bot", "content": ""}, ANSWER), [("unknown-role", "/messages/1/role")]),
    "no role": (chat({"content": "a"}, ANSWER), [("missing-key", "/messages/0/role")]),
    "a role that is a number": (chat({"role": 5, "content": "a"}, ANSWER), [("unknown-role", "/messages/0/role")]),
    "no content": (chat({"role": "user"}, ANSWER), [("missing-key", "/messages/0/content")]),
    "unknown key L1": (chat(USER | {"wieght": 0}, ANSWER), [("unknown-key", "/messages/0/wieght")]),
    "weight of a prompt L1": (chat(USER | {"weight": 0}, ANSWER), [("unknown-key", "/messages/0/weight")]),
    "loss flag in a call L1": (
        tooled(USER, calling(call() | {"loss": False})),
        [("unknown-key", "/messages/1/tool_calls/0/loss")],
    ),
    "a key named like a role": (chat(USER | {"assistant": 1}, ANSWER), [("unknown-key", "/messages/0/assistant")]),
    "a key with a slash": (chat(USER | {"a/b~": 1}, ANSWER), [("unknown-key", "/messages/0/a~1b~0")]),
    "number for text": (chat({"role": "user", "content": 5}, ANSWER), [("wrong-type", "/messages/0/content")]),
    "object for text": (
        chat({"role": "user", "content": {"str": 1}}, ANSWER),
        [("wrong-type", "/messages/0/content")],
    ),
    "image part": (
        chat({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "text": "b"}]}, ANSWER),
        [("wrong-value", "/messages/0/content/1/type")],
    ),
    "number as part": (
        chat({"role": "user", "content": [{"type": "text", "text": 3}]}, ANSWER),
        [("wrong-type", "/messages/0/content/0/text")],
    ),
    "null prompt D5": (chat({"role": "user", "content": None}, ANSWER), [("null-content", "/messages/0/content")]),
    "negative weight": (chat(USER, ANSWER | {"weight": -1}), [("bad-weight", "/messages/1/weight")]),
    "weight as text": (chat(USER, ANSWER | {"weight": "1"}), [("bad-weight", "/messages/1/weight")]),
    "weight and train": (chat(USER, ANSWER | {"weight": 1, "train": True}), [("weight-and-train", "/messages/1")]),
    "message is text": (chat(USER, "At six.", ANSWER), [("wrong-type", "/messages/1")]),
    "no messages": (chat(), [("no-messages", "/messages")]),
    "messages is text": ({"messages": "a"}, [("wrong-type", "/messages")]),
    "tools as text D4": (chat(USER, ANSWER, tools="[]"), [("tools-string", "/tools")]),
    "tools misnamed D4": (chat(USER, ANSWER, functions=[]), [("misplaced-key", "/functions")]),
    "system prompt as a row key": (chat(USER, ANSWER, system="Be brief."), [("misplaced-key", "/system")]),
    "tool without name": (chat(USER, ANSWER, tools=[{"function": {}}]), [("bad-tool", "/tools/0")]),
    "bare tool": (chat(USER, ANSWER, tools=[{"name": "tide"}]), [("bare-tool", "/tools/0")]),
    "no assistant": (chat(USER), [("no-assistant", "/messages")]),
    "ends with the user": (chat(USER, ANSWER, USER), [("ends-without-assistant", "/messages/2")]),
    "late system": (chat(USER, {"role": "system", "content": "a"}, ANSWER), [("late-system", "/messages/1")]),
    "two answers D10": (chat(USER, ANSWER, ANSWER), [("consecutive-assistant", "/messages/2")]),
    "empty answer": (chat(USER, ANSWER | {"content": ""}), [("empty-completion", "/messages/1")]),
    "absent answer": (chat(USER, {"role": "assistant"}), [("empty-completion", "/messages/1")]),
    "empty parts": (chat(USER, ANSWER | {"content": []}), [("empty-completion", "/messages/1")]),
    "arguments not JSON D1": (
        tooled(USER, calling(call("{a}"))),
        [("bad-arguments", "/messages/1/tool_calls/0/function/arguments")],
    ),
    "arguments a number": (
        tooled(USER, calling(call(5))),
        [("wrong-type", "/messages/1/tool_calls/0/function/arguments")],
    ),
    "arguments a JSON list": (
        tooled(USER, calling(call("[]"))),
        [("arguments-not-object", "/messages/1/tool_calls/0/function/arguments")],
    ),
    "unknown id": (
        tooled(USER, calling(call(id="a")), result("b"), ANSWER),
        [("unknown-tool-call-id", "/messages/2/tool_call_id"), ("unanswered-call", "/messages/1/tool_calls/0")],
    ),
    "result before its call": (
        tooled(USER, result("a"), calling(call(id="a"))),
        [("unknown-tool-call-id", "/messages/1/tool_call_id")],
    ),
    "result without id": (
        tooled(USER, calling(call(id="a")), result(), ANSWER),
        [("missing-tool-call-id", "/messages/2"), ("unanswered-call", "/messages/1/tool_calls/0")],
    ),
    "call without id": (
        tooled(USER, calling(call(id="a"), call())),
        [("missing-tool-call-id", "/messages/1/tool_calls/1")],
    ),
    "one id for two open calls": (
        tooled(USER, calling(call(id="a"), call(id="a"))),
        [("duplicate-tool-call-id", "/messages/1/tool_calls/1/id")],
    ),
    "an id again after its answer": (
        tooled(USER, calling(call(id="a")), result("a"), calling(call(id="a")), result("a"), ANSWER),
        [("reused-tool-call-id", "/messages/3/tool_calls/0/id")],
    ),
    "answered twice": (
        tooled(USER, calling(call(id="a")), result("a"), result("a"), ANSWER),
        [("repeated-tool-result", "/messages/3/tool_call_id")],
    ),
    "result of nothing": (chat(USER, result(), ANSWER), [("orphan-tool-result", "/messages/1")]),
    "closed only E5": (
        chat(USER, ANSWER | {"content": "a</think>b"}),
        [("unbalanced-reasoning", "/messages/1/content")],
    ),
    "opened only E5": (
        chat(USER, ANSWER | {"reasoning_content": "<think>a"}),
        [("unbalanced-reasoning", "/messages/1/reasoning_content")],
    ),
    "nested E5": (
        chat(USER, ANSWER | {"content": "<think><think>a</think></think>"}),
        [("unbalanced-reasoning", "/messages/1/content")],
    ),
    "another tag E5": (
        chat(USER, ANSWER | {"content": "<reasoning>a</think>b"}),
        [("unbalanced-reasoning", "/messages/1/content")],
    ),
    "nested of two kinds E5": (
        chat(USER, ANSWER | {"content": "<think><thinking>a</thinking>b"}),
        [("unbalanced-reasoning", "/messages/1/content")],
    ),
    "reasoning in two places E4": (
        chat(USER, ANSWER | {"reasoning_content": "a", "content": "<think>a</think>b"}),
        [("reasoning-twice", "/messages/1/reasoning_content")],
    ),
    "a made-up result D6": (
        chat(USER, ANSWER | {"content": "I look.\n<tool_response>18:40</tool_response>\nAt six."}),
        [("embedded-tool-result", "/messages/1/content")],
    ),
    "an observation D6": (
        chat(USER, ANSWER | {"content": "Action: tide\nObservation: 18:40"}),
        [("embedded-tool-result", "/messages/1/content")],
    ),
    "two questions D10": (chat(USER, USER, ANSWER), [("consecutive-user", "/messages/1")]),
    "an answer to nothing D10": (chat(ANSWER, USER, ANSWER), [("starts-with-assistant", "/messages/0")]),
    "an answer to the system D10": (
        chat({"role": "system", "content": "a"}, ANSWER, USER, ANSWER),
        [("starts-with-assistant", "/messages/1")],
    ),
    "blank answer": (chat(USER, ANSWER | {"content": " \n\u3000"}), [("empty-completion", "/messages/1")]),
    "blank question": (chat(USER | {"content": "\t"}, ANSWER), [("blank-content", "/messages/0/content")]),
    "empty question": (chat(USER | {"content": ""}, ANSWER), [("blank-content", "/messages/0/content")]),
    "unknown tool": (
        tooled(USER, calling({"type": "function", "function": {"name": "ebb", "arguments": {}}})),
        [("unknown-tool", "/messages/1/tool_calls/0/function/name")],
    ),
    "no tools D4": (chat(USER, calling(call()), result(), ANSWER), [("no-tools", "/messages/1/tool_calls")]),
    "two tools of one name": (chat(USER, ANSWER, tools=[TIDE, TIDE]), [("duplicate-tool", "/tools/1")]),
    "parameters that are no schema": (
        chat(USER, ANSWER, tools=[{"type": "function", "function": {"name": "a", "parameters": {"type": "dict"}}}]),
        [("bad-schema", "/tools/0/function/parameters")],
    ),
    "arguments of the wrong type D1": (
        tooled(USER, calling(call({"hour": "six"}))),
        [("arguments-misfit", "/messages/1/tool_calls/0/function/arguments")],
    ),
    "arguments as text that misfit twice D1": (
        tooled(USER, calling(call('{"hour": 1.5, "at": "mole"}'))),
        [("arguments-misfit", "/messages/1/tool_calls/0/function/arguments")] * 2,
    ),
    "a call without a result": (
        tooled(USER, calling(call(id="a"), call(id="b")), result("a"), ANSWER, USER, ANSWER),
        [("unanswered-call", "/messages/1/tool_calls/1")],
    ),
    "a call without a result or ids": (
        tooled(USER, calling(call(), call()), result(), USER, ANSWER),
        [("unanswered-call", "/messages/1/tool_calls/1")],
    ),
    "more results than calls": (
        tooled(USER, calling(call()), result(), result(), ANSWER),
        [("orphan-tool-result", "/messages/3")],
    ),
    "wrong encoding": (chat(USER | {"content": "the cafÃ©â€™s"}, ANSWER), [("mojibake", "/messages/0/content")]),
    "wrong encoding in Cyrillic": (
        chat(USER, ANSWER | {"content": "РџСЂРёРІРµС‚"}),
        [("mojibake", "/messages/1/content")],
    ),
    "replacement character in an argument": (
        tooled(USER, calling(call({"at": "quay", "n/a": "a\ufffdb"}))),
        [("replacement-character", "/messages/1/tool_calls/0/function/arguments/n~1a")],
    ),
    "escape sequence": (chat(USER | {"content": "\x1b[0m"}, ANSWER), [("control-character", "/messages/0/content")]),
    "C1 character": (chat(USER | {"content": "a\x92s"}, ANSWER), [("control-character", "/messages/0/content")]),
    "metadata": (chat(USER, ANSWER, topic="sea"), [("unknown-row-key", "/topic")]),
    "a list": ([USER], [("not-an-object", "")]),
    "another format": (
        {"conversations": [{"from": "human", "value": "a"}]},
        [("other-format", "")],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_its_code_and_its_place(name: str) -> None:
    row, expected = FAULTS[name]
    assert found(row) == expected
    checked = check(row)
    bad = any(finding.severity is Severity.ERROR for finding in checked.findings)
    assert (checked.conversation is None) == bad
    assert all(finding.hint and str(finding).startswith("f.jsonl:7:") for finding in checked.findings)


def test_every_code_of_the_conversation_is_shown_by_some_row() -> None:
    shown = {code for _, expected in FAULTS.values() for code, _ in expected}
    text = {"invalid-utf8", "bad-json", "duplicate-key", "non-finite-number", "lone-surrogate", "too-deep"}
    elsewhere = {"ambiguous-row", "unknown-format", "bad-function-call", "null-as-absent"}
    assert shown | text | elsewhere == set(CODES)


def test_a_text_of_a_broken_kind_is_one_finding_that_counts_and_shows() -> None:
    row = chat(USER | {"content": "a\ufffdb\ufffd \x00 Ã¼"}, ANSWER)
    messages = {finding.code: finding.message for finding in check(row).findings}
    assert messages["replacement-character"] == "2 × U+FFFD, first as character 2"
    assert messages["control-character"] == "1 × control characters, first U+0000 as character 6"
    assert "Ã¼" in messages["mojibake"]


@pytest.mark.parametrize(
    "text", ["cafÃ©", "Ð¿ÑÐ¸Ð²ÐµÑ", "æ½®æ±å¤ªé\x83Ž", "itâ€™s", "ðŸŒŠ", "a\ufffd", "\x7f", "\x08", "\x0c", "\x85\x86"]
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_broken_characters_are_found_however_the_row_writes_them(text: str, *, ascii_only: bool) -> None:
    raw = json.dumps(chat(USER | {"content": text}, ANSWER), ensure_ascii=ascii_only).encode()
    codes = {finding.code for finding in validate_row(raw, address=ADDRESS, format=Format.OPENAI).findings}
    assert len(codes & {"mojibake", "replacement-character", "control-character"}) == 1


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
def test_utf8_read_as_latin_1_is_mojibake_wherever_it_has_three_characters_in_a_row(text: str) -> None:
    word = "".join(character for character in text if ord(character) > 0x7FF)[:6]
    broken = word.encode().decode("latin-1")
    codes = {finding.code for finding in check(chat(USER | {"content": broken}, ANSWER)).findings}
    if len(word) >= 3:
        assert "mojibake" in codes


def test_a_remote_schema_is_never_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        parameters = {"$ref": f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"}
        tools = [{"type": "function", "function": {"name": "tide", "parameters": parameters}}]
        row = chat(USER, calling(call({"hour": "six"})), tools=tools)
        assert found(row) == [("bad-schema", "/tools/0/function/parameters")]
        with pytest.raises(TimeoutError):
            server.accept()


def test_all_faults_of_a_row_come_at_once_d10() -> None:
    first = {"role": "user", "content": 7, "x": 1}
    row = chat(first, {"role": "bot"}, calling(call("{")), ANSWER | {"content": ""}, tools="[]")
    assert sorted(found(row)) == [
        ("bad-arguments", "/messages/2/tool_calls/0/function/arguments"),
        ("consecutive-assistant", "/messages/3"),
        ("empty-completion", "/messages/3"),
        ("tools-string", "/tools"),
        ("unknown-key", "/messages/0/x"),
        ("unknown-role", "/messages/1/role"),
        ("wrong-type", "/messages/0/content"),
    ]


def test_an_empty_message_of_weight_0_is_no_fault_beside_other_faults() -> None:
    row = chat(USER | {"x": 1}, ANSWER | {"content": "", "weight": 0}, USER, ANSWER)
    assert found(row) == [("unknown-key", "/messages/0/x")]


GOOD = {
    "text and call D7": tooled(USER, calling(call(id="a")) | {"content": "I look."}, result("a"), ANSWER),
    "object arguments D1": tooled(USER, calling(call({"b": 1, "a": [1, "1", None, 1.0]})), result(), ANSWER),
    "text parts": chat({"role": "user", "content": [{"type": "text", "text": "a"}]}, ANSWER),
    "reasoning": chat(USER, ANSWER | {"reasoning_content": "hm"}, USER, ANSWER | {"content": "<think>a</think>b"}),
    "calls in two messages, results after both": tooled(
        USER, calling(call(id="a")) | {"content": "x"}, result("a"), calling(call(id="b")), result("b"), ANSWER
    ),
    "a call that ends the row": tooled(USER, calling(call(id="a"), call(id="b"))),
    "a result that is empty": tooled(USER, calling(call()), {"role": "tool", "content": ""}, ANSWER),
    "characters of other languages": chat(
        USER | {"content": "« été » NÃO à 18\u00a0h; Ő Đ — “quoted” … \u0085 \u2028 РСФСР 潮 🌊\r\n\t"},
        ANSWER | {"content": "Compare a<b and [0]; Observation: none. \\frac{1}{2} C:\\bin"},
    ),
    "empty but weight 0": chat(USER, ANSWER | {"content": "", "weight": 0}, USER, ANSWER),
    "developer, name, kwargs": chat(
        {"role": "developer", "content": "a", "name": "b"}, USER, ANSWER, chat_template_kwargs={"enable_thinking": True}
    ),
    "tools with keys of their own": chat(
        USER, ANSWER, tools=[{"type": "function", "function": {"name": "tide", "strict": True}, "x": 1}]
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_rows_keep_messages_exactly_as_they_came_d2_d3(name: str) -> None:
    row = GOOD[name]
    checked = check(row)
    assert checked.findings == ()
    assert checked.conversation is not None
    bare = [{k: v for k, v in message.items() if k != "weight"} for message in row["messages"]]
    assert json.dumps(checked.conversation.messages) == json.dumps(bare)
    assert checked.conversation.tools == row.get("tools")
    assert checked.conversation.template_kwargs == row.get("chat_template_kwargs", {})


def test_weight_and_train_are_honoured_and_hidden_from_the_template_l1() -> None:
    row = tooled(USER, ANSWER | {"weight": 0}, USER, calling(call(), train=False), result(), ANSWER | {"weight": 0.5})
    conversation = check(row).conversation
    assert conversation is not None
    assert conversation.weights == [1.0, 0.0, 1.0, 0.0, 1.0, 0.5]
    assert all(message.keys().isdisjoint({"weight", "train"}) for message in conversation.messages)


def test_a_duplicate_key_makes_a_row_bad_and_other_faults_are_still_found() -> None:
    raw = b'{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": ""}]}'
    checked = validate_row(raw, address=ADDRESS, format=Format.OPENAI)
    assert [finding.code for finding in checked.findings] == ["duplicate-key", "empty-completion"]
    assert checked.conversation is None


def test_a_row_of_two_formats_is_refused_with_the_evidence_unless_the_format_was_named() -> None:
    row = chat(USER, ANSWER, prompt="a", response="b")
    finding = check(row, None).findings[0]
    assert finding.code == "ambiguous-row"
    assert "messages: openai; prompt, response: prompt-response" in finding.message
    assert "--format {openai,sharegpt,alpaca,prompt-response}" in finding.hint
    assert check(row).conversation is not None
    unknown = check({"question": "a"}, None).findings[0]
    assert (unknown.code, "'question'" in unknown.message) == ("unknown-format", True)


CONVERTED = {
    "sharegpt": (
        Format.SHAREGPT,
        {
            "system": "Be brief.",
            "tools": '[{"name": "tide", "parameters": {}}]',
            "conversations": [
                {"from": "human", "value": "Tide?"},
                {"from": "function_call", "value": '{"name": "tide", "arguments": {"b": 1, "a": 2}}'},
                {"from": "observation", "value": "18:40"},
                {"from": "gpt", "value": "At six.", "weight": 0.5},
            ],
        },
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Tide?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "tide", "arguments": {"b": 1, "a": 2}}}],
            },
            {"role": "tool", "content": "18:40"},
            {"role": "assistant", "content": "At six."},
        ],
    ),
    "alpaca": (
        Format.ALPACA,
        {"instruction": "Translate.", "input": "hav", "output": "sea", "system": "s", "history": [["a", "b"]]},
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "Translate.\n\nhav"},
            {"role": "assistant", "content": "sea"},
        ],
    ),
    "alpaca without input": (
        Format.ALPACA,
        {"instruction": "Hi.", "input": "", "output": "Aye."},
        [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Aye."}],
    ),
    "sharegpt with other speakers": (
        Format.SHAREGPT,
        {
            "tools": [{"name": "tide"}],
            "conversations": [
                {"from": "user", "value": "Tide?"},
                {
                    "from": "tool_call",
                    "value": '[{"name": "tide", "arguments": {}}, {"name": "tide", "arguments": {}}]',
                },
                {"from": "tool_response", "value": "18:40"},
                {"from": "function_response", "value": "18:41"},
                {"from": "model", "value": "At six."},
            ],
        },
        [USER, calling(call({}), call({})) | {"content": ""}, result(), {"role": "tool", "content": "18:41"}, ANSWER],
    ),
    "sharegpt with roles": (
        Format.SHAREGPT,
        {"conversations": [USER, ANSWER | {"reasoning_content": "hm"}], "system": "s"},
        [{"role": "system", "content": "s"}, USER, ANSWER | {"reasoning_content": "hm"}],
    ),
    "alpaca with history and nulls": (
        Format.ALPACA,
        {"instruction": "c", "input": None, "output": "d", "system": "", "history": [["a", "b"], ["e", "f"]]},
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "e"},
            {"role": "assistant", "content": "f"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
        ],
    ),
    "prompt and completion of messages": (
        Format.PROMPT_RESPONSE,
        {"prompt": [USER, ANSWER, USER], "completion": [calling(call({})), result(), ANSWER], "tools": [TIDE]},
        [USER, ANSWER, USER, calling(call({})), result(), ANSWER],
    ),
    "prompt of messages, response of text": (
        Format.PROMPT_RESPONSE,
        {"prompt": [USER], "response": "At six.", "system": "s"},
        [{"role": "system", "content": "s"}, USER, ANSWER],
    ),
    "prompt of text, completion of messages": (
        Format.PROMPT_RESPONSE,
        {"prompt": "Tide?", "completion": [ANSWER]},
        [USER, ANSWER],
    ),
    "response": (Format.PROMPT_RESPONSE, {"prompt": "Tide?", "response": "At six."}, [USER, ANSWER]),
    "completion": (Format.PROMPT_RESPONSE, {"prompt": "Tide?", "completion": "At six."}, [USER, ANSWER]),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_other_formats_become_the_same_messages(name: str) -> None:
    kind, row, messages = CONVERTED[name]
    checked = check(row, None)
    assert checked.findings == ()
    assert checked.format is kind
    assert checked == check(row, kind)
    assert checked.conversation is not None
    assert json.dumps(checked.conversation.messages) == json.dumps(messages)
    if name == "sharegpt":
        assert checked.conversation.weights[-1] == 0.5
        assert checked.conversation.tools == [{"type": "function", "function": {"name": "tide", "parameters": {}}}]


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        (
            Format.SHAREGPT,
            {"conversations": [{"from": "bot", "value": "a"}]},
            ("unknown-role", "/conversations/0/from"),
        ),
        (Format.SHAREGPT, {"conversations": [{"from": "gpt"}]}, ("missing-key", "/conversations/0/value")),
        (
            Format.SHAREGPT,
            {"conversations": [{"from": "function_call", "value": "tide()"}]},
            ("bad-function-call", "/conversations/0/value"),
        ),
        (
            Format.SHAREGPT,
            {"conversations": [{"from": "human", "value": "a", "weight": 0}]},
            ("unknown-key", "/conversations/0/weight"),
        ),
        (Format.SHAREGPT, {"conversations": [{"from": "human", "value": "a"}]}, ("no-assistant", "/conversations")),
        (Format.ALPACA, {"instruction": "a", "output": ""}, ("empty-completion", "/output")),
        (Format.ALPACA, {"instruction": "a", "output": "b", "history": [["c"]]}, ("wrong-value", "/history/0")),
        (Format.PROMPT_RESPONSE, {"prompt": ["a"], "response": "b"}, ("wrong-type", "/prompt/0")),
        (Format.PROMPT_RESPONSE, {"prompt": 5, "response": "b"}, ("wrong-type", "/prompt")),
        (Format.PROMPT_RESPONSE, {"prompt": [USER], "response": 5}, ("wrong-type", "/response")),
        (
            Format.PROMPT_RESPONSE,
            {"prompt": [USER], "completion": [ANSWER | {"a/b": 1}]},
            ("unknown-key", "/completion/0/a~1b"),
        ),
        (Format.PROMPT_RESPONSE, {"prompt": [USER], "completion": []}, ("no-assistant", "/prompt")),
        (
            Format.PROMPT_RESPONSE,
            {"prompt": [ANSWER | {"weight": -1}], "completion": "b"},
            ("bad-weight", "/prompt/0/weight"),
        ),
        (Format.PROMPT_RESPONSE, {"prompt": [USER], "completion": "b", "messages": []}, ("misplaced-key", "/messages")),
        (Format.PROMPT_RESPONSE, {"prompt": "a", "completion": "b", "tools": []}, ("misplaced-key", "/tools")),
        (Format.ALPACA, {"instruction": "a", "output": "b", "messages": []}, ("misplaced-key", "/messages")),
        (
            Format.SHAREGPT,
            {"conversations": [USER, {"role": "bot"}, ANSWER]},
            ("unknown-role", "/conversations/1/role"),
        ),
        (Format.SHAREGPT, {"conversations": [USER], "system": 5}, ("wrong-type", "/system")),
        (Format.PROMPT_RESPONSE, {"prompt": "a"}, ("missing-key", "/response")),
    ],
)
def test_faults_of_other_formats_point_into_the_row_as_it_was_written(
    kind: Format, row: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert found(row, kind) == [expected]


def test_answers_of_a_prompt_are_context_unless_they_have_a_weight_l1() -> None:
    weighted = ANSWER | {"weight": 0.5}
    row = {"prompt": [USER, ANSWER, USER, weighted, USER], "completion": [ANSWER, USER, ANSWER]}
    conversation = check(row, None).conversation
    assert conversation is not None
    assert conversation.weights == [1.0, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0]


ROW_WORDS = ["messages", "tools", "conversations", "instruction", "output", "prompt", "response", "system"]
MESSAGE_WORDS = ["role", "content", "tool_calls", "function", "arguments", "name", "id", "weight", "train", "from"]
SCHEMA_WORDS = ["properties", "required", "enum", "items", "pattern", "additionalProperties", "$ref"]
KEYS = st.sampled_from([*ROW_WORDS, *MESSAGE_WORDS, *SCHEMA_WORDS, "value", "text", "type", "a", "\ud800"])
WORDS = ["user", "assistant", "tool", "", "{}", "a", "object", "integer", "\ud800", '{"a": "\\ud800"}']
LEAVES = st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from(WORDS)
ANYTHING = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=4), max_leaves=20)
LIKELY = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", 3])},
        optional={"content": ANYTHING, "tool_calls": ANYTHING, "weight": LEAVES, "tool_call_id": LEAVES},
    )
    | ANYTHING,
    max_size=4,
)


def with_a_call(schema: Any, arguments: Any) -> dict[str, Any]:
    function = {"name": "tide", "parameters": schema}
    return chat(USER, calling(call(arguments)), result(), ANSWER, tools=[{"type": "function", "function": function}])


@settings(max_examples=400, deadline=None)
@given(
    ANYTHING
    | st.builds(with_a_call, ANYTHING, ANYTHING)
    | st.fixed_dictionaries({"messages": LIKELY})
    | st.fixed_dictionaries({"prompt": LIKELY, "completion": LIKELY})
    | st.fixed_dictionaries({"conversations": LIKELY, "system": LEAVES}),
    st.none() | st.sampled_from(Format),
)
@example({"messages": [USER | {"tool_calls": True}]}, Format.OPENAI)
@example({"\ud800": None, "messages": [{}]}, None)
@example({"\ud800": None, "messages": [None]}, None)
@example(with_a_call({"type": "object"}, {"a": "\ud800"}), Format.OPENAI)
@example(with_a_call({"type": "object", "additionalProperties": False}, {"\ud800": 1}), Format.OPENAI)
@example(with_a_call({"type": "object", "properties": {"\ud800": {}}}, {"a": 1}), Format.OPENAI)
def test_any_json_is_a_conversation_or_has_an_error(row: Any, kind: Format | None) -> None:
    checked = check(row, kind)
    has_error = any(finding.severity is Severity.ERROR for finding in checked.findings)
    assert has_error == (checked.conversation is None)
    assert checked == check(row, kind)


def test_half_a_character_in_a_key_of_the_row_hides_nothing_of_its_messages() -> None:
    found = check({"\ud800": None, "messages": [{}, {"role": "user", "content": 5}]}, None).findings
    assert [(finding.code, finding.pointer) for finding in found] == [
        ("lone-surrogate", ""),
        ("missing-key", "/messages/0/role"),
        ("wrong-type", "/messages/1/content"),
    ]


def speaking(**turn: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "a"} | turn, {"from": "gpt", "value": "b"}]}


@pytest.mark.parametrize(
    ("row", "place"),
    [
        (chat(USER | {"x\ud800": 1}, ANSWER), "/messages/0"),
        (chat(USER | {"content": [{"type": "text", "text": "a", "\ud800": 1}]}, ANSWER), "/messages/0/content/0"),
        (chat(USER | {"content": [{"type": "text\ud800", "text": "a"}]}, ANSWER), "/messages/0/content/0/type"),
        (chat(USER | {"content": "a\ud800"}, ANSWER), "/messages/0/content"),
        (
            chat(USER, calling(call('{"place": "\ud800"}')), result(), ANSWER, tools=[TIDE]),
            "/messages/1/tool_calls/0/function/arguments",
        ),
        (speaking(value="a\ud800"), "/conversations/0/value"),
        (speaking(**{"k\ud800": 1}), "/conversations/0"),
        ({"prompt": [USER | {"\ud800": 1}], "completion": [ANSWER]}, "/prompt/0"),
    ],
)
def test_half_a_character_is_one_finding_wherever_it_stands_m3(row: Any, place: str) -> None:
    assert [(finding.code, finding.pointer) for finding in check(row, None).findings] == [("lone-surrogate", place)]


def test_half_a_character_in_a_key_hides_nothing_of_its_message_m3() -> None:
    found = check(chat({"role": "user", "\ud800": 1, "content": 5}, ANSWER | {"weight": "x"}), None).findings
    assert [(finding.code, finding.pointer) for finding in found] == [
        ("lone-surrogate", "/messages/0"),
        ("wrong-type", "/messages/0/content"),
        ("bad-weight", "/messages/1/weight"),
    ]


@pytest.mark.parametrize("levels", [190, 250, 900])
def test_half_a_character_beside_what_is_nested_deeply_ends_no_run_m3(levels: int) -> None:
    raw = (
        json.dumps(chat(USER | {"\ud800": 1}, ANSWER)).encode()[:-1]
        + b', "deep": '
        + b"[" * levels
        + b"]" * levels
        + b"}"
    )
    codes = {finding.code for finding in validate_row(raw, address=ADDRESS, format=None).findings}
    assert codes == {"lone-surrogate", "unknown-row-key" if levels < 200 else "too-deep"}
