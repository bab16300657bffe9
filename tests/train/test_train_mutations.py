"""The trainer's own guards can fail: each is taken away, and its witness must see that (A4, A5, C8)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sftprep.shards.manifest import Manifest
from sftprep.train import loop, setup
from tests.train import test_train_run
from tests.train.runs import Guard, assert_witness_sees

VALIDATE = Manifest.model_validate


def stamped(data: Any) -> Manifest:
    return VALIDATE({"mask": "assistant", **data})


def counting_nothing(position: Any, feed: Any, *, num_trained: int) -> Any:
    return replace(position, step=position.step + 1, epoch_trained=0)


STAMP = test_train_run.test_a_set_that_does_not_say_what_its_mask_is_is_refused_a4
EPOCH = test_train_run.test_an_epoch_that_trains_another_number_of_tokens_than_the_manifest_says_is_refused_a5
TEMPLATE = test_train_run.test_a_model_with_another_template_is_refused_c8
GUARDS: dict[str, Guard] = {
    "A4": (Manifest, "model_validate", stamped, STAMP),
    "A5": (loop, "_advance", counting_nothing, EPOCH),
    "C8": (setup, "check_fit", lambda *_: None, TEMPLATE),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_the_witness_sees_that_a_guard_is_gone(
    guard: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_witness_sees(GUARDS[guard], request, monkeypatch)
