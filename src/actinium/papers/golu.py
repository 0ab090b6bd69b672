"""Das et al., 2025: the gate of GoLU lowers the variance of activations, smooths losses and spreads weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    93,
    claim=(
        "GoLU gives activations of lower variance than ReLU, GELU, Swish and Mish; trained networks with it have "
        "losses that are smoother under noise on the weights, weights that are spread more widely, and better test "
        "results."
    ),
)
CLAIMED = (
    "ImageNet top-1 accuracy with GoLU, GELU and ReLU: ResNet-18 70.76, 70.66, 69.74; ResNet-50 76.63, 76.07, 75.44; "
    "ViT-B/16 80.72, 79.39, 80.06; perplexity of GPT2-S on OpenWebText 17.297, 17.525, 17.845; lower variance of "
    "activations, smoother loss landscapes and a broader distribution of weights than other gated functions."
)
NAMES = ("GoLU", "GELU", "SiLU", "ReLU")
GATED = ("GELU", "SiLU", "Mish")
CLEAR, CLOSE = 0.05, 0.01


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Variance, noise on weights, spread of weights and accuracy of the same perceptron with GoLU and other functions.

    The claim holds if (1) the variance of the function of a standard normal is lowest for GoLU among it, ReLU, GELU,
    SiLU and Mish, and so is the slope at 0 among the gated ones, (2) with the same random weights the mean variance of
    hidden activations is in the order GoLU < SiLU < GELU for every seed, (3) after training it is lower with GoLU than
    with each other function, (4) the loss with noise on the weights is less rough, (5) the standard deviation of the
    weights is larger and (6) test accuracy is higher; parts 3 to 6 each time with p < 0.05 against GELU, SiLU and
    ReLU (Welch's test over runs).

    Args:
        seed: the first of the seeds.
        model: not used: the experiment trains its own networks.
        quick: 3 runs of 5 epochs instead of 10 of 15.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError("this experiment trains its own networks; for yours use ac.functions.latent_variance")
    runs, epochs = (3, 5) if quick else (10, 15)
    profile = ac.functions.gate_slope_profile(["GoLU", *GATED, "ReLU"])
    variance = {str(n): float(v) for n, v in zip(profile["function"].values, profile["variance"].values, strict=True)}
    sampled = _sampled(list(variance), seed)
    slope = {n: float(profile["slope_at_zero"].sel(function=n)) for n in ("GoLU", *GATED)}
    rows: dict[str, dict[str, list[float]]] = {}
    on = ac.functions.task("digits", epochs=epochs)
    for name in NAMES:
        for s in range(seed, seed + runs):
            for what, value in _one(name, on, s).items():
                rows.setdefault(what, {}).setdefault(name, []).append(value)
    measured: dict[str, Any] = {f"{n}: variance of a standard normal": v for n, v in variance.items()}
    measured["largest relative difference from a sample's variance"] = max(
        abs(sampled[n] / variance[n] - 1) for n in variance
    )
    measured |= {f"{n}: slope at 0": v for n, v in slope.items()}
    for what, table in rows.items():
        measured |= {f"{n}: {what}": float(np.mean(v)) for n, v in table.items()}
    wanted = {"latent variance": -1, "roughness under noise": -1, "deviation of weights": 1, "accuracy": 1}
    tests = {
        what: {n: ac.functions.welch_comparison(rows[what]["GoLU"], rows[what][n]) for n in NAMES[1:]}
        for what in wanted
    }
    for what, against in tests.items():
        measured |= {f"{what}: p of GoLU against {n}": test["p"] for n, test in against.items()}
    before = {n: np.array(v) for n, v in rows["latent variance before training"].items()}
    parts = {
        "lowest variance of a standard normal, lowest slope at 0": min(variance, key=variance.__getitem__) == "GoLU"
        and min(slope, key=slope.__getitem__) == "GoLU"
        and measured["largest relative difference from a sample's variance"] < CLOSE,
        "variance with the same random weights: GoLU < SiLU < GELU": bool(
            (before["GoLU"] < before["SiLU"]).all() and (before["SiLU"] < before["GELU"]).all()
        ),
        "lower variance after training": _clear(tests["latent variance"], wanted["latent variance"]),
        "smoother loss under noise": _clear(tests["roughness under noise"], wanted["roughness under noise"]),
        "weights spread more widely": _clear(tests["deviation of weights"], wanted["deviation of weights"]),
        "higher accuracy": _clear(tests["accuracy"], wanted["accuracy"]),
    }
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "A multilayer perceptron of three layers of 64 on 8 x 8 digits, trained with Adam, not ImageNet models and "
            "language models. Latent variance is the mean over hidden sites and channels. Noise is scaled to the "
            "length of each filter, from 0 to half of it, along 10 directions; roughness is the mean absolute second "
            "difference of the loss. Deviations are means over weight matrices. The settings of these measurements "
            "are ours. Without normalisation training can undo what a function does to the scale of activations."
        ),
        result=_as_result(rows),
        settings={"runs": runs, "epochs": epochs, "first seed": seed, "clear": CLEAR},
    )


def _sampled(names: list[str], seed: int) -> dict[str, float]:
    """Variance of each function over a sample of a standard normal."""
    z = torch.randn(1_000_000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {name: float(ac.functions.functional(name)(z).var()) for name in names}


def _one(name: str, on: Any, seed: int) -> dict[str, float]:
    """What one run shows."""
    start, net = (ac.functions.task_network(name, on, seed, trained=trained) for trained in (False, True))
    noise = ac.functions.weight_noise_landscape(
        net, lambda net, data: on.loss(net(data[0]), data[1]), on.test, seed=seed
    )
    spread = ac.functions.weight_distribution(net)
    with torch.no_grad():
        accuracy = on.score(net(on.test[0]), on.test[1])
    return {
        "latent variance before training": _variance(start, on),
        "latent variance": _variance(net, on),
        "roughness under noise": float(noise["roughness"]),
        "deviation of weights": float(spread["std"].mean()),
        "entropy of weights": float(spread["entropy"].mean()),
        "accuracy": accuracy,
    }


def _variance(net: Any, on: Any) -> float:
    places = [f"module:{i}" for i in range(1, len(net), 2)]
    return float(ac.functions.latent_variance(net, on.test[0], places)["mean_var"].mean())


def _clear(tests: dict[str, dict[str, float]], sign: int) -> bool:
    """Whether GoLU differs from each other function in a direction, beyond chance."""
    return all(sign * test["difference"] > 0 and test["p"] < CLEAR for test in tests.values())


def _as_result(rows: dict[str, dict[str, list[float]]]) -> ac.Result:
    data = xr.Dataset(
        {what: ("activation", [np.mean(table[n]) for n in NAMES]) for what, table in rows.items()},
        {"activation": list(NAMES)},
        {
            "plot": {
                "kind": "bar",
                "variables": ["latent variance before training", "latent variance"],
                "ylabel": "mean variance of hidden activations",
            }
        },
    )
    return ac.Result(data, "latent_variance", "golu")
