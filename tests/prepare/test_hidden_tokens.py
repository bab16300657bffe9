"""A control token that no field of a row holds is found in what the template makes of the row, by plans or without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from sftprep.config.pack import PackConfig
from sftprep.data import RowAddress
from sftprep.prepare.fit import fitter
from sftprep.prepare.pack import pack
from sftprep.stages.validate import validate_row
from tests.outside import docs_of

OWN = Path(__file__).parents[2] / "data_samples" / "model"
STOP = "<|im_end|>"
USER = {"role": "user", "content": "When is high tide?"}
ANSWER = {"role": "assistant", "content": "At six."}
GOOD = {"messages": [USER, ANSWER]}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def calling(arguments: str) -> dict[str, Any]:
    call = {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": arguments}}
    return {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": TOOLS}


HIDDEN = {
    "joined from an answer's parts": (
        {"messages": [USER, {"role": "assistant", "content": parts("At six<|im_", "end|> or seven")}]},
        "/messages/1/content/0/text",
    ),
    "joined from a question's parts": (
        {"messages": [{"role": "user", "content": parts("a<|im_en", "d|>")}, ANSWER]},
        "/messages/0/content/0/text",
    ),
    "written in arguments as Go escapes it": (calling('{"place": "\\u003c|im_end|\\u003e"}'), "/messages/1/tool_calls"),
    "a key of arguments": (calling('{"\\u003c|im_end|>": 1}'), "/messages/1/tool_calls"),
}
OF_ANSWERS = [name for name, (row, _) in HIDDEN.items() if row["messages"][0] == USER]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Our own model, whose template wants arguments as an object."""
    place = tmp_path / "model"
    shutil.copytree(OWN, place)
    template = place / "chat_template.jinja"
    text = template.read_text()
    only = text.replace("{%- if function.arguments is string -%}", "{%- if false -%}")
    assert only != text
    template.write_text(only)
    return place


def packed(tmp_path: Path, model: Path, rows: list[Any], **options: Any) -> tuple[list[str], list[list[int]]]:
    """Of each row left out its code and message; the ids of each trained run of the others."""
    chats, out = tmp_path / "chats.jsonl", tmp_path / "out"
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack(PackConfig(files=(chats,), model=str(model), out=out, max_length=512, max_drop="100%", **options))
    left = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    return [row["code"] for row in left], [doc.ids[a:b] for doc in docs_of(out) for _, a, b in doc.runs]


@pytest.mark.parametrize("plans", [True, False])
@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_control_token_is_left_out_by_name_m4(tmp_path: Path, model: Path, name: str, plans: bool) -> None:
    row, _ = HIDDEN[name]
    # The good row of the same shape comes first, so that there is a plan that would fit.
    harmless = json.loads(json.dumps(row).replace("im_", "_").replace("d|>", "d"))
    codes, runs = packed(tmp_path, model, [harmless, row], plans=plans)
    assert (codes, len(runs)) == (["control-token"], 1)


@pytest.mark.parametrize("plans", [True, False])
def test_a_control_token_of_which_the_template_writes_the_other_half_is_left_out_by_name_m4(
    tmp_path: Path, model: Path, plans: bool
) -> None:
    # No text of the row says it, so no search of the row's texts can find it.
    template = model / "chat_template.jinja"
    written = "{{- text_of(message.content) -}}"
    assert template.read_text().count(written) == 1
    half = written + "{%- if message.role == 'user' -%}{{- 'end|>' -}}{%- endif -%}"
    template.write_text(template.read_text().replace(written, half))
    typed = {"messages": [{"role": "user", "content": "At six<|im_"}, ANSWER]}
    codes, runs = packed(tmp_path, model, [GOOD, typed, GOOD], plans=plans)
    assert (codes, len(runs)) == (["control-token"], 2)


@pytest.mark.parametrize("name", HIDDEN)
def test_validate_names_the_field_that_hides_it(model: Path, name: str) -> None:
    row, place = HIDDEN[name]
    validated = validate_row(json.dumps(row).encode(), address=RowAddress("chats", 1), format=None)
    assert validated.conversation is not None
    assert not validated.findings
    length, findings = fitter(str(model), max_length=None)(validated.conversation)
    assert length is None
    assert [(f.code, f.pointer.startswith(place)) for f in findings] == [("control-token", True)]


@pytest.mark.parametrize("plans", [True, False])
@pytest.mark.parametrize("name", [*OF_ANSWERS, "said"])
def test_an_answer_that_holds_a_stop_token_is_refused_where_it_is_read_as_one(
    tmp_path: Path, model: Path, name: str, plans: bool
) -> None:
    said = {"messages": [USER, {"role": "assistant", "content": f"At six.{STOP} Or seven."}]}
    row = HIDDEN[name][0] if name in HIDDEN else said
    codes, runs = packed(tmp_path, model, [GOOD, row], plans=plans, control_tokens="allow")
    assert (codes, len(runs)) == (["early-stop"], 1)


def test_a_question_that_holds_a_stop_token_is_read_as_a_server_reads_it(tmp_path: Path, model: Path) -> None:
    codes, runs = packed(tmp_path, model, [HIDDEN["joined from a question's parts"][0]], control_tokens="allow")
    assert (codes, len(runs)) == ([], 1)


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_a_hidden_token_is_split_like_any_other(tmp_path: Path, model: Path, name: str) -> None:
    stop = Tokenizer.from_file(str(model / "tokenizer.json")).token_to_id(STOP)
    codes, (run,) = packed(tmp_path, model, [HIDDEN[name][0]], control_tokens="split")
    assert codes == []
    assert run[-1] == stop
    assert stop not in run[:-1]


def test_a_stop_token_that_the_tokenizer_does_not_call_special_is_a_control_token(tmp_path: Path, model: Path) -> None:
    place = model / "tokenizer.json"
    tokenizer = json.loads(place.read_text())
    (stop,) = [token for token in tokenizer["added_tokens"] if token["content"] == STOP]
    stop["special"] = False
    place.write_text(json.dumps(tokenizer))
    typed = {"messages": [{"role": "user", "content": f"Say {STOP}"}, ANSWER]}
    codes, runs = packed(tmp_path, model, [GOOD, typed])
    assert (codes, len(runs)) == (["control-token"], 1)
