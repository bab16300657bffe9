"""Where a set is published, when it is left alone, and what its fingerprint is of."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sftprep.config.pack import PackConfig
from sftprep.errors import SftprepError
from sftprep.prepare.pack import PackResult, pack

ROWS = [
    {"messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Answer {n}."}]}
    for n in range(8)
]


@pytest.fixture
def call(tmp_path: Path, samples: Path) -> dict[str, Any]:
    """Options of a pack that works; the model is a copy that a test may change."""
    shutil.copytree(samples / "model", tmp_path / "model")
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return {"files": (path,), "model": str(tmp_path / "model"), "out": tmp_path / "out", "max_length": 128}


def run(call: dict[str, Any], **options: Any) -> PackResult:
    return pack(PackConfig(**{**call, **options}))


def refused(call: dict[str, Any], **options: Any) -> SftprepError:
    with pytest.raises(SftprepError) as caught:
        run(call, **options)
    assert not [path for path in call["out"].parent.iterdir() if path.name.startswith(".")]
    return caught.value


def fingerprint(call: dict[str, Any], **options: Any) -> str:
    return run(call, overwrite=True, **options).shards.manifest.fingerprint


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_second_run_on_unchanged_input_does_nothing(call: dict[str, Any]) -> None:
    # H5
    first = run(call)
    before = {path: path.stat().st_mtime_ns for path in call["out"].rglob("*")}
    second = run(call, workers=2)
    assert (first.unchanged, second.unchanged) == (False, True)
    assert {path: path.stat().st_mtime_ns for path in call["out"].rglob("*")} == before
    assert (second.shards.manifest, second.report) == (first.shards.manifest, first.report)


def test_another_set_in_the_same_place_is_refused_and_replaced_with_overwrite(call: dict[str, Any]) -> None:
    first = run(call)
    error = refused(call, seed=1)
    assert (error.exit_code, error.code) == (2, "output-other-shards")
    assert run(call).unchanged
    second = run(call, seed=1, overwrite=True)
    assert second.shards.manifest.fingerprint != first.shards.manifest.fingerprint


def test_an_unchanged_set_that_leaves_out_more_than_is_allowed_now_is_refused(call: dict[str, Any]) -> None:
    call["files"][0].open("a", encoding="utf-8").write('{"messages": []}\n')
    run(call, max_drop="1")
    told: list[str] = []
    with pytest.raises(SftprepError) as caught:
        pack(PackConfig(**call), on_left_out=told.append)
    assert caught.value.code == "rows-left-out"
    assert told
    assert all("chats.jsonl:9:" in line for line in told)


def test_a_damaged_set_is_an_error_and_is_made_again_with_overwrite(call: dict[str, Any]) -> None:
    run(call)
    (call["out"] / "shards" / "part-00000.parquet").unlink()
    assert refused(call).code == "missing-shard"
    assert not run(call, overwrite=True).unchanged
    assert run(call).unchanged


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "max_length": {"max_length": 127},
    "packing": {"packing": False},
    "over_length": {"over_length": "drop"},
    "num_rows": {"num_rows": 8},
    "rows_multiple_of": {"rows_multiple_of": 2},
    "train_on": {"train_on": "last"},
    "history": {"history": "as-rendered"},
    "control_tokens": {"control_tokens": "allow"},
    "reasoning": {"reasoning": "mask"},
    "tool_calls": {"tool_calls": "mask"},
    "mask": {"mask": "generation-tags"},
    "merge_consecutive": {"merge_consecutive": True},
    "allow": {"allow": ("field-lost",)},
    "template_kwargs": {"template_kwargs": {"x": 1}},
    "now": {"now": datetime(2026, 1, 2)},
    "shard_tokens": {"shard_tokens": 1000},
    "format": {"format": "openai"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_option_that_may_decide_bytes_changes_the_fingerprint(call: dict[str, Any], name: str) -> None:
    if name == "mask":
        said = "{{- text_of(message.content) -}}"
        edited(Path(call["model"]) / "chat_template.jinja", said, f"{{% generation %}}{said}{{% endgeneration %}}")
    assert fingerprint(call, **CHANGES[name]) != fingerprint(call)  # H6


def test_input_bytes_tokenizer_template_and_stop_tokens_change_the_fingerprint(call: dict[str, Any]) -> None:
    model = Path(call["model"])
    found = [fingerprint(call)]  # H6: any one ingredient
    edited(call["files"][0], "Answer 3.", "Answer three.")
    found.append(fingerprint(call))
    edited(model / "chat_template.jinja", "{#-", "{#- changed")
    found.append(fingerprint(call))
    edited(model / "generation_config.json", "2", "2, 0")
    found.append(fingerprint(call))
    edited(model / "tokenizer.json", '"individual_digits": true', '"individual_digits": false')
    found.append(fingerprint(call))
    assert len(set(found)) == len(found)


def test_the_order_and_the_epochs_of_inputs_change_the_fingerprint_and_paths_do_not(call: dict[str, Any]) -> None:
    folder = call["out"].parent
    (one,) = call["files"]
    two = folder / "two.jsonl"
    two.write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    found = {
        fingerprint(call, files=(one, two)),
        fingerprint(call, files=(two, one)),
        fingerprint(call, files=(one,), sources=(f"two={two}:2",)),
        fingerprint(call, files=(one,), sources=(f"two={two}:0.5",)),
        fingerprint(call, files=(one,), sources=(f"other={two}:0.5",)),
    }
    assert len(found) == 5
    moved = folder / "moved.jsonl"
    shutil.copy(two, moved)
    assert fingerprint(call, files=(one, moved)) == fingerprint(call, files=(one, two))
    same = {"max_drop": "5%", "workers": 2, "tokenizer_engine": "reference", "plans": False}
    assert fingerprint(call, **same, out=folder / "elsewhere") == fingerprint(call)


def test_the_clock_is_not_an_input_and_the_pinned_date_is(call: dict[str, Any]) -> None:
    # C6: a template that prints the date prints the pinned one.
    template = Path(call["model"]) / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}\n" + template.read_text(encoding="utf-8"), encoding="utf-8")
    default = run(call, out=call["out"].parent / "a").shards.manifest
    again = run(call, out=call["out"].parent / "b").shards.manifest
    other = run(call, out=call["out"].parent / "c", now=datetime(2030, 6, 1)).shards.manifest
    assert default == again
    assert default.config["now"] == "2026-01-01T00:00:00"
    assert default.shards[0].sha256 != other.shards[0].sha256


def test_a_file_in_the_way_is_refused(call: dict[str, Any]) -> None:
    call["out"].write_text("mine", encoding="utf-8")
    error = refused(call, overwrite=True)
    assert (error.code, error.exit_code) == ("output-not-a-directory", 2)
    assert call["out"].read_text(encoding="utf-8") == "mine"


def test_a_directory_below_a_file_cannot_be_written(call: dict[str, Any]) -> None:
    error = refused(call, out=call["files"][0] / "out")
    assert (error.code, error.exit_code) == ("output-not-writable", 2)


def test_a_directory_with_other_files_is_never_replaced(call: dict[str, Any]) -> None:
    call["out"].mkdir()
    (call["out"] / "thesis.txt").write_text("mine", encoding="utf-8")
    error = refused(call, overwrite=True)
    assert (error.code, error.exit_code) == ("output-not-empty", 2)
    assert [path.name for path in call["out"].iterdir()] == ["thesis.txt"]


def test_an_empty_directory_is_used(call: dict[str, Any]) -> None:
    call["out"].mkdir()
    assert run(call).shards.manifest.counts.num_documents == len(ROWS)


def test_a_model_that_cannot_be_used_is_named_before_anything_is_read(call: dict[str, Any]) -> None:
    model = Path(call["model"])
    call["files"] = (call["out"].parent / "missing.jsonl",)
    (model / "chat_template.jinja").write_text("{% for %}", encoding="utf-8")
    assert (refused(call).code, refused(call).exit_code) == ("template-syntax", 1)
    (model / "chat_template.jinja").unlink()
    assert (refused(call).code, refused(call).exit_code) == ("no-template", 2)
    (model / "tokenizer.json").unlink()
    assert (refused(call).code, refused(call).exit_code) == ("no-tokenizer", 2)
    shutil.rmtree(model)
    assert (refused(call).code, refused(call).exit_code) == ("not-found", 2)


def test_a_missing_and_an_empty_input_are_named(call: dict[str, Any]) -> None:
    missing = refused(call, files=(call["out"].parent / "missing.jsonl",))
    assert (missing.code, missing.exit_code) == ("missing-file", 2)
    call["files"][0].write_text("", encoding="utf-8")
    empty = refused(call)
    assert (empty.code, empty.exit_code) == ("empty-file", 1)
    assert not call["out"].exists()
