"""Learning rates and sparsity penalties over the steps of a run, and the optimisers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from actinium.features.training.config import TrainConfig

__all__ = ["Signum", "optimizer_of", "rate_factor", "sparsity_factor"]


def rate_factor(config: TrainConfig, step: int, steps: int) -> float:
    """Share of the largest learning rate at a step, counted from 0."""
    warmup = config.warmup * steps if config.warmup < 1 else config.warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        done = (step - warmup) / max(1.0, steps - warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done)))
    start = config.decay_start * steps
    return 1.0 if step < start else max(0.0, (steps - step) / max(1.0, steps - start))


def sparsity_factor(config: TrainConfig, step: int, steps: int) -> float:
    """Share of the sparsity coefficient at a step."""
    return min(1.0, (step + 1) / max(1.0, config.sparsity_warmup * steps))


class Signum(torch.optim.Optimizer):
    """Steps of one size along the sign of a running mean of gradients.

    Args:
        params: parameters.
        lr: size of a step.
        momentum: of the running mean.

    Source: Bernstein et al., 2018.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["mean"] = torch.zeros_like(p)
                state["mean"].lerp_(p.grad, 1 - group["momentum"])
                p.add_(state["mean"].sign(), alpha=-group["lr"])


def optimizer_of(config: TrainConfig, params: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """The optimiser of a run; Adam with fused kernels, which make one pass over the parameters."""
    if config.optimizer == "signum":
        return Signum(params, rate, config.betas[0])
    if config.optimizer == "sgd":
        return torch.optim.SGD(params, rate, momentum=config.betas[0], weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    fused = params[0].device.type in ("cpu", "cuda")
    return kind(params, rate, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=fused)
