"""The operation that attends within all documents at once, in layers that are not compiled: as a GPU runs them (F1)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sftprep.train import attention
from sftprep.train.forward import inputs
from sftprep.train.selftest import check_segments
from sftprep.train.stream import collate_packed
from tests.train.test_selftest import ISOLATED, small_documents, small_model

WITHOUT = {"gemma2", "gpt_oss", "deepseek_v3"}
"""Soft caps, sinks, and values of another width than keys: those have the loop."""


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """This machine is taken for one with the kernel; how often the operation was called."""
    found: list[int] = []
    real = attention.packed_attention
    monkeypatch.setattr(attention, "_has_kernel", lambda _: True)
    monkeypatch.setattr(attention, "packed_attention", lambda *given: found.append(1) or real(*given))
    attention.register()
    return found


@pytest.mark.parametrize("kind", ISOLATED)
def test_documents_are_apart_by_the_operation_too_f1(kind: str, called: list[int]) -> None:
    verdict = check_segments(small_model(kind, ISOLATED[kind]), small_documents(), dtype=torch.float32)
    assert verdict.isolated, verdict.reason
    assert verdict.difference <= 1e-5
    assert bool(called) == (kind not in WITHOUT)


@pytest.mark.parametrize("kind", sorted(ISOLATED.keys() - WITHOUT))
@pytest.mark.parametrize("low", [False, True], ids=["float32", "autocast"])
def test_gradients_are_those_of_the_loop(
    kind: str, low: bool, called: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients() -> torch.Tensor:
        model = small_model(kind, ISOLATED[kind])
        model.set_attn_implementation(attention.ATTENTION_NAME)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            model(**inputs(collate_packed(small_documents()))).logits.float().square().mean().backward()
        found: Any = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        return torch.cat(found)

    by_operation = gradients()
    assert len(called) == 3
    monkeypatch.setattr(attention, "_has_kernel", lambda _: False)
    by_loop = gradients()
    assert len(called) == 3
    # In bfloat16 what rounds is added up in another order.
    assert float((by_operation - by_loop).norm() / by_loop.norm()) < (2e-2 if low else 1e-5)


def test_an_operation_that_mixes_documents_is_found(called: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention.packed_attention

    def mixing(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *given: Any) -> Any:
        whole = torch.tensor([0, len(query)], dtype=torch.int32)
        return real(query, key, value, whole, torch.tensor([1, len(query)]), *given[2:])

    monkeypatch.setattr(attention, "packed_attention", mixing)
    assert not check_segments(small_model("llama", {}), small_documents(), dtype=torch.float32).isolated
    assert called
