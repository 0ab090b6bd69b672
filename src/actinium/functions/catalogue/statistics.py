"""Functions of statistics of their inputs, output activations with a bound on the entropy, and their like."""

from __future__ import annotations

import math

from torch import Tensor

from actinium.functions.gates import gelu
from actinium.functions.layers.divisive_normalisation import GDN
from actinium.functions.layers.entropy_constraint import ERASoftmax
from actinium.functions.registry import INF, Properties, fixed, row
from actinium.functions.stable import pos
from actinium.functions.units.variance_unit import VeLU

__all__ = ["FAMILY", "ROWS"]

FAMILY = "statistics and bounds"


def _between(x: Tensor, i: Tensor | float) -> Tensor:
    # GELU minus ReLU is GELU of -|x|, which is 0 far out on both sides.
    return pos(x) + i * gelu(-x.abs())


# The least value is half of GELU's, and the largest slope the mean of 1 and GELU's largest.
HALF = Properties((-0.0849857, INF), (0, INF), 0, False, 1.0645, math.nan)

ROWS = (
    row("Interpolated ReLU-GELU", r"(1 - i) \max(x, 0) + i x \Phi(x)", _between, "Shah 2024", HALF,
        {"i": fixed(0.5, 0.0, 1.0)}, note="InterpolatedActivation has SiLU, a scale, a slope below 0 and a gate."),
    row("VeLU", r"\lambda x \sigma(\alpha(\arctan\beta_1x+\arcsin\beta_2x))(1+\gamma\tanh(\mu\,\mathrm{std}(x)))", None,
        "Shakarami 2025", module=VeLU, kind="trainable", arity="channels", confidence="b",
        note="Options: trig, ot, stat_dims, momentum, ...; collect_penalties gives what is added to a loss."),
    row("ERA softmax",
        r"\kappa^{-1}(m+\frac{e^{H_0-1}-Dm}{D-1}(1-\operatorname{softmax}(z)_j)),\ m=\frac{\ln\tau}{\tau}", None,
        "Kang 2025", module=ERASoftmax, kind="hyper", arity="vector",
        note="New logits, whose softmax has an entropy above min_entropy; options: min_entropy, tau, inverse."),
    row("GDN", r"\frac{z_i}{(\beta_i+\sum_j\gamma_{ij}|z_j|^{\alpha})^{\epsilon}}", None, "Balle 2015", module=GDN,
        kind="trainable", arity="channels", aliases=("generalised divisive normalisation",),
        note="get('gdn', channels=...); with inverse=True the layer that undoes it approximately (IGDN)."),
)  # fmt: skip
