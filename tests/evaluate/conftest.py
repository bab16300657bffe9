"""A tiny random model with the samples' own tokenizer and template, and suites written by tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

WriteSuite = Callable[..., str]


@pytest.fixture(scope="session")
def tiny_model(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights drawn at random, larger than usual so that answers differ."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("tiny") / "model"
    shutil.copytree(samples / "model", place)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    state = (place / "generation_config.json").read_bytes()
    model.save_pretrained(place)
    (place / "generation_config.json").write_bytes(state)
    return place


@pytest.fixture
def write_suite(tmp_path: Path) -> WriteSuite:
    """Writes a suite; returns its YAML file."""

    def write(cases: list[dict[str, Any]], name: str = "harbour", **settings: Any) -> str:
        lines = "".join(json.dumps(case) + "\n" for case in cases)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        head = {"name": name, "description": "Of a test.", "cases": f"{name}.jsonl", "max_new_tokens": 8, **settings}
        place = tmp_path / f"{name}.yaml"
        place.write_text(yaml.safe_dump(head), encoding="utf-8")
        return str(place)

    return write
