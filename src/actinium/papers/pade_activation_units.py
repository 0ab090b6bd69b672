"""Molina et al., 2020: rational activation functions that are learned with the weights of a network."""

from __future__ import annotations

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
    106,
    claim=(
        "Padé activation units approximate common activation functions, learn new ones together with the weights, can "
        "increase predictive performance, and let a network be verified."
    ),
)
CLAIMED = (
    "Padé units approximate ReLU, tanh, sigmoid, Swish and others closely; on MNIST, Fashion-MNIST, CIFAR-10 and "
    "ImageNet networks with them are as accurate as the best fixed function or better; their form opens provable "
    "robustness."
)
KNOWN = ("ReLU", "LeakyReLU", "Tanh", "Sigmoid", "GELU", "Swish", "ELU", "Mish")
# Of the card: movement. Set after the fits of single functions were seen, and before anything was trained: the others.
CLOSE, MOVED, TIGHT, CLEAR = 0.01, 0.05, 1e-6, 0.05
START = (3.35583603e-02, 5.05000375e-01, 1.65343934, 2.01001052, 9.31901999e-01, 1.52424124e-01)
X = torch.linspace(-3, 3, 121, dtype=torch.float64)


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Fit Padé units to known functions, and train the same multilayer perceptron on digits with them and with others.

    The claim holds if (1) every fit on [-3, 3] has a root mean square error of 0.01 or less; (2) some coefficient of
    each layer moves by more than 0.05 in every run; (3) the mean accuracy is above ReLU's with p < 0.05 (paired t-test
    over seeds); (4) the exact range of every learned unit on [-3, 3] contains its values at 120001 points and reaches
    no further than 1e-6 beyond them. (3) is not judged in a quick run, which trains too shortly for it.

    Args:
        seed: the first of the seeds.
        model: not used: the experiment trains its own networks.
        quick: one seed and three epochs instead of five and twenty, and fewer known functions.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError("this experiment trains its own networks; give yours PAU with ac.functions.replace")
    fits = {name: ac.functions.fit_rational(name) for name in (KNOWN[:5] if quick else KNOWN)}
    made: list[ac.functions.PAU] = []

    def unit() -> nn.Module:
        made.append(ac.functions.PAU())
        return made[-1]

    others = {} if quick else {name: (lambda name=name: ac.functions.get(name)) for name in KNOWN[1:]}
    seeds = list(range(seed, seed + (1 if quick else 5)))
    epochs = 3 if quick else 20
    found = ac.functions.compare_activations({"ReLU": nn.ReLU, "PAU": unit, **others}, "digits", seeds, epochs=epochs)
    trained = [m for m in made if m.a.grad is not None]
    moves = [float((m.a.detach() - torch.tensor(START)).abs().max()) for m in trained]
    slack = [_slack(m) for m in trained]
    accuracy = dict(zip(found.data["activation"].values.tolist(), found.data["mean"].values.tolist(), strict=True))
    parts: dict[str, bool | None] = {
        "known functions are approximated": max(f.rmse for f in fits.values()) <= CLOSE,
        "the functions are learned": min(moves) > MOVED,
        "more accurate than ReLU": None
        if quick
        else accuracy["PAU"] > accuracy["ReLU"] and float(found["p"].sel(activation="PAU")) < CLEAR,
        "ranges are exact": min(slack) >= -1e-12 and max(slack) <= TIGHT,
    }
    measured: dict[str, Any] = {f"{name}: rmse of the fit": f.rmse for name, f in fits.items()}
    measured |= {f"{name}: accuracy": value for name, value in accuracy.items()}
    measured |= {
        "least movement of a layer's coefficients": min(moves),
        "most": max(moves),
        "furthest that a range reaches beyond the values": max(slack),
    }
    if not quick:
        measured["PAU against ReLU: p"] = float(found["p"].sel(activation="PAU"))
    first = trained[:3]
    measured |= {f"layer {i + 1}: nearest known function": m.nearest(1)[0][0] for i, m in enumerate(first)}
    curves = {f"layer {i + 1}": ("x", m.curve(X).numpy()) for i, m in enumerate(first)}
    curves = {"start": ("x", ac.functions.PAU().curve(X).numpy())} | curves
    drawn = xr.Dataset(curves, {"x": X.numpy()}, {"plot": {"variables": list(curves), "ylabel": "learned function"}})
    settings = {"seeds": seeds, "epochs": epochs, "moved": MOVED, "close": CLOSE}
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "A multilayer perceptron of three layers of 64 on 8 x 8 digits, not VGG on images; version A of the "
            "denominator, degrees 5 over 4, one unit for each layer, Adam with one rate for weights and coefficients. "
            "The bound of the fits was set after single fits were seen. Verification is shown for single units only."
        ),
        result=ac.Result(drawn, "learned Padé units", PAPER.slug, provenance(seed=seed, epochs=epochs)),
        settings=settings,
    )


def _slack(unit: ac.functions.PAU) -> float:
    """How far the exact range on [-3, 3] reaches beyond the values on a fine grid; negative if it misses some."""
    values = unit.curve(torch.linspace(-3, 3, 120001, dtype=torch.float64))
    low, high = unit.value_range(-3, 3)
    gaps = (float(values.min()) - low, high - float(values.max()))
    return min(gaps) if min(gaps) < 0 else float(np.max(gaps))
