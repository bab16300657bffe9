"""Pack on real conversations, with real tokenizers and their own templates."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from sftprep.config.pack import PackConfig
from sftprep.data import SpanKind
from sftprep.prepare.pack import pack
from tests.outside import first_rows

MODELS = ("qwen3", "phi-3", "smollm2-135m-instruct", "deepseek-v3", "mistral-v3", "mistral-tekken", "gpt-oss")


@pytest.mark.corpus
@pytest.mark.parametrize("name", MODELS)
def test_real_word_problems_pack_whole_and_every_answer_ends_in_a_stop_token(
    corpus: Path, tmp_path: Path, name: str
) -> None:
    path = first_rows(corpus / "chat" / "gsm8k_train.jsonl.zst", count=60, target=tmp_path / "gsm8k.jsonl")
    model = corpus / "models" / name
    result = pack(PackConfig(files=(path,), model=str(model), out=tmp_path / "out", max_length=2048))
    manifest = result.shards.manifest
    assert (manifest.counts.num_conversations, manifest.left_out.num_rows) == (60, 0)
    assert result.report.audit.passed
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "model" / "tokenizer.json"))
    num_stops = 0
    for batch in result.shards.iter_batches():
        for row in batch.to_pylist():
            ends = [*row["span_starts"][1:], len(row["input_ids"])]
            for start, stop, kind in zip(row["span_starts"], ends, row["span_kinds"], strict=True):
                text = tokenizer.decode(row["input_ids"][start:stop], skip_special_tokens=False)
                if kind == SpanKind.STOP:
                    num_stops += 1
                    assert text in manifest.model.stop_tokens
                elif kind == SpanKind.COMPLETION:
                    assert "####" in text  # every answer of this source names its result so
    assert num_stops == manifest.counts.num_turns == 60
