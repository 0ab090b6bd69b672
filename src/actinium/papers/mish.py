"""Misra, 2020: Mish makes landscapes smooth, and networks better and deeper."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    109,
    claim=(
        "Networks with Mish have smoother outputs than with ReLU, and smoother losses around trained weights than with "
        "ReLU or Swish; they reach better test results, and keep them in networks so deep that those of ReLU and Swish "
        "fall."
    ),
)
CLAIMED = (
    "ImageNet top-1 accuracy of a ResNet-50 about 1 point above ReLU's, average precision (50) of YOLOv4 on COCO 2.1 "
    "points above that of leaky ReLU; over 23 runs of a network on CIFAR-10 the highest mean; on MNIST the accuracy of "
    "ReLU and Swish falls sharply beyond 15 layers, that of Mish does not; output and loss landscapes are smoother."
)
NAMES = ("Mish", "ReLU", "SiLU")
SMOOTHER, CLEAR = 2.0, 0.05
DEEP = 15
BENDS, ACCURACY, DEEPER = "roughness of losses", "accuracy", f"accuracy with {DEEP} layers"


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Landscapes of random and trained networks, and accuracies of shallow and deep ones, with Mish, ReLU and Swish.

    The claim holds if (1) over seeds the mean roughness of the output of random networks (5 layers of 64, 64 x 64
    points in [-4, 4]^2) is more than twice as large with ReLU as with Mish, (2) the loss of trained networks (3 layers
    of 64, digits) is less rough around their weights with Mish than with both others, (3) their test accuracy is
    higher, and (4) so is that of networks of 15 layers with batch normalisation and dropout; parts 2 to 4 each time
    with p < 0.05 against both (Welch's test over runs, as in the paper).

    Args:
        seed: the first of the seeds.
        model: not used: the experiment trains its own networks.
        quick: 3 runs of 5 epochs and 5 random networks instead of 10 of 15 and 20, and no deep networks.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError("this experiment trains its own networks; for yours use ac.functions.loss_landscape")
    runs, epochs, views = (3, 5, 5) if quick else (10, 15, 20)
    outputs = {
        name: [float(ac.functions.output_landscape(name, seed=s)["roughness"]) for s in range(seed, seed + views)]
        for name in NAMES
    }
    found = {name: [_one(name, epochs, s, not quick) for s in range(seed, seed + runs)] for name in NAMES}
    tables = {what: {n: [run[what] for run in found[n]] for n in NAMES} for what in found["Mish"][0]}
    measured: dict[str, Any] = {f"{n}: roughness of outputs": float(np.mean(v)) for n, v in outputs.items()}
    for what, table in tables.items():
        measured |= {f"{n}: {what}": float(np.mean(v)) for n, v in table.items()}
    ratio = float(np.mean(outputs["ReLU"]) / np.mean(outputs["Mish"]))
    measured["roughness of outputs: ReLU over Mish"] = ratio
    tests = {
        what: {n: ac.functions.welch_comparison(table["Mish"], table[n]) for n in NAMES[1:]}
        for what, table in tables.items()
    }
    for what, against in tests.items():
        measured |= {f"{what}: p of Mish against {n}": test["p"] for n, test in against.items()}
    parts = {
        "outputs of random networks are twice as rough with ReLU": ratio > SMOOTHER,
        "losses around trained weights are less rough": _clear(tests[BENDS], -1),
        "accuracy is higher": _clear(tests[ACCURACY], 1),
        f"accuracy with {DEEP} layers is higher": None if quick else _clear(tests[DEEPER], 1),
    }
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "8 x 8 digits and multilayer perceptrons trained with Adam, not residual networks on CIFAR-10 or ImageNet. "
            "The deep networks follow the author's notebook (batch normalisation, the function, dropout of 0.25 after "
            "each layer) with 64 units instead of 500 and without its convolutions; the notebook uses plain gradient "
            "descent. Swish is SiLU. Roughness is ours: the paper shows pictures. It is the mean absolute Laplacian of "
            "a standardised output, and the mean absolute second difference of the loss over a plane of "
            "filter-normalised directions. The quick run first had two deep networks of each function; after its 5 "
            "epochs they were near chance, so they were left to the full run. Noise on inputs, initialisers and "
            "optimisers are not examined."
        ),
        result=_as_result(outputs, tables),
        settings={"runs": runs, "epochs": epochs, "random networks": views, "first seed": seed, "clear": CLEAR},
    )


def _deep(epochs: int) -> Any:
    """The digits task with a network of 15 normalised layers with dropout."""
    plain = ac.functions.task("digits", epochs=epochs)

    def build(activation: Any) -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(DEEP):
            layers += [nn.Linear(64, 64), nn.BatchNorm1d(64), activation(), nn.Dropout(0.25)]
        return nn.Sequential(*layers, nn.Linear(64, 10))

    return dataclasses.replace(plain, name=f"digits, {DEEP} layers", build=build, batch_size=128)


def _one(name: str, epochs: int, seed: int, with_deep: bool) -> dict[str, float]:
    """What one run shows."""
    on = ac.functions.task("digits", epochs=epochs)
    net = ac.functions.task_network(name, on, seed)
    plane = ac.functions.loss_landscape(
        net, lambda net, data: on.loss(net(data[0]), data[1]), on.test, resolution=11, seed=seed
    )
    found = {BENDS: float(plane["roughness"]), ACCURACY: _score(net, on)}
    if with_deep:
        deep = _deep(epochs)
        found[DEEPER] = _score(ac.functions.task_network(name, deep, seed), deep)
    return found


def _score(net: nn.Module, on: Any) -> float:
    with torch.no_grad():
        return float(on.score(net(on.test[0]), on.test[1]))


def _clear(tests: dict[str, dict[str, float]], sign: int) -> bool:
    """Whether Mish differs from each other function in a direction, beyond chance."""
    return all(sign * test["difference"] > 0 and test["p"] < CLEAR for test in tests.values())


def _as_result(outputs: dict[str, list[float]], tables: dict[str, dict[str, list[float]]]) -> ac.Result:
    data = xr.Dataset(
        {
            "roughness of outputs": ("activation", [np.mean(outputs[n]) for n in NAMES]),
            BENDS: ("activation", [np.mean(tables[BENDS][n]) for n in NAMES]),
            ACCURACY: (("activation", "run"), [tables[ACCURACY][n] for n in NAMES]),
        },
        {"activation": list(NAMES)},
        {"plot": {"kind": "bar", "variables": ["roughness of outputs", BENDS], "ylabel": "roughness"}},
    )
    return ac.Result(data, "landscapes", "mish")
