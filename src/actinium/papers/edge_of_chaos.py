"""Hayou et al., 2019: deep plain networks train only on the edge of chaos, and smooth activations go deeper there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    23,
    claim=(
        "Of deep tanh networks on digits, those whose weights are drawn on the edge of chaos train and those of the "
        "ordered and the chaotic phase do not; correlations in wide networks follow the theory; on their edges tanh "
        "keeps inputs apart over more layers than ReLU and trains to a lower loss."
    ),
)
CLAIMED = (
    "Only weights on the edge of chaos let deep networks train well; on the edge 1 - c_l falls as 1/l for smooth "
    "activations and as 1/l^2 for ReLU, so that smooth ones train better when the network is deep."
)
DEPTH, SB = 30, 0.2
# (sb, sw); None: the edge.
PHASES = {"edge": (SB, None), "ordered": (SB, 0.8), "chaotic": (SB, 3.0)}
BETTER, FOLLOWS = 0.3, 0.05


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Train networks of 30 layers on scikit-learn's digits from weights of three phases, and from ReLU's edge.

    Inputs are scaled to mean 0 and variance 1 over all pixels; SGD has learning rate 0.01, momentum 0.9 and batches of
    64. The claim holds if (1) in every seed the test accuracy on the edge is by 0.3 or more above that in the ordered
    and in the chaotic phase, (2) the mean correlation of 32 pairs of digits in one wide tanh network is within 0.05 of
    the kernel's on average over 30 layers, (3) after 30 layers the kernel's correlation of these pairs is nearer to 1
    for ReLU than for tanh, both on their edges, and (4) the training loss, mean over seeds, ends lower for tanh on its
    edge than for ReLU on its.

    Args:
        seed: the first of the seeds of weights and batches.
        model: not used: the experiment trains its own networks.
        quick: one seed, width 64 and 90 steps instead of five, 200 and 300; correlations at width 300, not 1000.

    Raises:
        InputError: a model is given.
        MissingExtraError: scikit-learn is not installed.
    """
    if model is not None:
        raise InputError("this experiment trains its own networks; use ac.signal.eoc_init_ for yours")
    seeds = range(seed, seed + (1 if quick else 5))
    width, steps, wide = (64, 90, 300) if quick else (200, 300, 1000)
    train, test = (ac.world.digits.load(split) for split in ("train", "test"))
    pixels = train.images.flatten(1)
    shift, scale = pixels.mean(), pixels.std()
    data = [((d.images.flatten(1) - shift) / scale, d.labels) for d in (train, test)]
    runs = {name: [_trained("tanh", phase, width, steps, s, data) for s in seeds] for name, phase in PHASES.items()}
    runs["ReLU edge"] = [_trained("relu", (0.0, None), width, steps, s, data) for s in seeds]
    measured: dict[str, Any] = {}
    for name, found in runs.items():
        measured[f"{name}: train loss"] = float(np.mean([loss for loss, _ in found]))
        measured[f"{name}: test accuracy"] = float(np.mean([right for _, right in found]))
    followed = _followed(data[0][0], wide, seed)
    gap = float(abs(followed["measured tanh"] - followed["theory tanh"]).mean())
    last = followed.isel(layer=-1)
    measured["mean distance of correlations from theory"] = gap
    measured |= {f"1 - c after {DEPTH} layers, {phi}": float(1 - last[f"theory {phi}"]) for phi in ("tanh", "relu")}
    accuracy = {name: np.array([right for _, right in found]) for name, found in runs.items()}
    parts = {
        "trains on the edge only": bool(
            all((accuracy["edge"] - accuracy[other] >= BETTER).all() for other in ("ordered", "chaotic"))
        ),
        "correlations follow the theory": gap <= FOLLOWS,
        "tanh keeps inputs apart longer": float(last["theory relu"]) > float(last["theory tanh"]),
        "tanh trains to a lower loss": measured["edge: train loss"] < measured["ReLU edge: train loss"],
    }
    hints = {"plot": {"variables": list(followed.data_vars), "ylabel": "correlation of two digits"}}
    record = ac.core.provenance.provenance(seed=seed, width=wide, depth=DEPTH)
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "The paper trains on MNIST and CIFAR-10 at depths up to 200; here are 1197 digits of 8 x 8 pixels, and "
            "few steps."
        ),
        result=ac.Result(followed.assign_attrs(hints), "edge_of_chaos", PAPER.slug, record),
        settings={"seeds": list(seeds), "depth": DEPTH, "width": width, "steps": steps, "wide": wide},
    )


def _network(phi: str, phase: tuple[float, float | None], inputs: int, width: int, classes: int, seed: int) -> Any:
    activation = nn.Tanh if phi == "tanh" else nn.ReLU
    layers: list[nn.Module] = [nn.Linear(inputs, width)]
    for i in range(DEPTH - 1):
        layers += [activation(), nn.Linear(width, width if i < DEPTH - 2 else classes)]
    net = nn.Sequential(*layers)
    random = torch.Generator().manual_seed(seed)
    sb, sw = phase
    if sw is None:
        ac.signal.eoc_init_(net, activation(), sb, generator=random)
    else:
        ac.signal.pseudo_iid_init_(net, "iid", sw, sb, generator=random)
    return net


def _trained(
    phi: str,
    phase: tuple[float, float | None],
    width: int,
    steps: int,
    seed: int,
    data: list[tuple[Tensor, Tensor]],
) -> tuple[float, float]:
    """Training loss and test accuracy at the end."""
    (x, y), (x_test, y_test) = data
    net = _network(phi, phase, x.shape[1], width, 10, seed)
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=random)
        loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        # A network of the chaotic phase may have left float32.
        final = nn.functional.cross_entropy(net(x), y).nan_to_num(nan=1e3, posinf=1e3).clamp(max=1e3)
        right = (net(x_test).argmax(1) == y_test).float().mean()
    return float(final), float(right)


def _followed(x: Tensor, width: int, seed: int) -> xr.Dataset:
    """Correlations of 32 pairs by layer: measured in one wide network, and by the kernel, for tanh and ReLU."""
    a, b = x[:32], x[32:64]
    net = _network("tanh", (SB, None), x.shape[1], width, width, seed)
    found = ac.signal.measure_propagation(net, a, b)
    out = {"measured tanh": ("layer", found["c"].values)}
    for name, phi, sb in (("tanh", torch.tanh, SB), ("relu", torch.relu, 0.0)):
        kernel = ac.signal.NNGPKernel(phi, DEPTH, ac.signal.EdgeOfChaos(phi).point(sb).sw, sb)
        k = kernel.layers(torch.cat([a, b]).double())
        i, j = torch.arange(32), torch.arange(32, 64)
        cosine = k[:, i, j] / (k[:, i, i] * k[:, j, j]).sqrt()
        out[f"theory {name}"] = ("layer", cosine.mean(1).numpy())
    return xr.Dataset(out, {"layer": np.arange(1, DEPTH + 1)})
