"""Zhuo et al., 2025: activation functions that are polynomials of ReLU, or of normalised powers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

import actinium as ac
from actinium.core.errors import InputError
from actinium.core.provenance import provenance
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    65,
    claim=(
        "In the feed-forward blocks of a transformer, PolyReLU and PolyNorm reach a lower loss than ReLU, squared "
        "ReLU and GELU, train as stably, and represent products of inputs better than ReLU."
    ),
)
CLAIMED = (
    "In pre-training of a dense model of 1B parameters and a mixture of experts of 7B, PolyReLU and PolyNorm converge "
    "faster and end with lower losses and better downstream accuracy than ReLU, squared ReLU, GELU and SwiGLU; "
    "networks with them approximate Sobolev functions at the optimal rate."
)
# Of the card: both.
WITHIN, BETTER = 0.015, 5.0
OURS = ("PolyReLU", "PolyNorm")


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Compare polynomial compositions with others in a small transformer, on digits, and on products of inputs.

    The claim holds if (1) both have a lower mean loss on unseen text than each of GELU, ReLU and squared ReLU; (2) on
    digits the mean accuracy of both is at most 1.5 points below GELU's, and no run fails; (3) on products of inputs
    PolyReLU's error is at most a fifth of ReLU's. (1) and (2) are left out of a quick run.

    Args:
        seed: the first of the seeds.
        model: not used: the experiment trains its own networks.
        quick: one seed and 300 steps on products instead of three and 1500, and nothing else.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError("this experiment trains its own networks; give yours PolyNorm with ac.functions.replace")
    factories: dict[str, Callable[[], nn.Module]] = {
        "GELU": nn.GELU,
        "ReLU": nn.ReLU,
        "squared ReLU": _Squared,
        "PolyReLU": ac.functions.PolyReLU,
        "PolyNorm": ac.functions.PolyNorm,
    }
    seeds = list(range(seed, seed + (1 if quick else 3)))
    few = {name: factories[name] for name in ("GELU", *OURS)}
    losses: dict[str, float] = {}
    accuracy: dict[str, float] = {}
    measured: dict[str, Any] = {}
    failed = 0
    if not quick:
        lm = ac.functions.compare_activations(factories, "lm", seeds, epochs=6)
        digits = ac.functions.compare_activations(few, "digits", range(seed, seed + 5), epochs=15)
        losses = dict(zip(factories, lm.data["mean"].values.tolist(), strict=True))
        accuracy = dict(zip(few, digits.data["mean"].values.tolist(), strict=True))
        failed = int(digits["failed"].sum())
        measured |= {f"{name}: p against GELU, text": float(lm["p"].sel(activation=name)) for name in OURS}
    products = {name: _products(make, seeds, 300 if quick else 1500) for name, make in factories.items()}
    scaled = {name: _scaled(few[name], seed, 40 if quick else 300) for name in few}
    ours = max((v for name, v in losses.items() if name in OURS), default=math.inf)
    rivals = min((v for name, v in losses.items() if name not in OURS), default=-math.inf)
    parts: dict[str, bool | None] = {
        "lower loss in a language model": None if quick else ours < rivals,
        "as accurate on digits as GELU": None
        if quick
        else not failed and all(accuracy[name] >= accuracy["GELU"] - WITHIN for name in OURS),
        "products of inputs": products["PolyReLU"] <= products["ReLU"] / BETTER,
    }
    measured |= {f"{name}: loss on unseen text (nats)": v for name, v in losses.items()}
    measured |= {f"{name}: accuracy on digits": v for name, v in accuracy.items()}
    measured |= {f"{name}: error on products": v for name, v in products.items()}
    measured |= {f"{name}: loss with inputs 100 times as large": v for name, v in scaled.items()}
    data = {"error": ("activation", np.array(list(products.values())))}
    if losses:
        data["loss on text"] = ("activation", np.array(list(losses.values())))
    hints = {"plot": {"kind": "bar", "variables": ["error"], "yscale": "log", "ylabel": "error on products of inputs"}}
    settings = {"seeds": seeds}
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "A transformer of two blocks of width 48 on the text of the small world, without SwiGLU; both compositions "
            "have order 3 and start at 1/3. Errors on products are those at the training points. The rate of "
            "approximation is a theorem and is not examined. A loss that is not finite is shown as such."
        ),
        result=ac.Result(
            xr.Dataset(data, {"activation": list(products)}, hints),
            "polynomial compositions",
            PAPER.slug,
            provenance(**settings),
        ),
        settings=settings,
    )


class _Squared(nn.Module):
    """max(0, x)^2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).square()


def _train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, loss: Any, rate: float, steps: int) -> float:
    """Last loss of full-batch training."""
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    value = torch.zeros(())
    for _ in range(steps):
        value = loss(net(x), y)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    return float(value.detach())


def _products(activation: Callable[[], nn.Module], seeds: list[int], steps: int) -> float:
    """Mean squared error of one hidden layer of 32 on the sum of the products of pairs of six inputs."""
    found = []
    for s in seeds:
        x = torch.randn(2000 if steps > 1000 else 500, 6, generator=torch.Generator().manual_seed(s))
        y = torch.stack([x[:, i] * x[:, j] for i in range(6) for j in range(i)]).sum(0)
        y = ((y - y.mean()) / y.std())[:, None]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s)
            net = nn.Sequential(nn.Linear(6, 32), activation(), nn.Linear(32, 1))
        found.append(_train(net, x, y, nn.functional.mse_loss, 1e-2, steps))
    return sum(found) / len(found)


def _scaled(activation: Callable[[], nn.Module], seed: int, steps: int) -> float | str:
    """Training loss on digits whose inputs are 100 standard deviations wide."""
    data = ac.world.digits.load("train")
    x = 100 * (data.images.flatten(1) - data.images.mean()) / data.images.std()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            *(nn.Linear(64, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 64), activation()),
            nn.Linear(64, 10),
        )
    loss = _train(net, x, data.labels, nn.functional.cross_entropy, 2e-3, steps)
    return loss if math.isfinite(loss) else "not finite"
