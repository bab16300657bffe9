"""A model directory says what ids are; what it does not say is an error with a name."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sftprep.engines.load import load_model, write_model
from sftprep.engines.reference import ReferenceEngine
from sftprep.errors import ModelFilesError
from sftprep.prepare.chat_templates import ChatTemplates
from sftprep.templates.template import ChatTemplate

TEXTS = [
    "Hello  world\n\n\tx = 1",
    "日本語 é e\u0301 🙂👩‍👩‍👧",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<s>[INST] a[/INST] b</s>",
    " lead",
    "",
]


@pytest.fixture
def model_dir(samples: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(samples / "model", tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def code_of(name: Path | str) -> str:
    with pytest.raises(ModelFilesError) as caught:
        load_model(str(name))
    assert caught.value.exit_code == 2
    assert caught.value.hint or caught.value.place
    return caught.value.code


def test_a_directory_without_tokenizer_is_named(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").unlink()
    assert code_of(model_dir) == "no-tokenizer"


def test_a_directory_without_template_is_named(model_dir: Path) -> None:
    (model_dir / "chat_template.jinja").unlink()
    assert code_of(model_dir) == "no-template"


def test_a_damaged_tokenizer_is_named(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").write_text("{")
    assert code_of(model_dir) == "bad-model-file"


def test_a_model_that_names_no_stop_token_is_refused(model_dir: Path) -> None:
    (model_dir / "generation_config.json").unlink()
    edit(model_dir / "config.json", eos_token_id=None)
    edit(model_dir / "tokenizer_config.json", eos_token=None)
    assert code_of(model_dir) == "no-stop-tokens"


@pytest.mark.parametrize("place", ["config", "directory"])
def test_rows_with_tools_go_through_the_template_that_transformers_takes_for_them(model_dir: Path, place: str) -> None:
    if place == "config":
        (model_dir / "chat_template.jinja").unlink()
        both = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
        edit(model_dir / "tokenizer_config.json", chat_template=both)
    else:
        (model_dir / "chat_template.jinja").write_text("a")
        (model_dir / "additional_chat_templates").mkdir()
        (model_dir / "additional_chat_templates" / "tool_use.jinja").write_text("b")
    model, reference = load_model(str(model_dir)), AutoTokenizer.from_pretrained(model_dir)
    templates = ChatTemplates.of(model, datetime(2026, 1, 2), ChatTemplate)
    for tools in (None, [], [{"name": "f"}]):
        assert templates.for_tools(tools).text == reference.get_chat_template(tools=tools)
    copy = model_dir.parent / "copy"
    write_model(model, copy)
    assert load_model(str(copy)).template_sha256 == model.template_sha256


def test_a_model_with_templates_of_which_none_is_the_default_is_refused(model_dir: Path) -> None:
    (model_dir / "chat_template.jinja").unlink()
    edit(model_dir / "tokenizer_config.json", chat_template=[{"name": "tool_use", "template": "b"}])
    assert code_of(model_dir) == "no-template"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "no-such-model"])
def test_a_path_that_does_not_exist_is_named(name: str) -> None:
    assert code_of(name) == "not-found"


def test_stop_ids_are_generation_config_s_and_the_tokenizer_s_b2_b5(model_dir: Path) -> None:
    before = load_model(str(model_dir))
    edit(model_dir / "generation_config.json", eos_token_id=[5, 7])
    after = load_model(str(model_dir))
    own = set(before.stop_ids)
    assert set(after.stop_ids) == own | {5, 7}
    assert after.stop_ids == tuple(sorted(after.stop_ids))


def test_files_are_copied_byte_for_byte_c2(model_dir: Path, tmp_path: Path) -> None:
    write_model(load_model(str(model_dir)), tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        assert path.read_bytes() == (model_dir / path.name).read_bytes()
    assert (tmp_path / "copy" / "chat_template.jinja").exists()


def test_the_tokenizer_s_fingerprint_is_of_its_meaning_not_of_its_bytes_h6(model_dir: Path) -> None:
    first = load_model(str(model_dir)).tokenizer_sha256
    path = model_dir / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items())), indent=7))
    assert load_model(str(model_dir)).tokenizer_sha256 == first
    token = next(iter(content["model"]["vocab"]))
    content["model"]["vocab"][token], content["model"]["vocab"]["Ġthe"] = (
        content["model"]["vocab"]["Ġthe"],
        content["model"]["vocab"][token],
    )
    path.write_text(json.dumps(content))
    assert load_model(str(model_dir)).tokenizer_sha256 != first


def check_equal_to_transformers(path: Path) -> None:
    model = load_model(str(path))
    reference = AutoTokenizer.from_pretrained(path)
    engine = ReferenceEngine(model.tokenizer_json)
    for text, encoded in zip(TEXTS, engine.encode(TEXTS), strict=True):
        assert encoded.ids.tolist() == reference(text, add_special_tokens=False)["input_ids"], text
    named = {key: value for key, value in reference.special_tokens_map.items() if isinstance(value, str)}
    assert dict(model.special_tokens) == {key: named[key] for key in model.special_tokens}
    if "chat_template.jinja" in model.files:
        assert model.template == reference.chat_template


def test_our_tokenizer_s_ids_are_transformers_ids(samples: Path) -> None:
    check_equal_to_transformers(samples / "model")


@pytest.mark.corpus
def test_every_real_tokenizer_s_ids_are_transformers_ids_a6(corpus: Path) -> None:
    paths = [path for path in sorted((corpus / "models").iterdir()) if (path / "chat_template.jinja").is_file()]
    assert len(paths) >= 9
    for path in paths:
        check_equal_to_transformers(path)


@pytest.mark.corpus
def test_a_bare_tokenizer_without_template_is_refused(corpus: Path) -> None:
    assert code_of(corpus / "models" / "gpt-2") == "no-template"


def test_text_in_the_middle_gets_no_prefix(samples: Path) -> None:
    engine = ReferenceEngine(load_model(str(samples / "model")).tokenizer_json)
    assert engine.decode(engine.encode_middle("a tide").ids.tolist()) == "a tide"


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["phi-3", "mistral-v3"])
def test_a_sentencepiece_answer_in_the_middle_has_no_spurious_space(corpus: Path, name: str) -> None:
    engine = ReferenceEngine(load_model(str(corpus / "models" / name)).tokenizer_json)
    naive = engine.encode(["answer"])[0].ids.tolist()
    middle = engine.encode_middle("answer").ids.tolist()
    opening = engine.encode(["x"])[0].ids.tolist()
    assert engine.decode([*opening, *middle]) == engine.decode(opening) + "answer"
    assert engine.decode([*opening, *naive]) == engine.decode(opening) + " answer"


def test_what_is_done_to_one_engine_changes_no_other(samples: Path) -> None:
    text = load_model(str(samples / "model")).tokenizer_json
    ReferenceEngine(text)._tokenizer.encode_special_tokens = True
    (encoded,) = ReferenceEngine(text).encode(["<|im_end|>"])
    assert len(encoded.ids) == 1
