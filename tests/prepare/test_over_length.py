"""What is too long is refused, dropped, split or truncated, at turns only, and every trained token is accounted for."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sftprep.config.pack import OverLength, PackConfig
from sftprep.errors import DataError
from sftprep.prepare.pack import PackResult, pack

MODEL = Path(__file__).resolve().parents[2] / "data_samples" / "model"
SPLIT, TRUNCATE = OverLength.SPLIT_AT_TURN, OverLength.TRUNCATE_AT_TURN


def rows_of(seed: int, *, count: int = 25) -> list[list[dict[str, Any]]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        messages = [{"role": "system", "content": "Be brief."}] if draw.random() < 0.5 else []
        for _ in range(draw.randint(1, 7)):
            messages.append({"role": "user", "content": "why? " * draw.randint(1, 30)})
            messages.append({"role": "assistant", "content": "so! " * draw.randint(1, 30)})
        rows.append(messages)
    return rows


def packed(folder: Path, rows: list[list[dict[str, Any]]], max_length: int, **options: Any) -> PackResult:
    chats = folder / "chats.jsonl"
    chats.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows), encoding="utf-8")
    return pack(PackConfig(files=(chats,), model=str(MODEL), max_length=max_length, max_drop="100%", **options))


def documents_of(result: PackResult) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
    """Ids and mask by line and sample."""
    found = {}
    for batch in result.shards.iter_batches():
        for row in batch.to_pylist():
            start = 0
            for length, line, sample in zip(row["seq_lengths"], row["doc_lines"], row["doc_samples"], strict=True):
                part = slice(start, start + length)
                found[line, sample] = (row["input_ids"][part], row["assistant_masks"][part])
                start += length
    return found


def reference(messages: list[dict[str, Any]], length: int, policy: OverLength) -> list[tuple[int, int]]:
    """The obvious slow version: `[start, stop)` of each piece, tried turn by turn with the model's own template."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    system = messages[:1] if messages[0]["role"] == "system" else []
    pieces, start = [], len(system)
    while start < len(messages):
        fitting = [
            stop
            for stop in range(start + 2, len(messages) + 1, 2)
            if len(tokenizer.apply_chat_template([*system, *messages[start:stop]], return_dict=False)) <= length
        ]
        if fitting:
            pieces.append((start, max(fitting)))
        elif policy is TRUNCATE:
            break
        start = max(fitting) if fitting else start + 2
        if policy is TRUNCATE:
            break
    return pieces


@pytest.mark.parametrize("policy", [SPLIT, TRUNCATE])
@pytest.mark.parametrize("seed", range(3))
def test_each_piece_is_what_the_model_s_own_template_makes_of_its_turns_f5_g3(
    tmp_path: Path, policy: OverLength, seed: int
) -> None:
    rows, length = rows_of(seed), 120
    found = documents_of(packed(tmp_path, rows, length, out=tmp_path / "out", over_length=policy))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    num_split = num_lost = 0
    for line, messages in enumerate(rows, start=1):
        system = messages[:1] if messages[0]["role"] == "system" else []
        pieces = reference(messages, length, policy)
        num_split += len(pieces) > 1
        num_lost += sum(stop - start for start, stop in pieces) < len(messages) - len(system)
        assert sorted(sample for at, sample in found if at == line) == list(range(len(pieces)))
        for sample, (start, stop) in enumerate(pieces):
            ids, mask = found[line, sample]
            piece = [*system, *messages[start:stop]]
            assert ids == tokenizer.apply_chat_template(piece, return_dict=False)
            prompt = tokenizer.apply_chat_template(piece[:-1], add_generation_prompt=True, return_dict=False)
            assert ids[: len(prompt)] == prompt
            assert mask[len(prompt)] == 1, "the last turn is trained from where the server's prompt ends"
            assert mask[len(prompt) - 1] == 0
    assert num_lost
    assert num_split or policy is TRUNCATE


@pytest.mark.parametrize("policy", [OverLength.DROP, SPLIT, TRUNCATE])
def test_trained_tokens_in_are_trained_tokens_packed_and_lost_f5_g4(tmp_path: Path, policy: OverLength) -> None:
    rows = rows_of(5)
    whole = packed(tmp_path, rows, 5000, out=tmp_path / "whole").shards.manifest
    result = packed(tmp_path, rows, 120, out=tmp_path / "out", over_length=policy)
    manifest, record = result.shards.manifest, result.report.over_length
    assert record == manifest.over_length is not None
    assert 0 < record.num_trained_lost <= record.num_trained
    assert whole.counts.num_trained == manifest.counts.num_trained + record.num_trained_lost
    listed = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()]
    assert sum(row["num_trained"] for row in listed) == record.num_trained_lost
    assert [row["line"] for row in listed] == sorted(row["line"] for row in listed)
    assert manifest.left_out.num_rows == sum(row["code"] == "over-length" for row in listed) == record.num_left_out
    if policy is not OverLength.DROP:
        partial = [row for row in listed if row["code"] == "turns-left-out"]
        assert partial
        assert all(finding["pointer"].startswith("/messages/") for row in partial for finding in row["findings"])


def test_a_piece_trains_no_turn_that_the_whole_does_not(tmp_path: Path) -> None:
    rows = [row for row in rows_of(7) if len(row) > 8]
    result = packed(tmp_path, rows, 150, out=tmp_path / "out", over_length=SPLIT, train_on="last")
    assert result.shards.manifest.over_length.num_trained
    assert result.shards.manifest.counts.num_turns <= len(rows)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for (line, _), (ids, mask) in documents_of(result).items():
        trained = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
        assert trained == rows[line - 1][-1]["content"] + "<|im_end|>"


def test_a_conversation_whose_first_turn_does_not_fit_is_left_out_by_name_g2(tmp_path: Path) -> None:
    long = [{"role": "user", "content": "why? " * 300}, {"role": "assistant", "content": "so!"}]
    short = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so!"}]
    result = packed(tmp_path, [long + short, short], 60, out=tmp_path / "out", over_length=TRUNCATE)
    assert result.shards.manifest.left_out.by_code == {"over-length": 1}
    split = packed(tmp_path, [long + short, short], 60, out=tmp_path / "split", over_length=SPLIT)
    assert split.shards.manifest.left_out.num_rows == 0
    assert split.shards.manifest.counts.num_turns == 2


@pytest.mark.parametrize(("options", "rows"), [({"num_rows": 16}, 16), ({"rows_multiple_of": 7}, 14)])
def test_a_set_has_the_rows_that_are_asked_for(tmp_path: Path, options: dict[str, int], rows: int) -> None:
    manifest = packed(tmp_path, rows_of(1), 900, out=tmp_path / "out", **options).shards.manifest
    assert manifest.counts.num_packs == rows
    assert manifest.counts.num_documents == 25


@pytest.mark.parametrize("options", [{"num_rows": 2}, {"num_rows": 26}, {"rows_multiple_of": 64}])
def test_rows_that_cannot_be_are_an_error_with_a_name(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(DataError, match="nothing was published") as error:
        packed(tmp_path, rows_of(1), 900, out=tmp_path / "out", **options)
    assert error.value.code == "row-count"
    assert not (tmp_path / "out").exists()


LOOP = "{%- for message in messages -%}"
LAST_QUESTION = (
    "{%- set ns = namespace(last=-1) -%}",
    LOOP,
    "{%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}",
    "{%- endfor -%}",
)
REWRITING = (
    (LOOP, "".join([*LAST_QUESTION, LOOP])),
    ("{%- if message.reasoning_content -%}", "{%- if message.reasoning_content and loop.index0 > ns.last -%}"),
)
"""What makes the repository's template one that drops the reasoning of turns before the last question."""


@pytest.fixture
def rewriting(tmp_path: Path) -> str:
    shutil.copytree(MODEL, tmp_path / "model")
    path = tmp_path / "model" / "chat_template.jinja"
    text = path.read_text(encoding="utf-8")
    for old, new in REWRITING:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")
    return str(tmp_path / "model")


def agentic(*questions: int) -> list[dict[str, Any]]:
    """For each question a call that is reasoned about, and an answer that is not, of so many words."""
    messages: list[dict[str, Any]] = []
    for number, words in enumerate(questions):
        call = {"id": f"c{number}", "type": "function", "function": {"name": "look", "arguments": {}}}
        messages += [
            {"role": "user", "content": f"Look {number} " + "at it " * words},
            {"role": "assistant", "content": "", "reasoning_content": f"I look {number}", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": "seen"},
            {"role": "assistant", "content": "so! " * words},
        ]
    return messages


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


def agents(folder: Path, rows: list[list[dict[str, Any]]], max_length: int, **options: Any) -> PackResult:
    chats = folder / "agents.jsonl"
    chats.write_text("".join(json.dumps({"messages": row, "tools": TOOLS}) + "\n" for row in rows), encoding="utf-8")
    return pack(PackConfig(files=(chats,), max_length=max_length, max_drop="100%", **options))


def trained_text(result: PackResult) -> dict[tuple[int, int], str]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return {
        place: tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
        for place, (ids, mask) in documents_of(result).items()
    }


@pytest.mark.parametrize("options", [{"train_on": "last"}, {"history": "as-rendered"}, {"history": "last-turn"}])
def test_a_piece_trains_only_what_the_whole_trains_and_gives_the_same_reasons(
    tmp_path: Path, rewriting: str, options: dict[str, str]
) -> None:
    rows = [agentic(9, 30, 6), agentic(4, 4, 4, 4, 20), agentic(30, 3, 30, 3)]
    call = {"model": rewriting, **options}
    whole = agents(tmp_path, rows, 5000, **call, out=tmp_path / "whole")
    split = agents(tmp_path, rows, 300, **call, out=tmp_path / "out", over_length=SPLIT)
    assert split.shards.manifest.over_length.num_rows
    said = {line: text for (line, _), text in trained_text(whole).items()}
    pieces = trained_text(split)
    for (line, _), text in pieces.items():
        assert text in said[line]
    # What the policy leaves is not what the data weighs 0: no row here has a weight.
    assert set(split.shards.manifest.counts.tokens_by_kind) <= set(whole.shards.manifest.counts.tokens_by_kind)
    assert "weight_zero" not in split.shards.manifest.counts.tokens_by_kind


@pytest.mark.parametrize("policy", [SPLIT, TRUNCATE])
def test_tools_a_rewriting_template_and_workers_change_no_byte_and_lose_no_token_unsaid(
    tmp_path: Path, rewriting: str, policy: OverLength
) -> None:
    draw = random.Random(2)
    rows = [agentic(*(draw.randint(3, 25) for _ in range(draw.randint(1, 6)))) for _ in range(30)]
    options = {"model": rewriting, "over_length": policy}
    whole = agents(tmp_path, rows, 5000, model=rewriting, out=tmp_path / "whole").shards.manifest
    results = [agents(tmp_path, rows, 260, **options, out=tmp_path / f"w{n}", workers=n) for n in (1, 2)]
    one, two = (result.shards.manifest for result in results)
    assert one == two
    assert (tmp_path / "w1" / "left_out.jsonl").read_bytes() == (tmp_path / "w2" / "left_out.jsonl").read_bytes()
    assert one.over_length.num_trained_lost
    assert whole.counts.num_trained == one.counts.num_trained + one.over_length.num_trained_lost
    assert one.counts.documents_by_class["rewritten"], "history is rewritten in pieces too"
    for ids, mask in documents_of(results[0]).values():
        assert len(ids) <= 260
        assert sum(mask)
    # Each piece shows the tools, as every answer needs them.
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for ids, _ in documents_of(results[0]).values():
        assert tokenizer.decode(ids).startswith("<|im_start|>tools\n")
