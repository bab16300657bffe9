"""What a run asks of torch before it computes (J1)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from sftprep.config.train import TrainConfig
from sftprep.train.device import set_up_torch


def test_deterministic_runs_ask_torch_for_operations_that_add_in_one_order_and_later_runs_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Set first, so that it is also restored.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    config = TrainConfig(data="set", model="model", out=Path("out"))
    set_up_torch(config.model_copy(update={"deterministic": True}))
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_up_torch(config)
    assert not torch.are_deterministic_algorithms_enabled()
