"""Sun, Wu et al., 2024: activation functions corrected so that the entropy of their output falls."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    81,
    claim=(
        "Of all functions with given bounds one has the highest entropy of its output, and is the worst; a correction "
        "away from it lowers the entropy; and CRReLU, ReLU with the correction for normal inputs, gives better results "
        "than ReLU and its other corrections."
    ),
)
CLAIMED = (
    "A worst activation function with boundary conditions exists; CRReLU is better than ReLU, PReLU, LeakyReLU, ELU, "
    "CELU, GELU, Mish and Swish in vision transformers on CIFAR-10, CIFAR-100 and ImageNet-1K."
)
RIVALS = ("ReLU", "PReLU", "LeakyReLU", "ELU", "CELU", "GELU", "Mish", "SiLU")
FEW = ("ReLU", "ELU", "GELU")
CLEAR, DEPTH = 0.05, 3
STEPS = (0.0, 0.01, 0.1)


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Measure entropies for standard normal inputs, correct ReLU's half line, and train CRReLU and others on digits.

    The claim holds if (1) the distribution function has a higher output entropy than sigmoid, scaled sigmoid and tanh,
    scaled to 0..1, and its own correction is 0 to 1e-6; (2) the correction of ReLU on x > 0 lowers the entropy, more
    so for a longer step; and (3) CRReLU's mean test accuracy is above that of every other function, each time with
    p < 0.05 (paired t-test over seeds, Holm's correction). The learnt factors are reported beside it.

    Args:
        seed: the first of the seeds.
        model: not used: the experiment trains its own networks.
        quick: three others, three seeds and 3 epochs instead of eight, ten and 15.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError("this experiment trains its own networks; see `actinium functions compare --task MODEL`")
    f = ac.functions
    worst = f.worst_activation("normal", 0.0, 1.0)
    bounded = {
        "distribution function": worst,
        "sigmoid": torch.sigmoid,
        "sigmoid of 1.702 x": lambda x: torch.sigmoid(1.702 * x),
        "tanh, scaled": lambda x: torch.tanh(x) / 2 + 0.5,
    }
    entropy = {name: f.output_entropy(fn) for name, fn in bounded.items()}
    own = float(np.abs(f.eafo_correction(worst, "normal", torch.linspace(-5, 5, 2001)).eta).max())
    relu = f.eafo_correction(lambda x: x * 1.0, "half-normal", torch.linspace(0, 8, 4001))
    falls = [f.output_entropy(relu.f_new(eps), "half-normal") for eps in STEPS]
    names = ["CRReLU", *(FEW if quick else RIVALS)]
    seeds, epochs = (range(seed, seed + 3), 3) if quick else (range(seed, seed + 10), 15)
    held: list[Any] = []

    def crrelu() -> torch.nn.Module:
        held.append(f.get("CRReLU"))
        return held[-1]

    makers = {n: (lambda n=n: f.get(n)) for n in names} | {"CRReLU": crrelu}
    found = f.compare_activations(makers, "digits", seeds, epochs=epochs, depth=DEPTH)
    others = found.data.isel(activation=slice(1, None))
    # Before them stand modules that were made to see whether they can be.
    factors = [float(m.e.detach()) for m in held[-DEPTH * len(seeds) :]]
    parts = {
        "the distribution function has the highest entropy, and no correction": all(
            entropy["distribution function"] > h for n, h in entropy.items() if n != "distribution function"
        )
        and own < 1e-6,
        "the correction of ReLU's half line lowers the entropy": falls[0] > falls[1] > falls[2],
        "CRReLU is better than every other function (p < 0.05)": bool(
            ((others["difference"] < 0) & (others["p_holm"] < CLEAR)).all()
        ),
    }
    measured: dict[str, Any] = {f"entropy (nats), {n}": h for n, h in entropy.items()}
    measured |= {"entropy (nats), softplus": f.output_entropy(torch.nn.functional.softplus)}
    measured |= {"entropy (nats), CRReLU on x > 0": f.output_entropy(lambda x: _crrelu(x, 0.01), "half-normal")}
    measured |= {f"entropy (nats), ReLU on x > 0, step {e:g}": h for e, h in zip(STEPS, falls, strict=True)}
    measured |= {"largest admissible step": relu.largest_eps, "largest correction of the distribution function": own}
    measured |= {f"{n}: accuracy": float(m) for n, m in zip(names, found["mean"].values, strict=True)}
    measured |= {f"{n}: p against CRReLU": float(p) for n, p in zip(names[1:], others["p_holm"].values, strict=True)}
    measured |= {"learnt factor, least": min(factors), "learnt factor, greatest": max(factors)}
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "A multilayer perceptron of three layers of 64 on 8 x 8 digits, not a vision transformer. The correction "
            "moves the inverse by +eps eta, which is ReLU minus the bump; the published CRReLU starts at ReLU plus it, "
            "whose entropy on x > 0 is higher than ReLU's, and may learn its sign."
        ),
        result=found,
        settings={"seeds": list(seeds), "epochs": epochs, "clear": CLEAR},
    )


def _crrelu(x: torch.Tensor, e: float) -> torch.Tensor:
    return ac.functions.functional("CRReLU")(x, e=e)
