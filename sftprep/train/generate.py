"""Asks a trained model for one answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


class Answer(NamedTuple):
    """The ids that the model wrote, its stop token included where `stopped`: it ended by itself."""

    ids: tuple[int, ...]
    stopped: bool


def answers(model_dir: Path, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[Answer]:
    """Greedy answers to prompts of ids, one by one; generation stops where the model's own files say."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True).eval()
    named = model.generation_config.eos_token_id
    stop_ids = frozenset(named if isinstance(named, list) else [named])
    return [_answer(model, prompt, max_new_tokens=max_new_tokens, stop_ids=stop_ids) for prompt in prompts]


def answer(model_dir: Path, prompt_ids: Sequence[int], *, max_new_tokens: int) -> Answer:
    """A greedy answer to one prompt."""
    return answers(model_dir, [prompt_ids], max_new_tokens=max_new_tokens)[0]


@torch.inference_mode()
def _answer(
    model: PreTrainedModel, prompt_ids: Sequence[int], *, max_new_tokens: int, stop_ids: frozenset[int]
) -> Answer:
    prompt = torch.tensor([list(prompt_ids)], dtype=torch.int64)
    output = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=max_new_tokens
    )
    ids = tuple(int(i) for i in output[0, prompt.shape[1] :])
    return Answer(ids=ids, stopped=bool(ids) and ids[-1] in stop_ids)
