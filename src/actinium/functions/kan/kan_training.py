"""Training of networks on tables, and fine-tuning of classifiers by sampled labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError, unknown
from actinium.core.progress import shown

__all__ = ["grpo_loss", "grpo_tune", "train_network"]

OPTIMISERS = ("adam", "lbfgs")
Loss = Callable[[Tensor, Tensor], Tensor]


def train_network(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    *,
    parameters: list[nn.Parameter] | None = None,
    optimiser: str = "adam",
    steps: int = 200,
    lr: float = 1e-2,
    batch_size: int | None = None,
    weight_decay: float = 0.0,
    penalty: Callable[[Tensor], Tensor] | None = None,
    held_out: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> list[float]:
    """Train a network in place, on all rows at once or on batches; it is in evaluation mode afterwards.

    Args:
        network: rows (n, in) -> outputs.
        x, y: rows and their targets.
        loss: outputs and targets -> a number.
        parameters: what is trained; all parameters that need a gradient if not given.
        optimiser: "adam", or "lbfgs" (strong Wolfe line search, history of 10, 20 iterations at each step), which takes
            all rows at once.
        steps: steps of the optimiser.
        lr: learning rate; 1 is usual for L-BFGS.
        batch_size: rows of a step, drawn without replacement until all were seen; all of them if not given.
        weight_decay: half the factor of the sum of squared parameters that is added to the loss.
        penalty: a further term, called with the rows of the step, such as `KANNetwork.regulariser`.
        held_out: rows and targets on which the loss is taken ten times while training; the network is then that of the
            lowest one.
        seed: of the batches.
        progress: show a progress bar.

    Returns:
        the loss at each step.

    Raises:
        InputError: a setting that there is not, no rows, or the loss is not finite any more.
    """
    if optimiser not in OPTIMISERS:
        raise InputError(unknown("optimiser", str(optimiser), list(OPTIMISERS)))
    if steps < 1 or not lr > 0 or weight_decay < 0 or len(x) == 0 or len(x) != len(y):
        raise InputError(
            f"training takes rows, a step or more, a positive lr and no negative weight decay; got {len(x)} rows, "
            f"{len(y)} targets, {steps} steps, lr {lr} and weight decay {weight_decay}"
        )
    if batch_size is not None and (batch_size < 1 or optimiser == "lbfgs"):
        raise InputError("batches have one row or more, and L-BFGS takes all rows at once")
    learnt = [p for p in network.parameters() if p.requires_grad] if parameters is None else parameters
    made = _optimiser(optimiser, learnt, lr)
    batches = _batches(len(x), batch_size, seed)
    kept = _Kept(network, held_out, loss, max(1, steps // 10))
    losses: list[float] = []
    network.train()
    for step in shown(range(steps), "training", progress):
        rows = next(batches)
        inputs, targets = x[rows], y[rows]

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            made.zero_grad()
            value = loss(network(inputs), targets)
            if penalty is not None:
                value = value + penalty(inputs)
            if weight_decay:
                value = value + weight_decay / 2 * sum(p.square().sum() for p in learnt)
            value.backward()
            return value

        losses.append(float(made.step(closure).detach()))
        if not math.isfinite(losses[-1]):
            raise InputError(f"the loss is {losses[-1]} at step {step}; take a smaller lr or scale the rows")
        kept.look(step)
    kept.restore()
    network.eval()
    return losses


def _optimiser(name: str, learnt: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(learnt, lr=lr)
    return torch.optim.LBFGS(learnt, lr=lr, max_iter=20, history_size=10, line_search_fn="strong_wolfe")


def _batches(n: int, size: int | None, seed: int) -> Iterator[Any]:
    """Numbers of the rows of each step, without end."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        if size is None or size >= n:
            yield slice(None)
        else:
            yield from torch.randperm(n, generator=rng).split(size)


class _Kept:
    """The state of the network that was best on held-out rows."""

    def __init__(self, network: nn.Module, held_out: tuple[Tensor, Tensor] | None, loss: Loss, every: int) -> None:
        self.network, self.held_out, self.loss, self.every = network, held_out, loss, every
        self.best, self.state = math.inf, None

    def look(self, step: int) -> None:
        """Compare, every so many steps."""
        if self.held_out is None or (step + 1) % self.every:
            return
        self.network.eval()
        with torch.no_grad():
            value = float(self.loss(self.network(self.held_out[0]), self.held_out[1]))
        self.network.train()
        if value < self.best:
            self.best, self.state = value, copy.deepcopy(self.network.state_dict())

    def restore(self) -> None:
        """Take up the best state."""
        if self.state is not None:
            self.network.load_state_dict(self.state)


def grpo_loss(logits: Tensor, reference: Tensor, labels: Tensor, sampled: Tensor, beta: float) -> Tensor:
    """-mean(advantage log p(sample)) + beta KL(p || p_ref).

    A sampled label has the reward 1 where it is right; its advantage is the reward less the mean over the samples of
    its row.

    Args:
        logits, reference: of the network and of the one that it started as, (n, classes).
        labels: (n,).
        sampled: labels drawn from the softmax of the logits, (n, group).
        beta: weight of the divergence.
    """
    log_p, log_ref = logits.log_softmax(-1), reference.log_softmax(-1)
    reward = (sampled == labels[:, None]).to(logits.dtype)
    advantage = reward - reward.mean(1, keepdim=True)
    chosen = log_p.gather(1, sampled)
    divergence = (log_p.exp() * (log_p - log_ref)).sum(-1).mean()
    return beta * divergence - (advantage * chosen).mean()


def grpo_tune(
    network: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    group: int = 6,
    beta: float = 0.01,
    lr: float = 1e-3,
    steps: int = 100,
    seed: int = 0,
    progress: bool = False,
) -> list[float]:
    """Fine-tune a classifier in place by group-relative policy optimisation on labels that it samples itself.

    The network is in evaluation mode meanwhile and afterwards.

    Args:
        network: rows (n, in) -> logits (n, classes).
        x, labels: rows and classes (n,).
        group: labels sampled for each row, two or more.
        beta: weight of the divergence from the network at the start.
        lr: learning rate of Adam.
        steps: steps, each on all rows.
        seed: of the samples.
        progress: show a progress bar.

    Returns:
        the mean reward, which is the expected accuracy of a sampled label, at each step.

    Raises:
        InputError: a setting is out of range, or rows and labels differ in number.

    Source: Eslamian et al., 2025, arXiv 2504.06559; Shao et al., 2024, arXiv 2402.03300, section 4.1.
    """
    if group < 2 or beta < 0 or not lr > 0 or steps < 1 or len(x) == 0 or len(x) != len(labels):
        raise InputError(
            "two samples or more, a step or more, a positive lr, no negative beta and a label for each row are wanted; "
            f"got {group}, {steps}, {lr}, {beta}, {len(x)} rows and {len(labels)} labels"
        )
    rng = torch.Generator(x.device).manual_seed(seed)
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=lr)
    network.eval()
    with torch.no_grad():
        reference = network(x)
    rewards: list[float] = []
    for _ in shown(range(steps), "fine-tuning", progress):
        logits = network(x)
        chances = functional.softmax(logits.detach(), -1)
        sampled = torch.multinomial(chances, group, replacement=True, generator=rng)
        rewards.append(float((sampled == labels[:, None]).double().mean()))
        optimiser.zero_grad()
        grpo_loss(logits, reference, labels, sampled, beta).backward()
        optimiser.step()
    return rewards
