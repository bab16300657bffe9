"""Faults of model, loss and export, and who must see each; `test_train_mutations.py` plants them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sftprep.train import export, lora, loss, selftest
from sftprep.train.forward import inputs
from sftprep.train.loss import HeadTransform
from sftprep.train.selftest import Verdict
from tests.test_mutations import Plant, changed, constant
from tests.train import test_lora, test_loss, test_selftest, test_train_run


def joined(batch: Any) -> dict[str, Any]:
    """Attention over the whole row: every document sees those before it."""
    whole = dict(batch)
    whole["offsets"] = (0, batch["offsets"][-1]) if batch["offsets"] else ()
    return inputs(whole)


def believing(*_: Any, **__: Any) -> Verdict:
    return Verdict(isolated=True, reason="", difference=0.0, moved=0.0)


def altered(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes().replace(b"\n", b"\r\n"))


def without_stop_ids(*_: Any) -> dict[str, Any]:
    class Settings(dict[str, Any]):
        def __or__(self, other: Any) -> Any:
            return {"temperature": 0.7, "eos_token_id": 1}

    return Settings()


def in_low_precision(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    total.copy_((total.to(left.dtype) + left @ right).float())


COPIED = test_train_run.test_the_output_names_the_trained_stop_ids_and_copies_the_text_files_b5_c2
SUMMED = test_loss.test_the_head_s_gradient_is_summed_in_float32_under_bfloat16
TOKENS = test_lora.test_untrained_tokens_of_the_set_are_refused_unless_embeddings_are_trained_n2
MERGED = test_lora.test_the_merged_model_opens_in_transformers_and_equals_base_and_adapter_c2_b5
ISOLATED = partial(test_selftest.test_packed_logits_are_each_document_s_own_f1, kind="llama")
HYBRID = partial(test_selftest.test_models_that_mix_documents_are_found_and_rows_of_their_own_are_exact_f2, kind="lfm2")
MEMORY = partial(
    test_loss.test_the_loss_takes_a_quarter_of_the_full_logits_at_most_n1,
    transform=HeadTransform(),
    dtype=torch.float32,
)
FAULTS: list[tuple[str, str, Plant, Callable[..., object]]] = [
    ("attention is over the whole row", "F1 F3", changed(selftest, "inputs", joined), ISOLATED),
    ("the self-test believes", "F2", changed(selftest, "_compare", believing), HYBRID),
    ("the loss works in one tile", "N1", changed(loss, "_TILES", 1), MEMORY),
    ("the head's gradient is summed in bfloat16", "loss", changed(loss, "_add_product", in_low_precision), SUMMED),
    ("untrained tokens pass", "N2", constant(lora, "untrained_ids", []), TOKENS),
    ("adapters are not merged", "merge", constant(lora, "_adapted_layers", ()), MERGED),
    ("template bytes are changed", "C2", changed(shutil, "copyfile", altered), COPIED),
    ("stop ids are others", "B5", changed(export, "_generation_settings", without_stop_ids), COPIED),
]
