"""Shah and Youngblood, 2024: smooth activations keep gradients right where values are rounded and noisy."""

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
    17,
    claim=(
        "Near 0, rounding and noise of the input change the derivative of ReLU a hundred times more than that of GELU, "
        "less and less on the way from ReLU to GELU; networks of noisy few-bit layers are more accurate with GELU."
    ),
)
CLAIMED = (
    "Gradients of ReLU err about 100 times more than those of GELU in quantised noisy environments, and convolutional, "
    "linear and transformer networks with GELU or SiLU are more resilient (CIFAR-10 and CIFAR-100)."
)
FUNCTIONS = ("ReLU", "LeakyReLU", "GELU", "SiLU", "Mish", "ELU")
# (levels per unit, standard deviation of the noise).
SETTINGS = ((15, None), (15, 0.02), (7, 0.05))
STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
TIMES, PASSES, LEVELS, STD = 100.0, 5, 4, 0.19


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Measure errors of derivatives for inputs in -0.02..0.02, and train networks of noisy layers on digits.

    The claim holds if (1) the mean squared error of ReLU's derivative is 100 times GELU's or more with 15 levels per
    unit, without noise and with noise of 0.02, and with 7 levels and noise of 0.05, (2) with noise the error falls at
    each step of i = 0, 0.25, 0.5, 0.75, 1 from ReLU to GELU, and (3) the test accuracy of networks of four hidden
    layers (input and output of each linear map with 4 levels per unit and noise of 0.19) is higher with GELU than with
    ReLU: Student's 95 % interval of the paired differences over seeds is above 0.

    Args:
        seed: the first of the seeds.
        model: not used: the experiment trains its own networks.
        quick: two seeds and 8 epochs of ReLU and GELU, instead of five and 15 of all five steps.

    Raises:
        InputError: a model is given.
        MissingExtraError: scikit-learn is not installed.
    """
    if model is not None:
        raise InputError("this experiment trains its own networks; use ac.functions.inject_noise for yours")
    n = 20_000 if quick else 100_000
    errors = ac.functions.gradient_error
    table = {(f, s): errors(f, s[0], std=s[1], n=n, seed=seed).data for f in FUNCTIONS for s in SETTINGS}
    way = [
        float(errors(ac.functions.InterpolatedActivation(i), 15, std=0.02, n=n, seed=seed).data["mean_sq"])
        for i in STEPS
    ]
    measured: dict[str, Any] = {
        f"{f}: squared error, 15 levels": float(table[f, SETTINGS[0]]["mean_sq"]) for f in FUNCTIONS
    }
    ratios = []
    for s in SETTINGS:
        name = f"{s[0]} levels, noise {s[1] or 0:g}"
        for kind in ("mean_sq", "mean_abs"):
            measured[f"ReLU over GELU, {kind}, {name}"] = float(table["ReLU", s][kind] / table["GELU", s][kind])
        ratios.append(measured[f"ReLU over GELU, mean_sq, {name}"])
    measured |= {f"i = {i:g}: squared error with noise": e for i, e in zip(STEPS, way, strict=True)}
    seeds = range(seed, seed + (2 if quick else 5))
    epochs, tried = (8, (0.0, 1.0)) if quick else (15, STEPS)
    accuracy = {i: np.array([_accuracy(i, s, epochs) for s in seeds]) for i in tried}
    measured |= {f"i = {i:g}: accuracy in noise": float(a.mean()) for i, a in accuracy.items()}
    low, high = ac.functions.t_interval(accuracy[1.0] - accuracy[0.0])
    measured |= {"accuracy of GELU above ReLU's, low": low, "accuracy of GELU above ReLU's, high": high}
    parts = {
        "ReLU errs a hundred times more": min(ratios) >= TIMES,
        "the error falls with each step towards GELU": bool((np.diff(way) < 0).all()),
        "networks with GELU are more accurate": low > 0,
    }
    data = xr.Dataset(
        {
            f"{p} levels, noise {s or 0:g}": ("function", [float(table[f, (p, s)]["mean_sq"]) for f in FUNCTIONS])
            for p, s in SETTINGS
        },
        {"function": list(FUNCTIONS)},
        {"plot": {"yscale": "log", "ylabel": "squared error of the derivative"}},
    )
    record = ac.core.provenance.provenance(seed=seed, n=n)
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Multilayer perceptrons on 8 x 8 digits, not convolutional networks on CIFAR; accuracies are means of five "
            "noisy evaluations. How many times larger the error is depends on the metric, the range of inputs and the "
            "noise: absolute errors differ less than squared ones. Weights are exact here: a first run, in which they "
            "were rounded too (`AnalogLinear`), did not learn, as all weights as small as the initial ones become 0."
        ),
        result=ac.Result(data, "gradient_error", PAPER.slug, record),
        settings={"seeds": list(seeds), "epochs": epochs, "levels": LEVELS, "noise": STD, "inputs": n},
    )


def _accuracy(i: float, seed: int, epochs: int, width: int = 64, depth: int = 4) -> float:
    """Mean test accuracy over noisy evaluations of one trained network."""
    train, test = (ac.world.digits.load(split) for split in ("train", "test"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(64, width)]
        for k in range(depth):
            layers += [ac.functions.InterpolatedActivation(i), nn.Linear(width, 10 if k == depth - 1 else width)]
        net = nn.Sequential(*layers)
        optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
        x, y = train.images.flatten(1), train.labels
        levels, noise = ac.functions.ReducePrecision(LEVELS), ac.functions.GaussianNoise(std=STD, precision=LEVELS)
        enter, leave = nn.Sequential(nn.Hardtanh(), levels, noise), nn.Sequential(noise, nn.Hardtanh(), levels)
        linear = [str(k) for k in range(0, len(layers), 2)]
        with ac.functions.inject_noise(net, linear, act_noise=leave, input_noise=enter):
            for _ in range(epochs):
                for rows in torch.randperm(len(x)).split(64):
                    loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
            return float(np.mean([_right(net, test.images.flatten(1), test.labels) for _ in range(PASSES)]))


@torch.no_grad()
def _right(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((net(x).argmax(1) == y).double().mean())
