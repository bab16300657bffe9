"""A model is opened with the attention that it was trained with (F1)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2PreTrainedModel

from sftprep.train.model import locate, pretrained


def test_soft_capped_scores_are_never_left_to_a_kernel_that_forgets_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As transformers 5.17 says of itself, whose sdpa drops the cap without a word.
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 32, "head_dim": 8}
    config = Gemma2Config(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    assert model.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path / "capped")
    opened = pretrained(locate(str(tmp_path / "capped")), dtype=torch.float32)
    assert opened.config._attn_implementation == "eager"
