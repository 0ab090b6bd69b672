"""Functions of fractional order: derivatives of an order a that is learnt."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from actinium.functions.gates import silu
from actinium.functions.registry import INF, Parameter, Properties, fixed, row, trainable
from actinium.functions.stable import finite, floor_at_lowest, gamma, pos, power, sig, softplus

__all__ = ["FAMILY", "ROWS"]

FAMILY = "fractional order"


def _power_rule(x: Tensor, a: Tensor | float) -> Tensor:
    """Derivative of order a of max(0, x): x^(1-a) / Gamma(2-a)."""
    scale = gamma(2 - torch.as_tensor(a, dtype=x.dtype, device=x.device))
    return power(x, 1 - a) / scale


def _frac_prelu(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    return _power_rule(x, a) - b * _power_rule(-x, a)


def _grunwald(x: Tensor, a: Tensor | float, h: Tensor | float, N: int, base: Callable[[Tensor], Tensor]) -> Tensor:
    """Derivative of order a of a function by N terms of Grünwald and Letnikov's sum with step h."""
    weight: Tensor | float = 1.0
    total = torch.zeros_like(x)
    inside = finite(x)
    for n in range(N):
        # (-1)^n C(a, n) by its recursion, which has no poles.
        weight = weight * ((n - 1 - a) / n) if n else 1.0
        total = total + weight * base(inside - n * h)
    return torch.as_tensor(h, dtype=x.dtype, device=x.device) ** (-a) * total


def _growing(x: Tensor, a: Tensor | float, h: Tensor | float, N: int, base: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum of a function that goes to infinity on the right."""
    return _grunwald(x, a, h, N, base) + (pos(x) - finite(pos(x)))


def _gelu(x: Tensor) -> Tensor:
    # PyTorch's doubles x before it halves it, which the largest numbers do not stand.
    return torch.where(x > 10, x, functional.gelu(x.clamp(max=10.0)))


def _falu(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    s = sig(b * x)
    g = floor_at_lowest(x) * s
    order = torch.as_tensor(a, dtype=x.dtype, device=x.device).clamp(0, 2)
    low, high = order.clamp(max=1.0), order.clamp(min=1.0) - 1
    # x s(b x) s(-b x) is bounded, so that order 1 does not multiply 0 and a large number.
    kept = g * (1 - low) + low * (finite(x) * s * sig(-b * x)) + low * s
    return torch.where(order <= 1, kept, kept * (1 - 2 * high * s) + high * s)


def _orders(step: float = 0.1) -> dict[str, Parameter]:
    return {"a": trainable(0.5, 0.0, 1.0), "h": fixed(step, 1e-6), "N": fixed(5, 1, whole=True)}


ROOT_LIKE: dict[str, Any] = {"smooth": 0, "monotone": True, "lipschitz": INF}
SUM = 0.2734375 * 0.1**-0.5
"""Sum of the five weights of order 1/2 at step 0.1: what a slope or a level of 1 becomes."""
CAPUTO = "Read as the Grünwald sum of the base function; the survey develops its series instead."

ROWS = (
    row(
        "FracReLU", r"\frac{\max(0,x)^{1-a}}{\Gamma(2-a)}", _power_rule, "Zamora-Esquivel 2019",
        Properties((0, INF), (0, INF), slope=math.nan, dead=(-INF, 0), **ROOT_LIKE), {"a": trainable(0.5, 0.0, 1.0)},
        confidence="b",
    ),
    row(
        "FracPReLU", r"\frac{\max(0,x)^{1-a}-b\max(0,-x)^{1-a}}{\Gamma(2-a)}", _frac_prelu, "survey",
        Properties((-INF, INF), (-INF, INF), slope=INF, **ROOT_LIKE),
        {"a": trainable(0.5, 0.0, 1.0), "b": trainable(0.25)}, confidence="b",
    ),
    row(
        "FracLReLU", r"\frac{\max(0,x)^{1-a}-b\max(0,-x)^{1-a}}{\Gamma(2-a)}", _frac_prelu, "survey",
        Properties((-INF, INF), (-INF, INF), slope=INF, **ROOT_LIKE),
        {"a": trainable(0.5, 0.0, 1.0), "b": fixed(0.1)}, confidence="b",
    ),
    row(
        "FracSoftplus", r"h^{-a}\sum_{n<N}(-1)^n\binom an\ln(1+e^{x-nh})", partial(_growing, base=softplus),
        "Zamora-Esquivel 2019", Properties((0, INF), (0, INF), INF, True, SUM, 0.518440), _orders(), confidence="b",
    ),
    row(
        "FracTanh", r"h^{-a}\sum_{n<N}(-1)^n\binom an\tanh(x-nh)", partial(_grunwald, base=torch.tanh),
        "Zamora-Esquivel 2019", Properties((-SUM, SUM), (-SUM, SUM), INF, True, 1.014146, 0.930396), _orders(),
        confidence="b",
    ),
    row(
        "FALU", r"D^a[x\sigma(bx)]\approx g+a\sigma(bx)(1-g)\ (a\le 1),\ h+(a-1)\sigma(bx)(1-2h)\ (a>1)", _falu,
        "Zamora 2022", Properties((-0.166372, INF), (0, INF), INF, False, 0.615042, 0.5),
        {"a": trainable(0.5, 0.0, 2.0), "b": trainable(1.0)}, confidence="b",
        note="g = x sigma(b x); h is order 1. The order starts at 1/2; outside of [0, 2] it counts as the end.",
    ),
    row(
        "FracELU", r"h^{-a}\sum_{n<N}(-1)^n\binom an\mathrm{ELU}(x-nh)", partial(_growing, base=functional.elu),
        "survey", Properties((-SUM, INF), (-SUM, INF), 1, True, 1.178752, 1.178752), _orders(), confidence="c",
        note=CAPUTO,
    ),
    row(
        "FracSiLU", r"h^{-a}\sum_{n<N}(-1)^n\binom an(x-nh)\sigma(x-nh)", partial(_growing, base=silu), "survey",
        Properties((-0.255784, INF), (0, INF), INF, False, 0.969038, 0.603804), _orders(), confidence="c", note=CAPUTO,
    ),
    row(
        "FracGELU", r"h^{-a}\sum_{n<N}(-1)^n\binom an(x-nh)\Phi(x-nh)", partial(_growing, base=_gelu), "survey",
        Properties((-0.172486, INF), (0, INF), INF, False, 1.048815, 0.703637), _orders(), confidence="c", note=CAPUTO,
    ),
)  # fmt: skip
