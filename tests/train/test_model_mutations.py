"""The proofs about model, loss and export can fail: each guard is taken away, and its witness must see it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sftprep.train import export, lora, loss, selftest
from sftprep.train.forward import inputs
from sftprep.train.loss import HeadTransform
from sftprep.train.selftest import Verdict
from tests.train import test_lora, test_loss, test_selftest, test_train_run
from tests.train.runs import Guard, assert_witness_sees


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


def isolated_f1_f3() -> None:
    test_selftest.test_packed_logits_are_each_document_s_own_f1("llama")


def hybrid_f2() -> None:
    test_selftest.test_models_that_mix_documents_are_found_and_rows_of_their_own_are_exact_f2("lfm2")


def memory_n1() -> None:
    test_loss.test_the_loss_takes_a_quarter_of_the_full_logits_at_most_n1(HeadTransform(), torch.float32)


COPIED = test_train_run.test_the_output_names_the_trained_stop_ids_and_copies_the_text_files_b5_c2
SUMMED = test_loss.test_the_head_s_gradient_is_summed_in_float32_under_bfloat16
TOKENS = test_lora.test_untrained_tokens_of_the_set_are_refused_unless_embeddings_are_trained_n2
MERGED = test_lora.test_the_merged_model_opens_in_transformers_and_equals_base_and_adapter_c2_b5
GUARDS: dict[str, Guard] = {
    "F1 and F3: documents are apart": (selftest, "inputs", joined, isolated_f1_f3),
    "F2: a hybrid is found": (selftest, "_compare", believing, hybrid_f2),
    "N1: the loss works in tiles": (loss, "_TILES", 1, memory_n1),
    "the head's gradient is summed in float32": (loss, "_add_product", in_low_precision, SUMMED),
    "N2: untrained tokens are refused": (lora, "untrained_ids", lambda *_: [], TOKENS),
    "adapters are merged": (lora, "_adapted_layers", lambda _: iter(()), MERGED),
    "C2: template bytes are copied": (shutil, "copyfile", altered, COPIED),
    "B5: stop ids are those trained": (export, "_generation_settings", without_stop_ids, COPIED),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_the_witness_sees_that_a_guard_is_gone(
    guard: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_witness_sees(GUARDS[guard], request, monkeypatch)
