"""What is learnt from a pack is what its documents teach one by one, architecture by architecture (F1, F2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from sftprep.train import attention
from sftprep.train.attention import ATTENTION_NAME
from sftprep.train.forward import Head, find_head, token_loss
from sftprep.train.stream import Layout, Row, collate_padded, micro_batches
from tests.train.test_selftest import FALLBACK, ISOLATED, small_model

CONFIGS = ISOLATED | FALLBACK


def _pack() -> Row:
    """Five documents of different lengths, longer and shorter than a window of 8; two thirds of each are trained."""
    generator = np.random.default_rng(1)
    lengths = np.array([20, 33, 5, 40, 2], np.int32)
    ids = generator.integers(3, 128, int(lengths.sum())).astype(np.int32)
    places = np.concatenate([np.arange(length) / length for length in lengths])
    weights = generator.choice(np.array([0.5, 1.0, 2.0], np.float32), len(ids))
    return Row(0, ids, places >= 1 / 3, lengths, weights)


def _gradients(model: PreTrainedModel, head: Head | None, batches: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    total = 0.0
    for batch in batches:
        loss = token_loss(model, batch, head=head, normaliser=7.0)
        torch.autograd.backward(loss.objective)
        total += float(loss.objective.detach())
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_pack_teaches_what_its_documents_teach_one_by_one(kind: str) -> None:
    attention.register()
    model, row = small_model(kind, CONFIGS[kind]).train(), _pack()
    head = find_head(model)
    alone = (collate_padded([document], pad_id=0) for document in row.documents())
    wanted, teaching = _gradients(model, head, alone)
    layout = Layout.SEGMENTS if kind in ISOLATED else Layout.UNPACKED
    if layout is Layout.SEGMENTS:
        model.set_attn_implementation(ATTENTION_NAME)
    batches = list(micro_batches([row], size=1, layout=layout, pad_id=0))
    assert len(batches) == (1 if layout is Layout.SEGMENTS else 3)
    found, taught = _gradients(model, head, batches)
    assert found == pytest.approx(wanted, rel=1e-6)
    assert taught.keys() == teaching.keys()
    assert all(float(gradient.norm()) > 0 for name, gradient in teaching.items() if "sinks" not in name)
    apart = {name: float((taught[name] - teaching[name]).norm() / (teaching[name].norm() + 1e-12)) for name in teaching}
    assert {name: value for name, value in apart.items() if value > 1e-5} == {}
