"""Sigmoids and hyperbolic tangents with trained parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from actinium.functions.argument_bounds import LEAST, at_least, between, tensor_like
from actinium.functions.gates import aranda_ordaz, capped_exp
from actinium.functions.registry import INF, Properties, fixed, row, trainable
from actinium.functions.stable import finite, floor_at_lowest, hypot, neg, sig, softplus
from actinium.functions.units.taaf import TAAF

__all__ = ["FAMILY", "ROWS"]

FAMILY = "adaptive sigmoid and tanh"


def _shape(x: Tensor, a: Tensor | float) -> Tensor:
    a = at_least(a)
    return torch.tanh(a * x / 2) / a


def _stac_tanh(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    a = at_least(a, 0.0)
    middle = between(x, -a, a)
    return torch.tanh(middle) + b * (x - middle)


def _log_gate(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    return floor_at_lowest(x) * torch.log1p(at_least(a, -0.99) * sig(b * x))


def _tanh_soft(x: Tensor, a: Tensor | float, b: Tensor | float, c: Tensor | float, d: Tensor | float) -> Tensor:
    low = floor_at_lowest(x)
    d = tensor_like(at_least(d, 0.0), x)
    tiny = torch.finfo(torch.float32).tiny
    grown = torch.where(d > 0, torch.logaddexp(low, torch.log(d.clamp(min=tiny))), low)
    return torch.tanh(a * finite(x) + b * capped_exp(c * x)) * grown


def _tanh_soft_3(x: Tensor, a: Tensor | float) -> Tensor:
    a = at_least(a, 0.0)
    right = x + torch.log(torch.exp(-x.clamp(min=0.0)) + torch.tanh(a * x.clamp(min=0.0)))
    return torch.where(x >= 0, right, torch.log1p(torch.exp(neg(x)) * torch.tanh(a * neg(x))))


def _sigramp(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    s = sig(tensor_like(a, x))
    return s * sig(x) + (1 - s) * (b * x + 0.5).clamp(0.0, 1.0)


def _multiquadratic(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    away = x - a
    return hypot(away, tensor_like(at_least(b), x).expand_as(away))


def _radial(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    # At 100 widths it is 0 in every precision; beyond, the square would overflow.
    return torch.exp(-0.5 * ((x - a) / at_least(b)).clamp(-100.0, 100.0).square())


def _gln(x: Tensor, a: Tensor | float) -> Tensor:
    s = sig(tensor_like(a, x))
    return s * torch.sin(x) + (1 - s) * torch.tanh(x)


P = Properties
LOGISTIC = P((0, 1), (0, 1), INF, True, 0.25, 0.25)
TANH = P((-1, 1), (-1, 1), INF, True, 1, 1)
HALF_TANH = P((-1, 1), (-1, 1), INF, True, 0.5, 0.5)
TOP = math.sinh(10)
ENDS = (math.expm1(-10), math.expm1(10))
SOFT = P((-0.217317, INF), (0, INF), INF, False, 1.158058, math.tanh(0.6))

ROWS = (
    row("Adaptive-slope sigmoid", r"\sigma(a x)", lambda x, a: sig(a * x), "Yamada 1992", LOGISTIC,
        {"a": trainable(1.0)}, aliases=("ASSF",)),
    row("Slope-varying tanh", r"\tanh(a x)", lambda x, a: torch.tanh(a * x), "Yu 2002", TANH, {"a": trainable(1.0)},
        aliases=("SVAF", "adaptive tanh")),
    row("Trainable amplitude", r"a \tanh(x) + b", lambda x, a, b: a * torch.tanh(x) + b, "Trentin 2001", TANH,
        {"a": trainable(1.0), "b": trainable(0.0)}, note="of tanh; TAAF takes any function"),
    row("Generalised hyperbolic tangent", r"a \frac{1 - e^{-b x}}{1 + e^{-b x}}",
        lambda x, a, b: a * torch.tanh(b * x / 2), "Chen and Chang 1996", HALF_TANH,
        {"a": trainable(1.0), "b": trainable(1.0)}),
    row("Adaptive sigmoid", r"\frac 2 a (\frac{1}{1 + e^{-a x}} - \frac 1 2)", _shape, "survey", HALF_TANH,
        {"a": trainable(1.0, LEAST)}, confidence="c",
        note="read as centred and divided by the slope, which is then 1/2"),
    row("PSigmoid", r"a \sigma(b x)", lambda x, a, b: a * sig(b * x), "Ying 2021", LOGISTIC,
        {"a": trainable(1.0), "b": trainable(1.0)}, confidence="b"),
    row("Parametric sigmoid function", r"(1 + e^{-x})^{-m}", lambda x, m: torch.exp(-at_least(m) * softplus(-x)),
        "Chandra 2004", LOGISTIC, {"m": trainable(1.0, LEAST)}, aliases=("PSF",)),
    row("STAC-tanh", r"\tanh x \text{ if } |x| \le a \text{ else } \pm\tanh(a) + b (x \mp a)", _stac_tanh, "survey",
        P((-INF, INF), (-INF, INF), 0, True, 1, 1), {"a": trainable(1.0, 0.0), "b": trainable(0.1)}, confidence="b"),
    row("LAAF", r"\tanh(n a x)", lambda x, a, n: torch.tanh(n * a * x), "Jagtap 2020", TANH,
        {"a": trainable(1.0), "n": fixed(1.0, 1.0)},
        note="of tanh, one slope for a layer or for each neuron; a starts at 1/n"),
    row("PSTanh", r"a x (1 + \tanh(b x))", lambda x, a, b: 2 * a * (floor_at_lowest(x) * sig(2 * b * x)), "survey",
        P((-0.139232, INF), (0, INF), INF, False, 1.099839, 0.5), {"a": trainable(0.5), "b": trainable(1.0)},
        confidence="b"),
    row("SSinH", r"a \sinh(b x)", lambda x, a, b: a * torch.sinh(b * x), "survey",
        P((-TOP, TOP), (-TOP, TOP), INF, True, math.cosh(10), 1, domain=(-10, 10)),
        {"a": trainable(1.0), "b": trainable(1.0)}, confidence="b"),
    row("SExp", r"a (e^{b x} - 1)", lambda x, a, b: a * torch.expm1(b * x), "survey",
        P(ENDS, ENDS, INF, True, math.exp(10), 1, domain=(-10, 10)), {"a": trainable(1.0), "b": trainable(1.0)},
        confidence="b"),
    row("LAU", r"x \ln(1 + a \sigma(b x))", _log_gate, "survey",
        P((-0.252769, INF), (0, INF), INF, False, 0.746311, math.log(1.5)),
        {"a": trainable(1.0, -0.99), "b": trainable(1.0)}, aliases=("learnable action unit",), confidence="b"),
    row("AGumb", r"1 - (1 + a e^x)^{-1 / a}", aranda_ordaz, "Farhadi 2019", LOGISTIC, {"a": trainable(1.0, LEAST)},
        aliases=("adaptive Gumbel",), confidence="b"),
    row("TanhSoft", r"\tanh(a x + b e^{c x}) \ln(d + e^x)", _tanh_soft, "Biswas 2021", SOFT,
        {"a": trainable(0.0, -INF, 1.0), "b": trainable(0.6, 0.0), "c": trainable(1.0, 0.0), "d": fixed(0.0, 0.0)},
        confidence="b"),
    row("TanhSoft-1", r"\tanh(a x) \ln(1 + e^x)", lambda x, a: torch.tanh(a * x) * softplus(x), "Biswas 2021",
        P((-0.223785, INF), (0, INF), INF, False, 1.098916, 0.87 * math.log(2)), {"a": trainable(0.87)},
        confidence="b"),
    row("TanhSoft-2", r"x \tanh(b e^{c x})", lambda x, b, c: floor_at_lowest(x) * torch.tanh(b * capped_exp(c * x)),
        "Biswas 2021", SOFT, {"b": trainable(0.6, 0.0), "c": trainable(1.0, 0.0)}, confidence="b"),
    row("TanhSoft-3", r"\ln(1 + e^x \tanh(a x))", _tanh_soft_3, "Biswas 2021",
        P((-0.357079, INF), (0, INF), INF, False, 1.176494, 1), {"a": trainable(1.0, 0.0)}, confidence="b"),
    row("PSigramp", r"s \sigma(x) + (1 - s) \min(\max(b x + \frac 1 2, 0), 1), s = \sigma(a)", _sigramp, "survey",
        P((0, 1), (0, 1), 0, True, 0.625, 0.625), {"a": trainable(0.0), "b": trainable(1.0)}, confidence="b"),
    row("Multiquadratic", r"\sqrt{(x - a)^2 + b^2}", _multiquadratic, "survey",
        P((1, INF), (INF, INF), INF, False, 1, 0), {"a": trainable(0.0), "b": trainable(1.0, LEAST)}, aliases=("MAF",)),
    row("Adaptive RBF", r"e^{-(x - a)^2 / (2 b^2)}", _radial, "survey",
        P((0, 1), (0, 0), INF, False, math.exp(-0.5), 0), {"a": trainable(0.0), "b": trainable(1.0, LEAST)},
        aliases=("ARBF",)),
    row("GLN", r"s \sin x + (1 - s) \tanh x, s = \sigma(a)", _gln, "survey",
        P((-1, 1), (math.nan, math.nan), INF, False, 1, 1), {"a": trainable(0.0)}, confidence="c",
        note="the weights of the two are read as s and 1 - s"),
    row("TAAF", r"a f(b x + c) + d", None, "Kunc 2021", None,
        {"a": trainable(1.0), "b": trainable(1.0), "c": trainable(0.0), "d": trainable(0.0)}, module=TAAF,
        aliases=("transformative adaptive activation",), note="of any function: get('taaf', base='gelu')"),
)  # fmt: skip
