"""Every ingredient of a set decides its fingerprint, and what decides no byte does not: none is forgotten (H5, H6)."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sftprep.config.pack import PackConfig, SourceSpec
from sftprep.engines.load import load_model
from sftprep.engines.model import ModelFiles
from sftprep.prepare import fingerprint as module
from sftprep.prepare.fingerprint import NOT_IN_BYTES, fingerprint
from sftprep.prepare.inputs import InputFile
from sftprep.sources.state import FileState

CALL: dict[str, Any] = {"files": ("a.jsonl",), "model": "model", "out": "out", "max_length": 128}

OPTIONS: dict[str, Any] = {
    "max_length": 127,
    "packing": False,
    "over_length": "drop",
    "num_rows": 8,
    "rows_multiple_of": 2,
    "seed": 1,
    "format": "openai",
    "train_on": "last",
    "history": "as-rendered",
    "reasoning": "mask",
    "tool_calls": "mask",
    "mask": "generation-tags",
    "merge_consecutive": True,
    "control_tokens": "allow",
    "allow": ("field-lost",),
    "template_kwargs": {"x": 1},
    "now": datetime(2026, 1, 2),
    "shard_tokens": 1000,
}
NEUTRAL: dict[str, Any] = {
    "out": "elsewhere",
    "work_dir": Path("elsewhere"),
    "overwrite": True,
    "append": True,
    "rehash": True,
    "workers": 2,
    "max_drop": "5%",
    "tokenizer_engine": "reference",
    "plans": False,
    "runner": "ray",
    "ray_address": "head:6379",
}
BY_CONTENT = {"files", "sources", "model"}
"""Options that count by what they name: see the files and the model below."""

MODEL: dict[str, Any] = {
    "special_tokens": {"bos_token": "<x>"},
    "stop_ids": (1,),
    "control_tokens": ("<x>",),
    "pad_id": 7,
    "tokenizer_sha256": "x",
    "template_sha256": "x",
}
MODEL_BY_OTHERS = {
    "name": "where it was",
    "files": "the hashes below are of them",
    "tokenizer_json": "tokenizer_sha256",
    "vocab_size": "tokenizer_sha256",
    "stop_tokens": "stop_ids and tokenizer_sha256",
    "template": "template_sha256",
    "tool_template": "template_sha256",
    "opened": "it is made of tokenizer_json",
}
"""Fields that are no ingredients of their own, and what counts in their place."""


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> ModelFiles:
    return load_model(str(request.getfixturevalue("samples") / "model"))


def source(sha256: str = "a", **spec: Any) -> InputFile:
    told = {"name": "a", "path": Path("a.jsonl"), **spec}
    return InputFile(SourceSpec(**told), told["path"], sha256, num_bytes=1, state=FileState(1, 2, 3, 4, 5))


def of(model: ModelFiles, /, *files: InputFile, **options: Any) -> str:
    return fingerprint(files or (source(),), model=model, config=PackConfig(**{**CALL, **options}))


def test_every_option_is_decided_upon() -> None:
    known = set(PackConfig.model_fields)
    assert set(OPTIONS) | set(NEUTRAL) | BY_CONTENT == known, "a new option needs a line here"
    assert set(NEUTRAL) | BY_CONTENT == NOT_IN_BYTES
    assert not set(OPTIONS) & NOT_IN_BYTES


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_may_decide_bytes_changes_it_h6(model: ModelFiles, name: str) -> None:
    assert of(model, **{name: OPTIONS[name]}) != of(model)


def test_options_that_decide_no_byte_do_not(model: ModelFiles) -> None:
    for name, value in NEUTRAL.items():
        others = {"runner": "ray"} if name == "ray_address" else {}
        assert PackConfig(**{**CALL, **others, name: value}) != PackConfig(**CALL)
        assert of(model, **others, **{name: value}) == of(model), name
    assert of(model, files=("b.jsonl",), sources=("b=b.jsonl",), model="other/model") == of(model)


def test_every_field_of_a_model_is_decided_upon() -> None:
    assert set(MODEL) | set(MODEL_BY_OTHERS) == {field.name for field in fields(ModelFiles)}, "a new field"


@pytest.mark.parametrize("name", MODEL)
def test_an_ingredient_of_the_model_changes_it_h6(model: ModelFiles, name: str) -> None:
    assert getattr(model, name) != MODEL[name]
    assert of(replace(model, **{name: MODEL[name]})) != of(model)


def test_where_the_model_was_does_not(model: ModelFiles) -> None:
    assert of(replace(model, name="elsewhere")) == of(model)


def test_bytes_order_number_and_epochs_of_files_change_it_h6(model: ModelFiles) -> None:
    one, two = source("a"), source("b", name="b", path=Path("b.jsonl"))
    found = [
        of(model, one),
        of(model, two),
        of(model, one, two),
        of(model, two, one),
        of(model, replace(one, identity="etag")),
        of(model, replace(one, identity="etag", num_bytes=2)),
        of(model, source("a", epochs=2)),
        of(model, source("a", epochs=2.5)),
        of(model, source("a", epochs=2.5, name="another draw")),
    ]
    assert len(set(found)) == len(found)


def test_where_a_file_is_and_when_it_was_written_do_not(model: ModelFiles) -> None:
    assert {field.name for field in fields(InputFile)} == {"spec", "path", "sha256", "num_bytes", "state", "identity"}
    assert set(SourceSpec.model_fields) == {"name", "path", "epochs"}, "a new field needs a line above or here"
    moved = replace(source("a", name="b", path=Path("b.jsonl")), path=Path("/tmp/copy"), num_bytes=2, state=None)
    assert of(model, moved) == of(model, source("a"))


def test_every_version_that_decides_bytes_changes_it(model: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = module.versions()
    assert set(versions) == {"sftprep", "python", "jinja2", "numpy", "pyarrow", "tokenizers"}
    before = of(model)
    for name in versions:
        monkeypatch.setattr(module, "versions", lambda name=name: {**versions, name: "0"})
        assert of(model) != before, name
    monkeypatch.setattr(module, "versions", lambda: versions)
    assert of(model) == before
    monkeypatch.setattr(module, "FORMAT_VERSION", module.FORMAT_VERSION + 1)
    assert of(model) != before
