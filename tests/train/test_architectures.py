"""What is learnt from a pack is what its documents teach one by one, architecture by architecture (F1, F2)."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import PreTrainedModel

from sftprep.config.train import TrainConfig
from sftprep.shards.read import open_shard_set
from sftprep.train import attention, setup
from sftprep.train.attention import ATTENTION_NAME
from sftprep.train.forward import Head, find_head, token_loss
from sftprep.train.run import train
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


def _curved(model: PreTrainedModel) -> PreTrainedModel:
    """The model with logits that no scale and no cap of its head's product gives."""
    model.get_output_embeddings().register_forward_hook(lambda _, __, product: product + torch.sin(product))
    return model


@pytest.mark.parametrize("layout", [Layout.SEGMENTS, Layout.UNPACKED])
def test_a_head_of_a_form_of_its_own_is_trained_by_its_full_logits(layout: Layout) -> None:
    attention.register()
    model, row = _curved(small_model("llama", {})).train(), _pack()
    assert find_head(model) is None
    wanted = 0.0
    for document in row.documents():
        logits = model(input_ids=torch.from_numpy(document.ids.astype(np.int64))[None]).logits[0]
        where = torch.from_numpy(document.trained.nonzero()[0])
        nll = torch.nn.functional.cross_entropy(
            logits[where - 1], torch.from_numpy(document.ids)[where].long(), reduction="none"
        )
        part = (nll * torch.from_numpy(document.weights)[where]).sum() / 7.0
        part.backward()
        wanted += float(part.detach())
    teaching = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    if layout is Layout.SEGMENTS:
        model.set_attn_implementation(ATTENTION_NAME)
    found, taught = _gradients(model, None, micro_batches([row], size=1, layout=layout, pad_id=0))
    assert found == pytest.approx(wanted, rel=1e-6)
    apart = {name: float((taught[name] - value).norm() / value.norm()) for name, value in teaching.items()}
    assert {name: value for name, value in apart.items() if value > 1e-5} == {}


@pytest.mark.parametrize("attention_mode", ["segments", "unpack"])
def test_full_logits_train_every_token_of_an_epoch_once_too_a5(
    shard_set: Callable[..., Path],
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attention_mode: str,
) -> None:
    real = setup.load
    monkeypatch.setattr(setup, "load", lambda *given, **named: _curved(real(*given, **named)))
    shown, data = io.StringIO(), shard_set(weighted=True)
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1, "attention": attention_mode}
    config = TrainConfig(data=data, model=str(toy_model), out=tmp_path / "out", **settings)
    result = train(config, console=Console(file=shown, width=200))
    assert "its full logits are computed" in shown.getvalue()
    assert result.num_trained == open_shard_set(data).manifest.counts.num_trained
