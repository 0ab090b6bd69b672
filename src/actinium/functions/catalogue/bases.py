"""Polynomials, rational functions, kernels, splines and small networks with learnt coefficients."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from actinium.functions.registry import INF, Properties, row, trainable
from actinium.functions.units.basis_units import PolynomialUnit
from actinium.functions.units.kernel_units import KernelUnit
from actinium.functions.units.network_units import ActivationEnsemble, VariableUnit
from actinium.functions.units.rational_units import EnhancedRational
from actinium.functions.units.spline_units import BSplineEdge, CubicSpline, LinearSpline

__all__ = ["FAMILY", "ROWS"]

FAMILY = "blending, basis expansion, splines, rational"


def _rational(
    x: Tensor,
    a0: Tensor | float, a1: Tensor | float, a2: Tensor | float, a3: Tensor | float,
    b0: Tensor | float, b1: Tensor | float, b2: Tensor | float,
) -> Tensor:  # fmt: skip
    """A cubic over a square; beyond 1 in powers of 1 / x, which do not overflow."""
    near = x.clamp(-1.0, 1.0)
    u = 1 / torch.where(x.abs() > 1, x, 1.0)
    inner = (a0 + near * (a1 + near * (a2 + near * a3))) / (b0 + near * (b1 + near * b2))
    outer = x * ((a3 + u * (a2 + u * (a1 + u * a0))) / (b2 + u * (b1 + u * b0)))
    return torch.where(x.abs() > 1, outer, inner)


LEARNT: dict[str, Any] = {"kind": "trainable"}
FITTED = {"a0": 0.0218, "a1": 0.5, "a2": 1.5957, "a3": 1.1915, "b0": 1.0, "b1": 0.0, "b2": 2.383}

ROWS = (
    row(
        "SLAF", r"\sum_{j<k}a_j x^j", None, "Goyal 2019", module=partial(PolynomialUnit, basis="power"), **LEARNT,
        aliases=("power basis",), note="Options: degree (k - 1 = 5), start. Starts near ReLU.",
    ),
    row(
        "Chebyshev", r"\sum_j a_j T_j(\tanh x)", None, "Deepthi 2023",
        module=partial(PolynomialUnit, basis="chebyshev", degree=3, squash=True), **LEARNT, aliases=("ChPAF",),
        note="Options: degree, squash, start. Starts near ReLU.",
    ),
    row(
        "Legendre", r"\sum_j a_j P_j(x)", None, "Venkatappareddy 2021",
        module=partial(PolynomialUnit, basis="legendre", degree=3), **LEARNT, aliases=("LPAF",),
        note="Options: degree, squash, start. Starts near ReLU.",
    ),
    row(
        "Hermite", r"\sum_j a_j\mathrm{He}_j(x)/\sqrt{j!}", None, "Lokhande 2020",
        module=partial(PolynomialUnit, basis="hermite", degree=5), **LEARNT, aliases=("HPAF",),
        note="Options: degree, squash, start. Starts with the Hermite coefficients of ReLU.",
    ),
    row(
        "Rational", r"\frac{a_0+a_1x+a_2x^2+a_3x^3}{b_0+b_1x+b_2x^2}", _rational, "Boullé 2020",
        Properties((-INF, INF), (-INF, INF), INF, False, 1.149542, 0.5), {k: trainable(v) for k, v in FITTED.items()},
        aliases=("rational (3,2)",), note="Near ReLU on [-1, 1]. Training may bring a pole; ERA rational has none.",
    ),
    row(
        "ERA rational", r"vx+w+\sum_k\frac{c_kx+d_k}{(x-a_k)^2+b_k^2+\epsilon}", None, "Trimmel 2022",
        module=EnhancedRational, **LEARNT, aliases=("enhanced rational",), confidence="b",
        note="Options: n (2 for degree 5/4), eps, start. Starts near swish.",
    ),
    row(
        "KAF", r"\sum_d a_d e^{-g(x-d)^2},\ g=\frac{1}{6\Delta^2}", None, "Scardapane 2019", module=KernelUnit,
        **LEARNT, aliases=("kernel activation",), note="Options: points, reach, start, ridge. Heights are drawn.",
    ),
    row(
        "Cubic spline", r"\text{Catmull-Rom spline through }(x_i,q_i)", None, "Vecci 1998", module=CubicSpline,
        **LEARNT, aliases=("SAF",), note="Options: step, reach, start.",
    ),
    row(
        "B-spline", r"w_b\,\mathrm{SiLU}(x)+w_s\sum_i c_iB_i(x)", None, "Liu 2024", module=BSplineEdge, **LEARNT,
        aliases=("KAN edge",), note="Options: grid, order, reach, noise. Coefficients are drawn.",
    ),
    row(
        "Linear deep spline", r"\text{linear spline through }(x_i,c_i)", None, "Bohra 2020", module=LinearSpline,
        **LEARNT,
        note="Options: knots, reach, start. Add its tv2() to the loss.",
    ),
    row(
        "VAF", r"\sum_k b_k\max(0,a_kx+c_k)+d", None, "Apicella 2019", module=VariableUnit, **LEARNT,
        aliases=("adaptive network-in-network",), note="Option: k. Weights are drawn.",
    ),
    row(
        "Activation ensemble", r"\sum_j a_j\left(\frac{h_j(x)-\min_j}{\max_j-\min_j+\epsilon}\eta_j+\delta_j\right)",
        None,
        "Klabjan 2019", module=ActivationEnsemble, **LEARNT, arity="channels",
        note="Options: pool, momentum, eps. Ends are those of the batch; in evaluation, their running means.",
    ),
    row(
        "Derf", r"g\,\mathrm{erf}(ax+s)+b", lambda x, a, s, g, b: g * torch.erf(a * x + s) + b, "2025",
        Properties((-1, 1), (-1, 1), INF, True, 0.564190, 0.564190),
        {"a": trainable(0.5), "s": trainable(0.0), "g": trainable(1.0), "b": trainable(0.0)}, confidence="b",
    ),
)  # fmt: skip
