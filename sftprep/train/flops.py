"""How many floating-point operations a step needs: what a model must compute, not what an implementation does.

Padding, recomputed activations and logits that nobody trains are not needed, and do not count. The
count leaves out element-wise work, as is usual.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Cost:
    """What a token costs: weights of matrices by how they are trained, and the width of attention.

    `attention` is layers x heads x head dimension.
    """

    trained: int
    frozen: int
    head: int
    head_trained: bool
    attention: int

    def step(self, *, num_tokens: int, num_trained: int, sum_len2: int) -> float:
        """Forward and backward over documents whose squared lengths sum to `sum_len2`.

        A trained matrix takes three products, a frozen one two; causal attention half of the full square.
        """
        body = (6 * self.trained + 4 * self.frozen) * num_tokens
        head = (6 if self.head_trained else 4) * self.head * num_trained
        return float(body + head + 6 * self.attention * sum_len2)


def cost_of(model: PreTrainedModel) -> Cost | None:
    """The cost of a model; None where its matrices are not plain linear layers, as in fused experts."""
    linear = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not linear]
    config = model.config.get_text_config()
    if not isinstance(linear, torch.nn.Linear) or hasattr(config, "num_experts_per_tok"):
        return None
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Cost(
        trained=sum(m.weight.numel() for m in layers if m.weight.requires_grad),
        frozen=sum(m.weight.numel() for m in layers if not m.weight.requires_grad),
        head=linear.weight.numel(),
        head_trained=linear.weight.requires_grad,
        attention=config.num_hidden_layers * config.num_attention_heads * width,
    )
