"""The networks of a comparison themselves, for what can be measured on them before and after training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from actinium.core.errors import InputError
from actinium.functions.comparison.comparison_tasks import ComparisonTask, task
from actinium.functions.registry import get

__all__ = ["task_network", "trained_network"]


def task_network(
    activation: str | Callable[[], nn.Module],
    on: str | ComparisonTask = "digits",
    seed: int = 0,
    *,
    trained: bool = True,
    **settings: Any,
) -> nn.Module:
    """The network that `compare_activations` makes with a function and a seed, in evaluation mode.

    All functions get the same initial weights and the same batches for one seed.

    Args:
        activation: name in the catalogue, or a factory of modules.
        on: name of a task (see `task`), or a `ComparisonTask`.
        seed: of weights and batches.
        trained: after training, or before.
        settings: of a task that is given by its name.

    Raises:
        InputError: there is no such task, or settings for a task of one's own.
        UnknownNameError: there is no function of that name.
    """
    if settings and not isinstance(on, str):
        raise InputError("settings are for tasks that are given by name")
    chosen = task(on, **settings) if isinstance(on, str) else on
    factory: Callable[[], nn.Module] = (lambda: get(activation)) if isinstance(activation, str) else activation
    return trained_network(chosen, factory, seed, epochs=None if trained else 0)[0].eval()


def trained_network(
    on: ComparisonTask, activation: Callable[[], nn.Module], seed: int, epochs: int | None = None
) -> tuple[nn.Module, list[float], dict[str, float]]:
    """A network with a function after training, mean loss of each epoch, and gradient norms of the last one.

    Args:
        on: the task.
        activation: factory of modules.
        seed: of weights and batches.
        epochs: the task's own if not given; 0 for the network before training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = on.build(nn.ReLU).state_dict()
        torch.manual_seed(seed)
        net = on.build(activation)
        # A function that draws parameters of its own would shift all weights that are drawn after it.
        net.load_state_dict(weights, strict=False)
        torch.manual_seed(seed)
        done = _train(on, net, torch.Generator().manual_seed(seed), on.epochs if epochs is None else epochs)
    return net, *done


def _train(
    on: ComparisonTask, net: nn.Module, generator: torch.Generator, epochs: int
) -> tuple[list[float], dict[str, float]]:
    """Mean loss of each epoch, and gradient norms of the last one."""
    learnt = [p for p in net.parameters() if p.requires_grad]
    weights = [p for p in learnt if p.ndim > 1]
    optimiser = torch.optim.Adam(learnt, lr=on.rate)
    curve: list[float] = []
    first, last, every = [], [], []
    for epoch in range(epochs):
        losses = []
        for x, y in on.batches(generator):
            loss = on.loss(net(x), y)
            optimiser.zero_grad()
            loss.backward()
            if epoch == epochs - 1:
                norms = [float(p.grad.norm()) for p in weights if p.grad is not None]
                first.append(norms[0])
                last.append(norms[-1])
                every.append(math.sqrt(sum(n * n for n in norms)))
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimiser.step()
            losses.append(float(loss.detach()))
        curve.append(float(np.mean(losses)))
        if not math.isfinite(curve[-1]):
            curve += [math.nan] * (epochs - epoch - 1)
            return curve, {"gradient_norm": math.nan, "gradient_decay": math.nan}
    if not curve:
        return curve, {}
    return curve, {
        "gradient_norm": float(np.mean(every)),
        "gradient_decay": float(np.mean(first) / max(np.mean(last), 1e-300)),
    }
