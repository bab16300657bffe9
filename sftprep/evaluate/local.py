"""A model in this process: greedy or seeded answers to prompts of ids, in left-padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from sftprep.engines.load import load_model
from sftprep.engines.model import ModelFiles
from sftprep.engines.reference import ReferenceEngine
from sftprep.evaluate.answer import Answer
from sftprep.train.device import device_named
from sftprep.train.distributed import fsdp_parts
from sftprep.train.model import locate, pretrained


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen: the most probable one at temperature 0."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model's weights and files. `stop_ids` end an answer."""

    files: ModelFiles
    directory: Path
    network: PreTrainedModel
    engine: ReferenceEngine
    stop_ids: tuple[int, ...]

    def answers(self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, batch_size: int) -> list[Answer]:
        """One answer a prompt, in the prompts' order; prompts of similar length are asked together."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: dict[int, Answer] = {}
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids = self._generate([prompts[i] for i in batch], sampling)
            found.update(zip(batch, map(self._answer, ids), strict=True))
        return [found[i] for i in range(len(prompts))]

    # Not in inference mode: what a model in training keeps of such a pass would fail in its next backward pass.
    @torch.no_grad()
    def _generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        width = max(map(len, prompts))
        device = self.network.device
        pad = self.files.pad_id
        ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        torch.manual_seed(sampling.seed)
        settings: dict[str, Any] = {"temperature": sampling.temperature} if sampling.temperature else {}
        config = GenerationConfig(
            do_sample=bool(sampling.temperature),
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(self.stop_ids),
            pad_token_id=pad,
            use_cache=True,
            **settings,
        )
        # Processes that share a split model leave the loop together.
        is_split = bool(fsdp_parts(self.network))
        output = self.network.generate(ids, attention_mask=mask, generation_config=config, synced_gpus=is_split)
        return [row[width:].tolist() for row in output]

    def _answer(self, ids: list[int]) -> Answer:
        """The answer of generated ids; what follows the first stop token is padding."""
        stops = [position for position, i in enumerate(ids) if i in self.stop_ids]
        own = ids[: stops[0]] if stops else ids
        return Answer(text=self.engine.decode(own), num_tokens=len(own) + bool(stops), stopped=bool(stops))


def open_local(name: str, *, device: str, stop_ids: Sequence[int] | None) -> LocalModel:
    """A model directory, GGUF file or hub id, in float32; stop tokens are the model's own unless given.

    Raises:
        ModelFilesError: `not-found`, `no-weights`, `missing-weights`, and those of its text files.
        UsageError: `no-cuda`.
    """
    place = locate(name)
    # A GGUF file has its tokenizer and template beside it: its own copy of them is read wrongly by transformers.
    files = load_model(str(place.directory) if place.gguf else name)
    target = device_named(device)
    disable_progress_bar()
    network = pretrained(place, dtype=torch.float32)
    # What a call does not say is taken from here: the model's files may ask for penalties that are no part of it.
    ends = list(stop_ids or files.stop_ids)
    network.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=files.pad_id)
    return LocalModel(
        files,
        place.directory,
        network.eval().to(target),
        ReferenceEngine(files.tokenizer_json),
        tuple(ends),
    )
