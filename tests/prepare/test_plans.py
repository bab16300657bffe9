"""Rows that are replayed from a plan are the rows that the template makes: the fast form equals the slow one."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.config.pack import PackConfig
from sftprep.data import Conversation, RowAddress
from sftprep.engines.fast import FAST_FROM, EngineChoice, FastokensBatch, fast_engine
from sftprep.engines.load import load_model
from sftprep.engines.reference import ReferenceEngine
from sftprep.errors import DataError, EngineDiffersError, MaskError
from sftprep.prepare.batch import Replayed
from sftprep.prepare.chunk import Chunk, InputRow
from sftprep.prepare.compile import Compiler, batch_compiler, compiler
from sftprep.prepare.compile_chunk import compile_chunk
from sftprep.prepare.input_rows import InputRows
from sftprep.prepare.pack import pack
from sftprep.prepare.recheck import recheck
from sftprep.stages.encode_batch import EncodedTexts

SAMPLES = Path(__file__).parents[2] / "data_samples"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
HOSTILE = st.sampled_from(
    ["", " ", "\n", "\n\nx", " x ", "<", "<|", "</think>", "<think>", "e\u0301", "\r\n", "ok\n", "{", "🏳️‍🌈"]
)


def config(model: Path, out: Path = Path("out"), **options: Any) -> PackConfig:
    return PackConfig(files=(Path("chats"),), model=str(model), out=out, **{"max_length": 1 << 20, **options})


def rows_of(conversations: Sequence[Conversation]) -> list[InputRow]:
    return [InputRow(0, 1, c.address, c, ()) for c in conversations]


def conversation(number: int, contents: Sequence[str], *, system: str | None = None) -> Conversation:
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return Conversation(RowAddress("chats", number), messages, [1.0] * len(messages))


def same(fast: Chunk, slow: Chunk) -> bool:
    """Whether two chunks are one, but for how they were made."""
    counts = (fast.classes, fast.remarks, fast.exact_rows, fast.left_out) == (
        slow.classes,
        slow.remarks,
        slow.exact_rows,
        slow.left_out,
    )
    return counts and fast.documents.equals(slow.documents) and np.array_equal(fast.times, slow.times)


def both(compile_rows: Compiler, rows: list[InputRow], settings: PackConfig) -> tuple[Chunk, Chunk]:
    fast = compile_chunk(rows, compile_row=compile_rows, config=settings)
    return fast, compile_chunk(rows, compile_row=compile_rows.compile_row, config=settings)


@pytest.fixture(scope="module")
def own() -> tuple[Compiler, PackConfig]:
    settings = config(SAMPLES / "model")
    return batch_compiler(load_model(str(SAMPLES / "model")), settings), settings


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.one_of(TEXTS, HOSTILE), min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0), max_size=6)
)
def test_texts_of_any_kind_are_replayed_as_the_template_writes_them(
    own: tuple[Compiler, PackConfig], contents: list[list[str]]
) -> None:
    compile_rows, options = own
    rows = rows_of([conversation(n + 1, texts) for n, texts in enumerate(contents)])
    assert same(*both(compile_rows, rows, options))


def test_conversations_of_one_shape_need_one_plan(own: tuple[Compiler, PackConfig]) -> None:
    compile_rows, options = own
    rows = rows_of([conversation(n, [f"question {n}", f"answer {n}"], system="Be brief.") for n in range(1, 80)])
    fast, slow = both(compile_rows, rows, options)
    assert fast.rendering["replayed"] == 79
    assert fast.rendering["traced"] == 0
    assert slow.rendering == {"traced": 79}
    assert same(fast, slow)


def test_rows_keep_their_order_where_some_have_no_plan(own: tuple[Compiler, PackConfig]) -> None:
    compile_rows, options = own
    contents = [["hi", "there"], ["<|im_end|>", "is typed"], ["two", "answers", "and", "more"], ["no answer"]]
    contents += [["hi", "you"], ["last", "one"]]
    rows = rows_of([conversation(n + 1, texts) for n, texts in enumerate(contents)])
    fast, slow = both(compile_rows, rows, options)
    assert same(fast, slow)
    assert fast.left_out
    assert fast.rendering["traced"]


@pytest.fixture(scope="module", params=["qwen3", "smollm2-135m-instruct", "gpt-oss", "deepseek-v3", "mistral-tekken"])
def served(request: pytest.FixtureRequest, corpus: Path) -> tuple[Compiler, PackConfig]:
    directory = corpus / "models" / request.param
    options = config(directory)
    return batch_compiler(load_model(str(directory)), options), options


def chats(corpus: Path, name: str, *, start: int = 0, count: int) -> Iterator[dict[str, Any]]:
    with zstandard.open(corpus / name, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line) for line in islice(lines, start, start + count))


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["bench/chat_10k.jsonl.zst", "chat/bfcl_single_turn_tool_calls.jsonl.zst"])
def test_real_rows_are_replayed_as_the_template_writes_them(
    served: tuple[Compiler, PackConfig], corpus: Path, name: str
) -> None:
    compile_rows, options = served
    rows = []
    for number, row in enumerate(chats(corpus, name, start=100, count=60)):
        messages = row["messages"]
        made = Conversation(RowAddress("chats", number + 1), messages, [1.0] * len(messages), tools=row.get("tools"))
        rows.append(InputRow(0, 1, made.address, made, ()))
    fast, slow = both(compile_rows, rows, options)
    assert same(fast, slow)
    num_exact = fast.rendering["replayed"] - len(fast.left_out)
    assert (num_exact > 0) == ((Path(options.model).name, name) in _PLANNED)


# Of rows with tools, only the template of Qwen3 prints each tool and each call's arguments whole.
_PLANNED = {
    ("qwen3", "bench/chat_10k.jsonl.zst"),
    ("qwen3", "chat/bfcl_single_turn_tool_calls.jsonl.zst"),
    ("smollm2-135m-instruct", "bench/chat_10k.jsonl.zst"),
    ("gpt-oss", "bench/chat_10k.jsonl.zst"),
    ("deepseek-v3", "bench/chat_10k.jsonl.zst"),
    ("mistral-tekken", "bench/chat_10k.jsonl.zst"),
}


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["qwen3", "smollm2-135m-instruct"])
def test_most_real_rows_have_a_plan(corpus: Path, name: str) -> None:
    directory = corpus / "models" / name
    options = config(directory)
    compile_rows = batch_compiler(load_model(str(directory)), options)
    conversations = [
        Conversation(RowAddress("chats", n + 1), row["messages"], [1.0] * len(row["messages"]))
        for n, row in enumerate(chats(corpus, "chat/gsm8k_train.jsonl.zst", count=300))
    ]
    chunk = compile_chunk(rows_of(conversations), compile_row=compile_rows, config=options)
    assert chunk.rendering["replayed"] == 300


class OtherIds:
    """An engine that cuts one word where the reference does not."""

    name = "other"

    def __init__(self, tokenizer_json: str, reference: ReferenceEngine | None = None) -> None:
        self._reference = ReferenceEngine(tokenizer_json)

    def encode_batch(self, texts: Sequence[bytes]) -> EncodedTexts:
        """As the reference, but the first `the` is two pieces."""
        ids = []
        for text in texts:
            head, word, tail = text.partition(b"the")
            pieces = [head + b"t", b"he" + tail] if word else [text]
            ids.append(np.concatenate([self._reference.encode_batch([piece]).ids for piece in pieces]))
        offsets = np.concatenate([[0], np.cumsum([len(own) for own in ids])])
        return EncodedTexts(np.concatenate([np.zeros(0, np.int32), *ids]), offsets)


def test_an_engine_that_differs_within_a_run_is_found_and_all_is_done_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chats = tmp_path / "chats.jsonl"
    rows = [{"messages": conversation(n, [f"say {n}", "this is the one"]).messages} for n in range(1, 2000)]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = config(SAMPLES / "model", tmp_path / "reference", tokenizer_engine="reference", max_length=512)
    options = options.model_copy(update={"files": (chats,)})
    expected = pack(options)
    monkeypatch.setattr("sftprep.engines.fast.FAST_FROM", 0)
    monkeypatch.setattr("sftprep.engines.fast.fast_engine", lambda model, reference: OtherIds(model.tokenizer_json))
    found = pack(options.model_copy(update={"out": tmp_path / "auto", "tokenizer_engine": "auto"}))
    assert found.engine_differed.startswith(str(chats))
    assert found.rendering["engine tokenizers"] == 1999
    assert expected.engine_differed == ""
    for shard in expected.shards.manifest.shards:
        path = tmp_path / "reference" / shard.file
        assert path.read_bytes() == (tmp_path / "auto" / shard.file).read_bytes()


@pytest.mark.parametrize(
    ("expected", "sizes", "names"),
    [
        (FAST_FROM, [10, 10], ["other", "other"]),
        (10, [FAST_FROM // 2, FAST_FROM // 2, 10], ["tokenizers", "tokenizers", "other"]),
        (0, [FAST_FROM + 1], ["other"]),
    ],
)
def test_a_fast_engine_is_loaded_where_text_enough_will_come_or_has_come(
    monkeypatch: pytest.MonkeyPatch, expected: int, sizes: list[int], names: list[str]
) -> None:
    model = load_model(str(SAMPLES / "model"))
    monkeypatch.setattr("sftprep.engines.fast.fast_engine", lambda model, reference: OtherIds(model.tokenizer_json))
    choice = EngineChoice(model, ReferenceEngine(model.tokenizer_json), fast=True, expected=expected)
    used = []
    for size in sizes:
        choice.encode_batch([b"a" * size])
        used.append(choice.engine.name)
    assert used == names


def test_an_input_that_is_large_for_each_worker_is_encoded_by_the_fast_engine_from_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_bytes(bytes(4000))
    monkeypatch.setattr("sftprep.engines.fast.FAST_FROM", 2000)
    for workers, fast in ((1, True), (2, True), (3, False)):
        options = config(SAMPLES / "model", workers=workers).model_copy(update={"files": (chats,)})
        compile_rows = batch_compiler(load_model(str(SAMPLES / "model")), options)
        assert compile_rows.batch is not None
        assert (compile_rows.batch.choice._until_fast == 0) is fast


def test_the_check_of_an_engine_names_the_row() -> None:
    model = load_model(str(SAMPLES / "model"))
    compile_rows = batch_compiler(model, config(SAMPLES / "model"))
    assert compile_rows.batch is not None
    choice = EngineChoice(model, ReferenceEngine(model.tokenizer_json), fast=False)
    choice.engine = OtherIds(model.tokenizer_json)
    compile_rows.batch.choice = choice
    rows = rows_of([conversation(n, ["so", "that is the one"]) for n in range(1, 3000)])
    with pytest.raises(EngineDiffersError, match=r"^chats:\d+: other gives other ids than the reference"):
        compile_chunk(rows, compile_row=compile_rows, config=config(SAMPLES / "model"))


def test_a_plan_that_makes_another_document_ends_the_run(own: tuple[Compiler, PackConfig]) -> None:
    compile_rows, options = own
    rows = rows_of([conversation(n, ["so", "that is it"]) for n in range(1, 3000)])
    other = compiler(load_model(str(SAMPLES / "model")), options)

    def changed(row: Conversation) -> Any:
        return other(conversation(row.address.line, ["so", "that was it"]))

    with pytest.raises(DataError, match="replay-differs"):
        compile_chunk(rows, compile_row=Compiler(changed, compile_rows.batch), config=options)


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["qwen3", "smollm2-135m-instruct", "gpt-oss", "deepseek-v3", "mistral-tekken"])
def test_the_fast_engine_gives_the_ids_of_the_reference_on_real_texts(corpus: Path, name: str) -> None:
    model = load_model(str(corpus / "models" / name))
    reference = ReferenceEngine(model.tokenizer_json)
    engine = fast_engine(model, reference)
    assert engine is not None
    texts = [
        json.dumps(row, ensure_ascii=False).encode() for row in chats(corpus, "bench/chat_10k.jsonl.zst", count=200)
    ]
    random.Random(0).shuffle(texts)
    found, expected = engine.encode_batch(texts), reference.encode_batch(texts)
    assert np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.offsets, expected.offsets)


def test_a_fast_engine_that_fails_the_probe_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(str(SAMPLES / "model"))
    monkeypatch.setattr("sftprep.engines.fast.GigatokenBatch", OtherIds)
    monkeypatch.setattr("sftprep.engines.fast.FastokensBatch", OtherIds)
    monkeypatch.setattr("sftprep.engines.fast.probe_texts", lambda model: [b"nothing is the same"])
    reference = ReferenceEngine(model.tokenizer_json)
    assert fast_engine(model, reference) is None
    monkeypatch.setattr("sftprep.engines.fast.probe_texts", lambda model: [b"nothing"])
    assert fast_engine(model, reference) is not None


@pytest.mark.corpus
def test_fastokens_gives_the_ids_of_the_reference_where_digits_are_cut_off_and_bytes_are_missing(corpus: Path) -> None:
    pytest.importorskip("fastokens")
    tokenizer_json = load_model(str(corpus / "models" / "smollm2-135m-instruct")).tokenizer_json
    reference = ReferenceEngine(tokenizer_json)
    engine = FastokensBatch(tokenizer_json)
    random_texts = random.Random(0)
    letters = "ab'sdmtlvre019 \u0663\u00bd\u2167 \n\t\r\u00a0\u3000.,!?\u00e9\u4e2d\u00b9"
    texts = ["".join(random_texts.choices(letters, k=40)).encode() for _ in range(500)]
    texts += [b"a\x00b 1", b"\x04", b"no such byte 12", b""]
    found, expected = engine.encode_batch(texts), reference.encode_batch(texts)
    assert np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.offsets, expected.offsets)


def test_a_question_that_has_no_answer_for_another_text_is_the_templates_own_error(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(SAMPLES / "model", model)
    template = model / "chat_template.jinja"
    asks = (
        "{% for m in messages %}{% if m.content.index('a') > 90 %}{{ raise_exception('far') }}{% endif %}{% endfor %}"
    )
    template.write_text(asks + template.read_text())
    options = config(model)
    compile_rows = batch_compiler(load_model(str(model)), options)
    rows = rows_of([conversation(n + 1, [text, "an answer"]) for n, text in enumerate(["a cat", "a dog", "no", "a"])])
    fast, slow = both(compile_rows, rows, options)
    assert same(fast, slow)
    assert [row.address.line for row in fast.left_out] == [3]
    assert fast.left_out[0].code == "template-raised"


def test_a_run_of_more_shapes_than_are_kept_makes_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftprep.prepare.plans._MAX_SHAPES", 2)
    monkeypatch.setattr("sftprep.templates.symbolic_template._MAX_SHAPES", 3)
    options = config(SAMPLES / "model")
    compile_rows = batch_compiler(load_model(str(SAMPLES / "model")), options)
    sizes = [2, 4, 6, 8, 2, 4, 6, 8, 2]
    rows = rows_of([conversation(n + 1, [f"text {i}" for i in range(size)]) for n, size in enumerate(sizes)])
    fast, slow = both(compile_rows, rows, options)
    assert same(fast, slow)
    assert fast.rendering["replayed"] == len(sizes)
    assert compile_rows.batch is not None
    assert len(compile_rows.batch._book._known) <= 2


def called(number: int, *, arguments: Any, order: Sequence[str] = ("name", "arguments")) -> Conversation:
    function = {"name": f"look_up_{number}", "arguments": arguments}
    call = {"type": "function", "function": {key: function[key] for key in order}}
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return Conversation(RowAddress("chats", number), messages, [1.0, 1.0])


def model_with(template: str, directory: Path) -> Compiler:
    shutil.copytree(SAMPLES / "model", directory / "model")
    (directory / "model" / "chat_template.jinja").write_text(template)
    return batch_compiler(load_model(str(directory / "model")), config(directory / "model"))


_CALLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}WRITTEN"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("{{ c.function.name }}{{ c.function.arguments | tojson }}", []),
        ("{{ c.function.name }}", ["/arguments/city~key"]),
        ("{{ c.function.arguments | tojson }}", ["/name"]),
        ("", ["/name", "/arguments/city~key"]),
        ("{{ c.function.name }}{{ c.function.arguments | tojson }}{{ c.function.arguments | tojson }}", ["/arguments"]),
    ],
)
def test_a_call_that_is_lost_or_written_twice_is_the_error_that_the_template_makes_of_it(
    written: str, found: list[str], tmp_path: Path
) -> None:
    compile_rows = model_with(_CALLS.replace("WRITTEN", written), tmp_path)
    orders = [("name", "arguments"), ("arguments", "name")]
    rows = rows_of(
        [called(n + 1, arguments=a, order=orders[n % 2]) for n, a in enumerate([{"city": "Rome"}] * 4 + [{}] * 2)]
    )
    fast, slow = both(compile_rows, rows, config(tmp_path / "model"))
    assert same(fast, slow)
    pointers = [row.findings[0].pointer for row in slow.left_out]
    assert bool(pointers) == bool(found)
    assert all(any(part in pointer for pointer in pointers) for part in found)


def with_tools(number: int, calls: int) -> Conversation:
    tool = {"type": "function", "function": {"name": f"look_up_{number}", "parameters": {"type": "object"}}}
    plain = conversation(number, [f"question {number}", f"answer {number}"])
    made = called(number, arguments={"city": f"Rome {number}"}) if calls else plain
    return Conversation(made.address, made.messages, made.weights, tools=[tool])


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize(
    "printed",
    ["{{ t | string }}", "{{ '%s' % t }}", "{{ '{}'.format(t) }}", "{{ [t] | string }}", "{{ t }}", "{{ t | tojson }}"],
)
def test_tools_are_those_of_the_row_however_they_are_printed(printed: str, calls: int, tmp_path: Path) -> None:
    template = f"{{% for t in tools or [] %}}{printed}\n{{% endfor %}}"
    written = "{{ c.function.name }}{{ c.function.arguments | tojson }}"
    compile_rows = model_with(template + _CALLS.replace("WRITTEN", written), tmp_path)
    rows = rows_of([with_tools(n, calls) for n in range(1, 5)])
    fast, slow = both(compile_rows, rows, config(tmp_path / "model"))
    assert same(fast, slow)
    assert len(slow.exact_rows) == len(rows)


@pytest.mark.parametrize("written", ["{{ c | tojson }}", "{{ c.function | tojson }}", "{{ m.tool_calls | tojson }}"])
def test_a_call_that_is_printed_whole_is_not_lost(written: str, tmp_path: Path) -> None:
    compile_rows = model_with(_CALLS.replace("WRITTEN", written), tmp_path)
    rows = rows_of([called(n, arguments={"city": f"Rome {n}"}) for n in range(1, 5)])
    fast, slow = both(compile_rows, rows, config(tmp_path / "model"))
    assert same(fast, slow)
    assert len(slow.exact_rows) == len(rows)


def test_rows_that_the_template_refuses_are_refused_by_plan(tmp_path: Path) -> None:
    asks = "{% for m in messages %}{% if 'no' in m.content %}{{ raise_exception('never ' ~ m.role) }}{% endif %}"
    template = f"{asks}{{% endfor %}}{_CALLS.replace('WRITTEN', '')}"
    compile_rows = model_with(template, tmp_path)
    texts = ["a cat", "no cat", "a dog", "no", "no dog"]
    rows = rows_of([conversation(n + 1, [text, "an answer"]) for n, text in enumerate(texts)])
    fast, slow = both(compile_rows, rows, config(tmp_path / "model"))
    assert same(fast, slow)
    assert [row.address.line for row in fast.left_out] == [2, 4, 5]
    assert {row.code for row in fast.left_out} == {"template-raised"}
    assert fast.rendering["replayed"] == len(texts)


def test_a_refusal_that_shows_a_text_is_not_that_of_other_rows(tmp_path: Path) -> None:
    asks = "{% for m in messages %}{% if 'no' in m.content %}{{ raise_exception('never ' ~ m.content) }}{% endif %}"
    compile_rows = model_with(f"{asks}{{% endfor %}}{_CALLS.replace('WRITTEN', '')}", tmp_path)
    rows = rows_of([conversation(n + 1, [text, "an answer"]) for n, text in enumerate(["no cat", "no dog"])])
    fast, slow = both(compile_rows, rows, config(tmp_path / "model"))
    assert same(fast, slow)
    assert ["cat" in fast.left_out[0].findings[0].message, "dog" in fast.left_out[1].findings[0].message] == [True] * 2


def test_a_refusal_that_the_template_does_not_make_ends_the_run(own: tuple[Compiler, PackConfig]) -> None:
    compile_rows, _ = own
    rows = rows_of([conversation(n, ["so", "that is it"]) for n in range(1, 400)])
    error = MaskError("it is lost", code="field-lost", place="/messages/1")
    refused = replace(Replayed.none(), refused=dict.fromkeys(range(len(rows)), error))
    assert compile_rows.batch is not None
    tokens = (compile_rows.batch.choice, compile_rows.batch.table)
    with pytest.raises(DataError, match="field-lost of it, and the template does not"):
        recheck(InputRows.of(rows), refused, compile_rows.compile_row, tokens=tokens)
