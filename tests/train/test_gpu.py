"""What only a CUDA device can show: its kernel, its memory, and the same bytes after a resumption.

Sizes are small, so that the file takes a minute; the real shapes are measured by benchmarks/h100.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sftprep.config.train import TrainConfig
from sftprep.errors import StoppedError, TrainError
from sftprep.train import attention, run
from sftprep.train.attention import Segments, segment_attention
from sftprep.train.forward import find_head, inputs, to_device, token_loss
from sftprep.train.loss import HeadTransform, linear_cross_entropy
from sftprep.train.recompute import recompute_activations
from sftprep.train.run import TrainResult, train
from sftprep.train.selftest import check_segments
from sftprep.train.stream import MicroBatch, Row, collate_packed
from tests.train.runs import metrics_of, stopping_after
from tests.train.test_selftest import FALLBACK, ISOLATED, small_documents, small_model

pytestmark = pytest.mark.gpu

ShardSetFactory = Callable[..., Path]
LENGTHS = [700, 300, 1, 64, 513]


@pytest.fixture(autouse=True)
def _settings_end_with_the_test() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.cuda.set_per_process_memory_fraction(1.0)


def _segments(lengths: list[int]) -> Segments:
    offsets = (0, *np.cumsum(lengths).tolist())
    return Segments(
        offsets=offsets,
        cu_seqlens=torch.tensor(offsets, dtype=torch.int32, device="cuda"),
        max_length=max(lengths),
    )


def _attended(wide: list[torch.Tensor], *, dtype: torch.dtype, window: int) -> list[torch.Tensor]:
    """The output and the three gradients; float32 takes the loop over documents, bfloat16 the kernel."""
    parts = [tensor.to(dtype).detach().requires_grad_() for tensor in wide]
    keywords = {"sliding_window": window or None, **_segments(LENGTHS).keywords()}
    output, _ = segment_attention(torch.nn.Module(), *parts, **keywords)
    output.float().square().sum().backward()
    return [output.detach().float(), *(part.grad.float() for part in parts if part.grad is not None)]


@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize(("heads", "key_heads", "dim"), [(12, 2, 128), (8, 8, 64), (8, 4, 256), (32, 8, 128)])
def test_the_kernel_computes_what_the_loop_over_documents_does_f1(
    heads: int, key_heads: int, dim: int, window: int
) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(1, count, sum(LENGTHS), dim) for count in (heads, key_heads, key_heads)]
    wide = [torch.randn(shape, device="cuda", generator=generator) for shape in shapes]
    exact = _attended(wide, dtype=torch.float32, window=window)
    rounded = _attended([tensor.bfloat16().float() for tensor in wide], dtype=torch.float32, window=window)
    found = _attended(wide, dtype=torch.bfloat16, window=window)
    assert len(found) == 4
    for kernel, low, loop in zip(found, rounded, exact, strict=True):
        assert kernel.shape == loop.shape
        # Rounding the operands alone costs as much as the kernel's bfloat16 does.
        assert float((kernel - low).norm() / low.norm()) < 0.01
        assert float((kernel - loop).norm() / loop.norm()) < 0.02


def _model(kind: str, extra: dict[str, Any]) -> PreTrainedModel:
    model = small_model(kind, extra)
    if kind == "gemma2":
        # What transformers 5.17 takes by itself forgets the soft cap.
        model.set_attn_implementation("eager")
    return model.to("cuda")


@pytest.mark.parametrize("kind", ISOLATED)
def test_packed_is_per_document_in_float32_f1(kind: str) -> None:
    attention.register()
    verdict = check_segments(_model(kind, ISOLATED[kind]), small_documents(), dtype=torch.float32)
    assert (verdict.reason, verdict.isolated) == ("", True)
    assert verdict.difference < 1e-5
    assert verdict.moved < 1e-5


@pytest.mark.parametrize("kind", ISOLATED)
def test_the_self_test_passes_with_the_kernel_in_bfloat16_f2(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention.register()
    called = []
    real = attention._operation
    monkeypatch.setattr(attention, "_operation", lambda *a, **k: called.append(1) or real(*a, **k))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        verdict = check_segments(_model(kind, ISOLATED[kind]), small_documents(), dtype=torch.bfloat16)
    assert (verdict.reason, verdict.isolated) == ("", True)
    # Sinks, soft caps and values of another width than keys have no kernel here.
    assert bool(called) == (kind not in {"gemma2", "gpt_oss", "deepseek_v3"})


@pytest.mark.parametrize("kind", [kind for kind in FALLBACK if kind != "qwen3_next"])
def test_models_that_mix_documents_are_found_f3(kind: str) -> None:
    attention.register()
    assert not check_segments(_model(kind, FALLBACK[kind]), small_documents(), dtype=torch.float32).isolated


def test_the_self_test_sees_a_kernel_that_mixes_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention.packed_attention

    def mixing(q: Any, k: Any, v: Any, *given: Any) -> Any:
        whole = torch.tensor([0, len(q)], dtype=torch.int32, device=q.device)
        return real(q, k, v, whole, torch.tensor([1, len(q)]), *given[2:])

    monkeypatch.setattr(attention, "packed_attention", mixing)
    attention.register()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        verdict = check_segments(_model("llama", {}), small_documents(), dtype=torch.bfloat16)
    assert not verdict.isolated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_takes_a_quarter_of_the_full_logits_and_has_their_gradients_i2(dtype: torch.dtype) -> None:
    rows, dim, vocab = 4096, 256, 65536
    generator = torch.Generator("cuda").manual_seed(0)
    head = torch.nn.Linear(dim, vocab, bias=False, device="cuda")
    hidden = torch.randn(rows, dim, device="cuda", generator=generator).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), device="cuda", generator=generator)
    weights = torch.rand(rows, device="cuda", generator=generator) / rows
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        found = linear_cross_entropy(hidden, head, targets=targets, weights=weights, transform=HeadTransform())
    found.objective.backward()
    # The head's own gradients, twice while they are scaled, are no logits.
    taken = torch.cuda.max_memory_allocated() - before - 2 * 4 * vocab * dim
    assert taken <= 0.25 * 4 * rows * vocab
    gradients = [hidden.grad.clone(), head.weight.grad.clone()]
    hidden.grad, head.weight.grad = None, None
    losses = torch.nn.functional.cross_entropy(head(hidden).double(), targets, reduction="none")
    (losses * weights).sum().backward()
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    for ours, wanted in zip(gradients, [hidden.grad, head.weight.grad], strict=True):
        assert float((ours - wanted).norm() / wanted.norm()) < tolerance


def _run(data: Path, model: Path, **options: Any) -> TrainResult:
    settings: dict[str, Any] = {"grad_accum": 2, "lr": 3e-3, "device": "cuda"} | options
    return train(TrainConfig(data=data, model=str(model), **settings), console=Console(quiet=True))


def _parameters(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def test_float32_on_the_gpu_loses_what_the_cpu_loses_i1(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set(num_rows=9)
    there = _run(data, toy_model, out=tmp_path / "gpu", dtype="float32", epochs=2)
    here = _run(data, toy_model, out=tmp_path / "cpu", dtype="float32", epochs=2, device="cpu")
    assert there.nll == pytest.approx(here.nll, rel=1e-4)
    low = _run(data, toy_model, out=tmp_path / "low", epochs=2)
    assert low.nll == pytest.approx(here.nll, rel=0.03)
    assert low.nll != there.nll


def test_compiled_layers_lose_what_the_model_as_written_does_i1(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path
) -> None:
    data = shard_set(num_rows=9)
    plain = _run(data, toy_model, out=tmp_path / "plain", epochs=2)
    compiled = _run(data, toy_model, out=tmp_path / "compiled", epochs=2, compile_layers=True, keep_products=True)
    assert compiled.nll == pytest.approx(plain.nll, rel=0.03)
    assert compiled.nll[-1] < compiled.nll[0] - 0.2


@pytest.mark.parametrize(
    "options",
    [{}, {"lora_rank": 4, "lora_dropout": 0.3}, {"compile_layers": True, "keep_products": True}],
    ids=["whole", "adapters", "compiled"],
)
def test_a_run_that_is_resumed_ends_in_the_same_bytes_under_deterministic_j1(
    shard_set: ShardSetFactory,
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    data = shard_set(num_rows=9)
    options |= {"epochs": 2, "deterministic": True}
    _run(data, toy_model, out=tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        patched.setattr(run, "run_steps", stopping_after(4))
        with pytest.raises(StoppedError):
            _run(data, toy_model, out=tmp_path / "parts", **options)
    _run(data, toy_model, out=tmp_path / "parts", resume=True, **options)
    assert _parameters(tmp_path / "parts") == _parameters(tmp_path / "whole")
    losses = [[line["loss"] for line in metrics_of(tmp_path / name / "metrics.jsonl")] for name in ("parts", "whole")]
    assert losses[0] == losses[1]


def _deep(mode: str) -> tuple[LlamaForCausalLM, Callable[[], None]]:
    attention.register()
    torch.manual_seed(1)
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 512}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).cuda().train()
    head = find_head(model)
    model.set_attn_implementation(attention.ATTENTION_NAME)
    if mode != "kept":
        recompute_activations(model, keep_products=mode == "products kept")
    batch = to_device(_batch(), torch.device("cuda"))

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found = token_loss(model, batch, head=head, normaliser=float(len(batch["targets"])))
        found.objective.backward()

    return model, step


def _batch() -> MicroBatch:
    ids = (np.arange(sum(LENGTHS)) % 512).astype(np.int32)
    trained = np.arange(len(ids)) % 2 == 1
    trained[np.cumsum([0, *LENGTHS[:-1]])] = False
    return collate_packed([Row(0, ids, trained, np.array(LENGTHS, np.int32), np.ones(len(ids), np.float32))])


def test_recomputing_changes_no_gradient_and_takes_less_memory() -> None:
    torch.use_deterministic_algorithms(True)
    gradients, peaks = {}, {}
    for mode in ("kept", "products kept", "all recomputed"):
        model, step = _deep(mode)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        peaks[mode] = torch.cuda.max_memory_allocated() - before
        gradients[mode] = [parameter.grad for parameter in model.parameters()]
    assert all(map(torch.equal, gradients["kept"], gradients["products kept"]))
    assert all(map(torch.equal, gradients["kept"], gradients["all recomputed"]))
    assert peaks["all recomputed"] < 0.8 * peaks["products kept"]
    assert peaks["products kept"] < 0.9 * peaks["kept"]


def test_no_forward_pass_makes_the_host_wait_for_the_gpu() -> None:
    model, _ = _deep("kept")
    batch = to_device(_batch(), torch.device("cuda"))
    given = inputs(batch)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        model(**given)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(**given)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _fill() -> list[torch.Tensor]:
    """All memory that this process may still take, once it may take no more than it has."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / torch.cuda.mem_get_info()[1])
    blocks = []
    for size in (2**20, 2**16, 2**9):
        while True:
            try:
                blocks.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                break
    return blocks


def test_too_little_memory_is_an_error_that_says_what_to_turn_n1(
    shard_set: ShardSetFactory, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run.run_steps

    def starved(*arguments: Any, **keywords: Any) -> Any:
        blocks = _fill()
        yield from real(*arguments, **keywords)
        assert blocks

    monkeypatch.setattr(run, "run_steps", starved)
    with pytest.raises(TrainError) as raised:
        _run(shard_set(), toy_model, out=tmp_path / "out")
    assert raised.value.code == "out-of-memory"
    assert "--keep-products" in str(raised.value.hint)
