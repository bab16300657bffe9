"""The optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch

from sftprep.config.train import TrainConfig
from sftprep.errors import TrainError
from sftprep.train.distributed import whole


class ClippingAdamW(torch.optim.AdamW):
    """AdamW whose fused step divides gradients by `grad_scale`, float32 and of no dimension, while it reads them.

    Torch looks for this attribute and puts loss scales there; a division of its own is one more pass over gradients.
    """

    grad_scale: torch.Tensor | None = None


def build_optimizer(model: torch.nn.Module, config: TrainConfig) -> ClippingAdamW:
    """AdamW, fused; weight decay on matrices, not on norms and biases."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return ClippingAdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(step: int, *, num_steps: int, config: TrainConfig) -> float:
    """The rate of a step, counted from 0: up to the peak in the warm-up, and at the last step the minimum."""
    warmup = min(num_steps, warmup_steps(num_steps, config))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup + 1) / max(1, num_steps - warmup)
    share = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * share[config.schedule])


def warmup_steps(num_steps: int, config: TrainConfig) -> int:
    """Steps of the warm-up: a share of all steps, rounded up, or a number of steps."""
    return math.ceil(config.warmup * num_steps) if config.warmup < 1 else int(config.warmup)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next step, for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_and_step(optimizer: ClippingAdamW, *, max_norm: float, place: str, loss: float) -> float:
    """Step by the gradient, scaled down to `max_norm` where its norm is larger, and forget it; the norm before.

    Raises:
        TrainError: `not-finite`, `no-gradient`.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    total = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    norm = float(total)
    if not math.isfinite(norm) or not math.isfinite(loss):
        raise TrainError(
            f"the loss is {loss}, the gradient norm {norm}",
            code="not-finite",
            place=place,
            hint="lower --lr, lengthen --warmup, or look at these rows with sftprep audit --row",
        )
    if norm == 0:
        raise TrainError(
            "the gradient is zero although tokens are trained",
            code="no-gradient",
            place=place,
            hint="are all weights frozen?",
        )
    # Made where the norm is: a number from here would be waited for.
    optimizer.grad_scale = total.float() / max_norm if norm > max_norm else None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
