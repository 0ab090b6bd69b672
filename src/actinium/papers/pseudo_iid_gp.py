"""Nait Saada et al., 2023: wide networks with orthogonal, low-rank or sparse weights are the same Gaussian process."""

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
    66,
    claim=(
        "Over random tanh networks, the pre-activations of layer 5 tend with width to the Gaussian process of "
        "independent weights when weights are orthogonal, of half rank or zero in three of four blocks, and all four "
        "have the same edge of chaos."
    ),
)
CLAIMED = (
    "Fully connected networks with pseudo-iid weights (low-rank, structured sparse, orthogonal) are in the limit of "
    "width Gaussian processes that depend on the variance of the weights alone, so the edge of chaos can be found for "
    "them; shown for 7 layers, tanh, widths 3, 30 and 300 and 10 000 draws."
)
KINDS: dict[str, dict[str, Any]] = {
    "iid": {},
    "orthogonal": {},
    "low_rank": {"rank": 0.5},
    "structured_sparse": {"blocks": 4},
}
INPUTS, DEPTH, SW, SB = 32, 5, 1.3, 0.2
ERRORS, LEVEL, STEADY = 4.0, 0.01, 0.1


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Draw networks of each kind and width and compare two of their units with the process.

    Two inputs of norm sqrt(32), sw = 1.3, sb = 0.2. The claim holds if, of every kind, (1) the variance of the widest
    layer is within 10 % of the kernel's, or within four standard errors where there are fewer than 600 draws, and the
    covariance of the two inputs within four standard errors, (2) a Kolmogorov-Smirnov test at 1 % against the kernel's
    normal does not reject the widest layer, (3) the distance of two units to independent Gaussians is smaller at the
    largest width than at 8, and (4) the gradient's mean square changes by less than 10 % a layer, geometric mean over
    layers of a wide network of 20 layers at tanh's edge of chaos.

    Args:
        seed: of weights and inputs.
        model: not used: the experiment draws its own networks.
        quick: 150 networks of widths 8 and 64 instead of 600 of 8, 32 and 128; width 128 at the edge instead of 512.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError("this experiment draws its own networks; use ac.signal.gp_convergence_test for yours")
    reps, widths, wide = (150, (8, 64), 128) if quick else (600, (8, 32, 128), 512)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, INPUTS, generator=random, dtype=torch.float64)
    x *= INPUTS**0.5 / x.norm(dim=1, keepdim=True)
    kernel = ac.signal.NNGPKernel(torch.tanh, DEPTH, SW, SB)
    found = {kind: _tested(kind, x, kernel, widths, reps, seed) for kind in KINDS}
    ratio = {kind: _gradient_ratio(kind, wide, seed) for kind in KINDS}
    k = kernel(x).numpy()
    spread = float(k[0, 0] * (2 / (2 * reps)) ** 0.5)
    allowed = 0.1 * float(k[0, 0]) if reps >= 600 else ERRORS * spread
    covariance_spread = float(((k[0, 0] ** 2 + k[0, 1] ** 2) / (2 * reps)) ** 0.5)
    measured: dict[str, Any] = {"kernel: variance": float(k[0, 0]), "kernel: covariance": float(k[0, 1])}
    parts = {"moments": True, "normal": True, "nearer with width": True, "same edge of chaos": True}
    for kind, data in found.items():
        narrow, last = data.isel(width=0), data.isel(width=-1)
        for name in ("variance", "covariance", "excess_kurtosis", "ks_p", "wasserstein"):
            measured[f"{kind}: {name} at {widths[-1]}"] = float(last[name])
        for name in ("excess_kurtosis", "ks_p", "wasserstein"):
            measured[f"{kind}: {name} at {widths[0]}"] = float(narrow[name])
        measured[f"{kind}: gradient ratio"] = ratio[kind]
        close = abs(float(last["variance"] - k[0, 0])) <= allowed
        close &= abs(float(last["covariance"] - k[0, 1])) <= ERRORS * covariance_spread
        parts["moments"] &= close
        parts["normal"] &= float(last["ks_p"]) > LEVEL
        parts["nearer with width"] &= float(last["wasserstein"]) < float(narrow["wasserstein"])
        parts["same edge of chaos"] &= abs(ratio[kind] - 1) < STEADY
    joined = xr.concat(list(found.values()), dim=xr.IndexVariable("kind", list(found)))
    joined.attrs = {"plot": {"variables": ["wasserstein"], "x": "width", "y": "kind"}}
    record = ac.core.provenance.provenance(inputs=x, seed=seed, reps=reps, widths=list(widths))
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            f"With {reps} draws two exact Gaussian units are about {1.25 / reps**0.5:.2f} from their law in the "
            "distance used, so differences below that are noise. Convolutions are not examined."
        ),
        result=ac.Result(joined, "pseudo_iid_gp", PAPER.slug, record),
        settings={"seed": seed, "depth": DEPTH, "sw": SW, "sb": SB, "reps": reps, "widths": list(widths), "wide": wide},
    )


def _network(inputs: int, width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(inputs, width)]
    for _ in range(depth - 1):
        layers += [nn.Tanh(), nn.Linear(width, width)]
    return nn.Sequential(*layers).double()


def _tested(kind: str, x: Tensor, kernel: Any, widths: tuple[int, ...], reps: int, seed: int) -> xr.Dataset:
    def factory(width: int, random: torch.Generator) -> nn.Module:
        net = _network(INPUTS, width, DEPTH)
        ac.signal.pseudo_iid_init_(net, kind, SW, SB, generator=random, **KINDS[kind])
        return net

    return ac.signal.gp_convergence_test(factory, x, kernel, widths=widths, reps=reps, seed=seed).data


def _gradient_ratio(kind: str, width: int, seed: int) -> float:
    """Geometric mean over layers of the growth of the gradient, from inputs at the fixed point of the edge."""
    point = ac.signal.EdgeOfChaos(torch.tanh).point(SB)
    random = torch.Generator().manual_seed(seed)
    net = _network(INPUTS, width, 20)
    ac.signal.pseudo_iid_init_(net, kind, point.sw, SB, generator=random, **KINDS[kind])
    x = torch.randn(64, INPUTS, generator=random, dtype=torch.float64)
    x *= ((point.q - SB**2) / point.sw**2 * INPUTS) ** 0.5 / x.norm(dim=1, keepdim=True)
    found = ac.signal.measure_propagation(net, x[:32], x[32:], seed=seed)
    return float(np.exp(np.log(found["gradient_ratio"].values[:-1]).mean()))
