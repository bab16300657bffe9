"""What a resumed run does not do again: each costs seconds with a real model, at whatever step it goes on (J3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from sftprep.config.train import TrainConfig
from sftprep.errors import StoppedError
from sftprep.train import attention, optimizer_state, proof, run, selftest, setup
from sftprep.train.optim import ClippingAdamW
from sftprep.train.run import train
from sftprep.train.selftest import check_segments, shortened
from tests import test_mutations
from tests.test_mutations import Plant, changed, constant
from tests.train.runs import stopping_after
from tests.train.test_selftest import FALLBACK, ISOLATED, small_documents, small_model

ShardSetFactory = Callable[..., Path]
PROVE = setup.check_segments


def stop(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(run, "run_steps", stopping_after(after))
        with pytest.raises(StoppedError):
            train(config, console=Console(quiet=True))


@pytest.fixture
def stopped(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainConfig:
    """How a run goes on that was stopped after its first step."""
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cpu", "threads": 1, "max_steps": 3}
    config = TrainConfig(data=shard_set(), model=str(toy_model), out=tmp_path / "out", **settings)
    stop(config, monkeypatch, after=1)
    return config.model_copy(update={"resume": True})


@pytest.fixture
def proven(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each self-test, as they are run."""
    found: list[int] = []

    def counted(model: Any, documents: Any, *, dtype: torch.dtype) -> Any:
        found.append(sum(len(row.ids) for row in documents))
        return PROVE(model, documents, dtype=dtype)

    monkeypatch.setattr(setup, "check_segments", counted)
    return found


def test_what_was_proven_when_the_run_began_is_proven_on_fewer_tokens(stopped: TrainConfig, proven: list[int]) -> None:
    train(
        stopped.model_copy(update={"out": stopped.out.with_name("anew"), "resume": False}), console=Console(quiet=True)
    )
    train(stopped, console=Console(quiet=True))
    assert len(proven) == 2
    assert proven[1] <= 2 * selftest._SHORT_TOKENS < proven[0]
    assert not (stopped.out / "proof.json").exists()


@pytest.mark.parametrize("package", ["torch", "transformers", "sftprep"])
def test_another_version_of_what_a_proof_rests_on_is_proven_in_full(
    stopped: TrainConfig, proven: list[int], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    real = proof.version
    monkeypatch.setattr(proof, "version", lambda name: real(name) + (".other" if name == package else ""))
    train(stopped, console=Console(quiet=True))
    assert proven[0] > 2 * selftest._SHORT_TOKENS


def test_other_adapters_and_another_form_are_another_ground() -> None:
    model, device = small_model("llama", {}), torch.device("cpu")
    options = {"dtype": "torch.float32", "lora": [0, False]}
    ground = proof.ground_of_isolation(model, device=device, options=options)
    other = {**options, "lora": [4, False]}
    assert proof.ground_of_isolation(small_model("llama", {}), device=device, options=options) == ground
    assert proof.ground_of_isolation(model, device=device, options=other) != ground
    assert proof.ground_of_isolation(small_model("mistral", {}), device=device, options=options) != ground
    model.config.rms_norm_eps = 1e-3
    assert proof.ground_of_isolation(model, device=device, options=options) != ground


@pytest.mark.parametrize("noted", ["", "[]", '{"isolation": "', None], ids=["nothing", "a list", "torn", "absent"])
def test_a_proof_that_cannot_be_read_proves_nothing(stopped: TrainConfig, proven: list[int], noted: str | None) -> None:
    path = stopped.out.with_name("out.running") / "proof.json"
    assert set(json.loads(path.read_text())) == {"fit", "isolation"}
    path.unlink()
    if noted is not None:
        path.write_text(noted)
    train(stopped, console=Console(quiet=True))
    assert proven[0] > 2 * selftest._SHORT_TOKENS


@pytest.mark.parametrize("kind", [*ISOLATED, *FALLBACK])
def test_few_tokens_tell_models_that_mix_documents_from_those_that_do_not(kind: str) -> None:
    attention.register()
    model = small_model(kind, ({**ISOLATED, **FALLBACK})[kind])
    verdict = check_segments(model, shortened(small_documents()), dtype=torch.float32)
    assert verdict.isolated == (kind in ISOLATED), verdict.reason


def test_what_few_tokens_deny_is_asked_again_in_full(
    stopped: TrainConfig, proven: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = selftest._compare

    def denying(model: Any, documents: Any, **given: Any) -> Any:
        verdict = real(model, documents, **given)
        if sum(len(row.ids) for row in documents) <= 2 * selftest._SHORT_TOKENS:
            return replace(verdict, isolated=False, reason="rounding")
        return verdict

    monkeypatch.setattr(selftest, "_compare", denying)
    train(stopped, console=Console(quiet=True))
    assert proven == [2 * selftest._SHORT_TOKENS, proven[1]]
    assert proven[1] > proven[0]


def test_the_same_files_are_compared_with_the_set_once_and_changed_ones_again(
    stopped: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(setup, "check_fit", lambda place, _: asked.append(place))
    model = Path(stopped.model)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    stop(stopped, monkeypatch, after=2)
    assert len(asked) == 1
    train(stopped, console=Console(quiet=True))
    assert len(asked) == 1


def test_the_optimizer_takes_no_step_to_be_loaded(stopped: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    step = ClippingAdamW.step

    def counted(self: Any, *arguments: Any, **keywords: Any) -> Any:
        taken.append(1)
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(ClippingAdamW, "step", counted)
    train(stopped, console=Console(quiet=True))
    assert len(taken) == stopped.max_steps - 1


def test_a_parameter_that_never_has_a_gradient_hinders_no_resumption(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = setup.load

    def with_a_tower(*arguments: Any, **keywords: Any) -> Any:
        model = real(*arguments, **keywords)
        model.model.layers[0].register_parameter("unused", torch.nn.Parameter(torch.zeros(3)))
        return model

    monkeypatch.setattr(setup, "load", with_a_tower)
    settings: dict[str, Any] = {"grad_accum": 2, "device": "cpu", "threads": 1, "max_steps": 2}
    config = TrainConfig(data=shard_set(), model=str(toy_model), out=tmp_path / "out", **settings)
    stop(config, monkeypatch, after=1)
    assert len(train(config.model_copy(update={"resume": True}), console=Console(quiet=True)).nll) == 1


NUMBERS = count()
MUTATIONS = [
    (
        "a proof is believed whatever it rests on",
        changed(proof.Proof, "knows", lambda self, what, _: what in self.before),
        test_another_version_of_what_a_proof_rests_on_is_proven_in_full,
        {"package": "torch"},
    ),
    (
        "a proof is not read",
        constant(setup, "_proven", proof.Proof()),
        test_what_was_proven_when_the_run_began_is_proven_on_fewer_tokens,
        {},
    ),
    (
        "files are compared again",
        changed(setup, "ground_of_fit", lambda *_: str(next(NUMBERS))),
        test_the_same_files_are_compared_with_the_set_once_and_changed_ones_again,
        {},
    ),
    (
        "room is made by a step",
        constant(optimizer_state, "_make_room", None),
        test_the_optimizer_takes_no_step_to_be_loaded,
        {},
    ),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation[0] for mutation in MUTATIONS])
def test_the_witness_sees_the_fault(
    mutation: tuple[str, Plant, Callable[..., object], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    name, plant, witness, given = mutation
    test_mutations.test_the_witness_sees_the_fault((name, "J3", plant, witness, given), monkeypatch, request)
