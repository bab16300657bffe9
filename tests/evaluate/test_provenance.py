"""The gate of parity: each way in which a model is not the one that its training rows were made for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sftprep.config.pack import PackConfig
from sftprep.engines.load import load_model
from sftprep.evaluate.provenance import parity_faults
from sftprep.prepare.pack import pack
from sftprep.shards.read import ShardSet, open_shard_set


@pytest.fixture(scope="module")
def place(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory, and beside it the set that was packed for it."""
    place = tmp_path_factory.mktemp("parity")
    shutil.copytree(samples / "model", place / "model")
    rows = samples / "good" / "openai.jsonl"
    pack(PackConfig(files=(rows,), model=str(place / "model"), out=place / "set", max_length=512))
    return place


@pytest.fixture(scope="module")
def packed(place: Path) -> ShardSet:
    return open_shard_set(place / "set")


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({}, None),
        ({"tokenizer_sha256": "0" * 64}, "the tokenizer is not the one"),
        ({"template_sha256": "0" * 64}, "the chat template is not the one"),
        ({"stop_ids": (0,)}, "would not stop on all of <|im_end|>"),
    ],
)
def test_a_model_with_other_files_is_named_by_what_differs(
    place: Path, packed: ShardSet, changed: dict[str, Any], what: str | None
) -> None:
    files = replace(load_model(str(place / "model")), **changed)
    found = parity_faults(files, place / "model", packed)
    assert len(found) == (what is not None)
    assert what is None or what in found[0]


def test_a_server_may_stop_on_more_tokens_than_were_trained(place: Path, packed: ShardSet) -> None:
    files = load_model(str(place / "model"))
    assert parity_faults(replace(files, stop_ids=(*files.stop_ids, 0)), place / "model", packed) == []


def test_a_model_that_was_trained_on_another_set_is_named(place: Path, packed: ShardSet, tmp_path: Path) -> None:
    files = load_model(str(place / "model"))
    for fingerprint, count in ((packed.manifest.fingerprint, 0), ("0" * 64, 1)):
        (tmp_path / "train.json").write_text(json.dumps({"fingerprint": fingerprint}), encoding="utf-8")
        found = parity_faults(files, tmp_path, packed)
        assert len(found) == count
        assert all("names another packed set" in fault for fault in found)
