"""Compiled layers (--compile): one graph for all layers and packs, and what the model's own layers compute (J4)."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch._dynamo import config as dynamo_config
from torch._dynamo.utils import counters
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from sftprep.config.train import TrainConfig
from sftprep.errors import SftprepError, StoppedError, TrainError
from sftprep.train import packed_op, run, setup
from sftprep.train.compiled import compile_layers
from sftprep.train.filling import filled_up
from sftprep.train.packed_op import packed_attention
from sftprep.train.run import train
from sftprep.train.stream import Row, collate_packed
from tests.train.runs import metrics_of, stopping_after

ShardSetFactory = Callable[..., Path]

LENGTHS = [5, 17, 1, 40]
TOKENS = sum(LENGTHS)


@pytest.fixture
def one_graph() -> Iterator[None]:
    """Inside, whatever is compiled a second time is an error."""
    torch.compiler.reset()
    counters.clear()
    with dynamo_config.patch(error_on_recompile=True):
        yield
    torch.compiler.reset()


def _traced(monkeypatch: pytest.MonkeyPatch, backend: Any = "aot_eager") -> None:
    """Graphs are traced as for real and then run as they are: generating code takes a minute."""
    monkeypatch.setattr(setup, "compile_layers", partial(compile_layers, backend=backend))


def _config(data: Path, model: Path, out: Path, **options: Any) -> TrainConfig:
    given = {"grad_accum": 2, "lr": 3e-3, "epochs": 2, "device": "cpu", "threads": 1, **options}
    return TrainConfig(data=data, model=str(model), out=out, **given)


def _run(data: Path, model: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    train(_config(data, model, out, **options), console=Console(quiet=True))
    return metrics_of(out / "metrics.jsonl")


def _assert_same_steps(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(found) == len(wanted) > 5
    for name in ("loss", "grad_norm", "nll"):
        assert [line[name] for line in found] == pytest.approx([line[name] for line in wanted], rel=1e-5)
    assert [line["num_tokens"] for line in found] == [line["num_tokens"] for line in wanted]


def test_one_graph_serves_all_layers_and_packs_and_steps_are_those_of_the_model_itself_j4(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_graph: None
) -> None:
    data = shard_set(num_rows=9, weighted=True)
    measured = {"eval_shards": data, "eval_every": 2}
    wanted = _run(data, toy_model, tmp_path / "own", **measured)
    _traced(monkeypatch)
    found = _run(data, toy_model, tmp_path / "compiled", compile_layers=True, **measured)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    _assert_same_steps(found, wanted)
    evaluated = [line["eval_nll"] for line in wanted if line["eval_nll"] is not None]
    assert [line["eval_nll"] for line in found if line["eval_nll"] is not None] == pytest.approx(evaluated, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"keep_products": True},
        {"keep_narrow": True},
        {"keep_products": True, "lora_rank": 4},
        {"batch_size": 2, "grad_accum": 1, "loss": "sample"},
    ],
    ids="+".join,
)
def test_what_is_recomputed_or_adapted_is_compiled_too(
    shard_set: ShardSetFactory,
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_graph: None,
    *,
    options: dict[str, Any],
) -> None:
    data = shard_set(num_rows=9)
    wanted = _run(data, toy_model, tmp_path / "own", **options)
    _traced(monkeypatch)
    found = _run(data, toy_model, tmp_path / "compiled", compile_layers=True, **options)
    assert counters["stats"]["unique_graphs"] == 1
    _assert_same_steps(found, wanted)


@pytest.mark.slow
def test_generated_code_gives_the_same_steps_too(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, one_graph: None
) -> None:
    data = shard_set(num_rows=9)
    wanted = _run(data, toy_model, tmp_path / "own")
    found = _run(data, toy_model, tmp_path / "compiled", compile_layers=True)
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["inductor"]
    _assert_same_steps(found, wanted)


@pytest.mark.slow
def test_a_resumed_run_of_compiled_layers_ends_in_the_same_bytes_j1(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, one_graph: None
) -> None:
    data = shard_set(num_rows=9)
    whole = _config(data, toy_model, tmp_path / "whole", compile_layers=True)
    train(whole, console=Console(quiet=True))
    torch.compiler.reset()
    parts = whole.model_copy(update={"out": tmp_path / "parts"})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "run_steps", stopping_after(4))
        with pytest.raises(StoppedError):
            train(parts, console=Console(quiet=True))
    torch.compiler.reset()
    train(parts.model_copy(update={"resume": True}), console=Console(quiet=True))
    found, wanted = (tmp_path / name / "model.safetensors" for name in ("parts", "whole"))
    assert found.read_bytes() == wanted.read_bytes()


def _noisy(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
    """A compiler that makes a mistake."""

    def run(*given: Any) -> Any:
        return tuple(part * 1.1 if part.is_floating_point() else part for part in graph(*given))

    return run


def _broken(*_: Any) -> Any:
    raise RuntimeError("no code for this")


@pytest.mark.parametrize(("backend", "code"), [(_noisy, "compile-differs"), (_broken, "compile-failed")])
def test_a_compiler_that_errs_is_found_before_the_first_step(
    shard_set: ShardSetFactory,
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_graph: None,
    *,
    backend: Any,
    code: str,
) -> None:
    _traced(monkeypatch, backend)
    with pytest.raises(TrainError) as raised:
        _run(shard_set(num_rows=9), toy_model, tmp_path / "out", compile_layers=True)
    assert raised.value.code == code
    assert not (tmp_path / "out").exists()


def _soft_capped(place: Path) -> Path:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    kind = AutoConfig.for_model("gemma2", vocab_size=96, num_key_value_heads=2, head_dim=8, **shape)
    AutoModelForCausalLM.from_config(kind).save_pretrained(place)
    return place


def test_attention_that_cannot_be_one_operation_is_refused_by_name(
    shard_set: ShardSetFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _traced(monkeypatch)
    with pytest.raises(SftprepError) as raised:
        _run(shard_set(), _soft_capped(tmp_path / "capped"), tmp_path / "out", compile_layers=True)
    assert raised.value.code == "compile-unsupported"


def test_rows_that_do_not_stay_packed_are_not_compiled(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainError) as raised:
        _run(shard_set(), toy_model, tmp_path / "out", compile_layers=True, attention="unpack")
    assert raised.value.code == "compile-unsupported"


def _operands(dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(TOKENS, heads, 8, dtype=dtype, requires_grad=True) for heads in (4, 2, 2)]


def _documents() -> tuple[torch.Tensor, torch.Tensor]:
    """Borders with the last one repeated, and the extent."""
    borders = np.cumsum([0, *LENGTHS, 0, 0])
    return torch.tensor(borders, dtype=torch.int32), torch.tensor([len(LENGTHS), max(LENGTHS)])


@pytest.mark.parametrize("window", [0, 4])
def test_the_operation_and_its_gradient_are_those_of_masked_attention(window: int) -> None:
    operands = _operands(torch.float64)
    output, _ = packed_attention(*operands, *_documents(), 0.3, window)
    places, documents = torch.arange(TOKENS), torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    distance = places[:, None] - places
    mask = (documents[:, None] == documents) & (distance >= 0) & (distance < (window or TOKENS))
    heads_first = [tensor.transpose(0, 1)[None] for tensor in operands]
    wanted = functional.scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(output, wanted[0].transpose(0, 1))
    weights = torch.randn_like(output)
    gradients = [torch.autograd.grad(found, operands, weights) for found in (output, wanted[0].transpose(0, 1))]
    torch.testing.assert_close(*gradients)


def test_the_operation_is_what_a_graph_is_told_that_it_is() -> None:
    torch.library.opcheck(packed_attention, (*_operands(torch.float32), *_documents(), 0.3, 0))


@pytest.mark.parametrize("window", [0, 4])
def test_the_kernel_of_a_gpu_is_called_as_it_is_declared(window: int) -> None:
    """On tensors without data: this machine may have no such kernel, but its signature and shapes are known."""
    query, key, value = (tensor.detach().to("meta", torch.bfloat16) for tensor in _operands(torch.float32))
    documents = packed_op._Documents(torch.empty(5, dtype=torch.int32, device="meta"), 40, 0.3, window)
    output, sums = packed_op.flash(query, key, value, documents=documents)
    assert (output.shape, output.dtype, sums.shape) == (query.shape, torch.bfloat16, (4, TOKENS))
    gradients = packed_op.flash_backward(output, query, key, value, output, sums, documents=documents)
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]


def _row(lengths: list[int]) -> Row:
    size = sum(lengths)
    trained = np.arange(size) % 2 == 1
    trained[np.cumsum([0, *lengths[:-1]])] = False
    return Row(3, np.full(size, 7, np.int32), trained, np.array(lengths, np.int32), np.ones(size, np.float32))


def test_a_pack_is_filled_up_with_documents_that_nothing_is_learnt_of() -> None:
    packed = collate_packed([_row([3, 5])])
    filled = filled_up(packed, pad_id=9, length=600)
    assert filled["offsets"] == (0, 3, 8, 264, 520, 600)
    assert filled["cu_seqlens"].tolist() == [*filled["offsets"], *[600] * 595]
    assert filled["input_ids"].tolist() == [[7] * 8 + [9] * 592]
    assert filled["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4] + [0] * 592]
    for name in ("rows", "targets", "weights", "sources"):
        assert torch.equal(filled[name], packed[name])  # type: ignore[literal-required]
    assert filled["num_tokens"] == 8


def test_packs_look_alike_to_a_graph_whatever_they_hold() -> None:
    shapes = set()
    for lengths in ([3, 5], [8], [1] * 8, [2]):
        batch = filled_up(collate_packed([_row(lengths)]), pad_id=9, length=8)
        tensors = [batch["input_ids"], batch["position_ids"], batch["cu_seqlens"]]
        shapes.add(tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors))
    assert len(shapes) == 1


def test_a_pack_that_is_longer_than_its_manifest_says_is_an_error() -> None:
    with pytest.raises(TrainError) as raised:
        filled_up(collate_packed([_row([3, 5])]), pad_id=9, length=7)
    assert raised.value.code == "row-too-long"


def test_packs_that_are_not_filled_up_would_be_compiled_again(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_graph: None
) -> None:
    """What makes one graph: without it the witness above fails."""
    _traced(monkeypatch)
    real = setup.Trainee
    monkeypatch.setattr(setup, "check_compiled", lambda *_: 0.0)
    monkeypatch.setattr(setup, "Trainee", lambda **given: dataclasses.replace(real(**given), pack_length=0))
    with pytest.raises(torch._dynamo.exc.RecompileError):
        _run(shard_set(num_rows=9), toy_model, tmp_path / "out", compile_layers=True)


IN_A_PROCESS = """
import sys
from functools import partial
from rich.console import Console
from torch._dynamo import config
from sftprep.config.train import TrainConfig
from sftprep.train import setup
from sftprep.train.compiled import compile_layers
from sftprep.train.run import train
config.error_on_recompile = True
setup.compile_layers = partial(compile_layers, backend="aot_eager")
train(TrainConfig.model_validate_json(sys.argv[1]), console=Console(quiet=True))
"""


@pytest.mark.slow
def test_layers_that_are_split_among_processes_are_compiled_as_one_graph_too(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set(num_rows=9)
    options = {"keep_products": True, "grad_accum": 3}
    wanted = _run(data, toy_model, tmp_path / "own", **options)
    config = _config(data, toy_model, tmp_path / "split", compile_layers=True, **options)
    (tmp_path / "train.py").write_text(IN_A_PROCESS)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "train.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, *command, config.model_dump_json()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    _assert_same_steps(metrics_of(tmp_path / "split" / "metrics.jsonl"), wanted)
