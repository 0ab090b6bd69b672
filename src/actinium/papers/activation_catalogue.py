"""Kunc and Kléma, 2024: four hundred activation functions, many of which were found more than once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

import actinium as ac
from actinium.core.errors import InputError
from actinium.core.provenance import provenance
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    74,
    claim=(
        "Four hundred activation functions have been published, several times more than earlier surveys list, and "
        "many of them are others found again: equal, or so alike that they cannot be told apart in use."
    ),
)
CLAIMED = (
    "400 functions are compiled from three decades, several times more than in earlier surveys, so that they need "
    "not be found again."
)
FAMILY = ("SiLU", "GELU", "Mish", "GoLU", "TanhExp")
SAME, ALIKE, CHANCE = 1e-6, 0.005, 0.85
SHARE = 0.8


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Count the catalogue, look for functions that are equal or alike, and train a small network with each.

    Two functions are equal where their values at 2,001 places in -5..5 differ by 1e-6 at most; a cluster is formed by
    complete linkage on 1 - |correlation| of outputs for standard normal inputs, cut at .005. The claim holds if there
    are 400 names or more, some pair under different names is equal, SiLU, GELU, Mish, GoLU and TanhExp share a
    cluster, and four in five functions reach an accuracy of .85 on digits (one layer of 64, three epochs).

    Args:
        seed: of the inputs, weights and batches.
        model: not used: the experiment trains its own networks.
        quick: train every ninth function instead of every one.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError("this experiment trains its own networks; see `actinium functions compare --task MODEL`")
    names = ac.functions.list(min_confidence="c")
    curves = [n for n in ac.functions.list(arity="elementwise") if _usual(n)]
    equal = _equal(curves)
    clusters = _clusters(curves, seed)
    trained = curves[seed % 9 :: 9] if quick else curves
    task = ac.functions.task("digits", epochs=3, depth=1)
    found = ac.functions.compare_activations(trained, task, [seed]).data
    accuracy = found["mean"].fillna(0.0).values  # a loss that is not finite has learnt nothing
    learnt = float((accuracy > CHANCE).mean())
    family = {clusters[ac.functions.spec(n).name] for n in FAMILY}
    parts = {
        "400 names or more": len(names) >= 400,
        "some functions under two names are equal": len(equal) > 0,
        "SiLU, GELU, Mish, GoLU and TanhExp share a cluster": len(family) == 1,
        "four in five reach .85 on digits": learnt > SHARE,
    }
    sizes = np.bincount(list(clusters.values()))
    measured: dict[str, Any] = {
        "names": len(names),
        "of them uncertain": len(names) - len(ac.functions.list()),
        "elementwise functions that were compared": len(curves),
        "pairs that are equal": len(equal),
        "equal": "; ".join(f"{a} = {b}" for a, b in equal[:12]),
        "clusters of alike functions": int((sizes > 0).sum()),
        "functions in the largest cluster": int(sizes.max()),
        "functions trained": len(trained),
        "share above .85": learnt,
        "median accuracy": float(np.median(accuracy)),
        "worst": trained[int(accuracy.argmin())],
    }
    order = np.argsort(-accuracy, kind="stable")
    data = xr.Dataset(
        {"accuracy": ("function", accuracy[order])}
        | {k: ("function", found[k].values[order]) for k in ("latent_variance", "dead_units")},
        {"function": [trained[i] for i in order]},
        {"plot": {"kind": "line", "variables": ["accuracy"], "ylabel": "accuracy, digits"}},
    )
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "The catalogue holds the functions whose formula could be reconstructed. Equal functions are counted at "
            "their default parameters; declared aliases do not count. What does not learn are steps, which have no "
            "gradient, even and falling functions, and powers."
        ),
        result=ac.Result(data, "activation_catalogue", PAPER.slug, provenance(seed=seed, functions=len(trained))),
        settings={"seed": seed, "same": SAME, "alike": ALIKE, "accuracy": CHANCE, "share": SHARE},
    )


def _usual(name: str) -> bool:
    """Whether a function is plain and defined on the whole line."""
    spec = ac.functions.spec(name)
    shape = spec.properties
    return spec.function is not None and spec.kind != "stochastic" and shape is not None and math.isinf(shape.domain[1])


def _outputs(names: list[str], x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return np.stack([ac.functions.functional(n)(x).numpy() for n in names])


def _equal(names: list[str]) -> list[tuple[str, str]]:
    """Pairs of names whose functions are equal on -5..5."""
    y = _outputs(names, torch.linspace(-5, 5, 2001, dtype=torch.float64))
    return [
        (names[i], names[j]) for i in range(len(names)) for j in range(i) if float(np.abs(y[i] - y[j]).max()) <= SAME
    ]


def _clusters(names: list[str], seed: int) -> dict[str, int]:
    """Number of the cluster of each function; constant functions have one of their own."""
    y = _outputs(names, torch.randn(4000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    y = y - y.mean(1, keepdims=True)
    size = np.linalg.norm(y, axis=1, keepdims=True)
    y = y / np.where(size > 0, size, 1.0)
    apart = np.clip(1 - np.abs(y @ y.T), 0.0, None)
    np.fill_diagonal(apart, 0.0)
    cut = fcluster(linkage(squareform((apart + apart.T) / 2), "complete"), ALIKE, "distance")
    return dict(zip(names, cut.tolist(), strict=True))
