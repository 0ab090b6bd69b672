"""Rectifiers without trained parameters, or with one threshold or gain."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.functions.argument_bounds import LEAST
from actinium.functions.rectifiers import leaky, log1p_of, relu_and_sine, size_of, softsign_left, split, tent
from actinium.functions.registry import INF, Properties, fixed, row, trainable
from actinium.functions.stable import finite, log1p_pos, neg, pos, power, softplus
from actinium.functions.units.statistics_units import AdaptiveOffset, ErrorSlope, MarginReLU

__all__ = ["FAMILY", "ROWS"]

FAMILY = "ReLU, fixed"

NAN = math.nan
LN2 = math.log(2)


def _drawn(x: Tensor, low: Tensor | float, high: Tensor | float, training: bool) -> Tensor | float:
    """Uniform numbers in the shape of x while training, their mean else."""
    return low + (high - low) * torch.rand_like(x) if training else (low + high) / 2


def _normal(x: Tensor, s: Tensor | float, training: bool) -> Tensor | float:
    """Normal numbers of standard deviation s while training, 0 else."""
    return s * torch.randn_like(x) if training else 0.0


def _optimised_leaky(x: Tensor, l: Tensor | float, u: Tensor | float) -> Tensor:  # noqa: E741
    if not isinstance(l, Tensor) and not isinstance(u, Tensor) and l >= u:
        raise InputError(f"l of Optimised leaky ReLU is smaller than u; got l={l:g}, u={u:g}")
    return leaky(x, math.e ** (-(u + l) / (u - l)))


def _softsign_rrelu(
    x: Tensor, l: Tensor | float, u: Tensor | float, training: bool = False  # noqa: E741
) -> Tensor:  # fmt: skip
    return (1 + x).pow(-2) + leaky(x, _drawn(x, l, u, training))


def _noisy_relu(x: Tensor, training: bool = False) -> Tensor:
    return pos(x + torch.exp(functional.logsigmoid(x) / 2) * torch.randn_like(x)) if training else pos(x)


def _bounded_leaky(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    return torch.where(x <= 0, a * x, torch.where(x <= b, x, a * x + (1 - a) * b))


def _peak(x: Tensor, a: Tensor | float) -> Tensor:
    return torch.where(x < 0, 0.2 * x, torch.where(x <= a, x, pos(2 * a - x)))


def _soft_modulus_q(x: Tensor) -> Tensor:
    size = x.abs()
    inner = size.clamp(max=1.0)
    return torch.where(size <= 1, inner.square() * (2 - inner), size)


def _bifiring(x: Tensor, a: Tensor | float) -> Tensor:
    size = x.abs()
    inner = size.clamp(max=a)
    return torch.where(size > a, size - a / 2, inner.square() / (2 * a))


def _log_softsign(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    beyond = log1p_pos(a * pos(x)) + size_of(log1p_of(a * b) - b)
    return torch.where(x < 0, softsign_left(x), torch.where(x <= b, x, beyond))


def _two_bends(x: Tensor, a: Tensor | float, c: Tensor | float) -> Tensor:
    return torch.maximum(a * (x + c) - c, torch.minimum(a * (x - c) + c, x))


def _elastic(x: Tensor, a: Tensor | float, left: Tensor, training: bool) -> Tensor:
    return split(x, x * _drawn(x, 1 - a, 1 + a, training), left)


def _translated(x: Tensor, a: Tensor | float, s: Tensor | float, training: bool = False) -> Tensor:
    return torch.where(x + _normal(x, s, training) >= 0, x, a * x)


def _square(x: Tensor) -> Tensor:
    r = pos(x)
    return r * r  # whose gradient does not overflow, as that of `square` does


def _jump(x: Tensor, t: Tensor | float, e: Tensor | float) -> Tensor:
    y = torch.where(x <= t, 0.0, x)
    if not isinstance(t, Tensor):
        return y
    # A rectangle of width e stands for the delta function at the threshold.
    slope = torch.where((x - t).abs() < e / 2, -t / e, 0.0).detach()
    return y + slope * (t - t.detach())


def _relu_with_gelu_gradient(x: Tensor) -> Tensor:
    # Beyond 50 the gradient of GELU is exactly that of ReLU.
    smooth = functional.gelu(x.clamp(-50.0, 50.0))
    return torch.where(x.abs() < 50, pos(x).detach() + (smooth - smooth.detach()), pos(x))


RAMP = Properties((0, INF), (0, INF), 0, True, 1, NAN, dead=(-INF, 0))
LEAKY = Properties((-INF, INF), (-INF, INF), 0, True, 1, NAN)
LOW, HIGH = 1 / 8, 1 / 3

ROWS = (
    row("ReLU", r"\max(0, x)", pos, "Nair 2010", RAMP, aliases=("rectifier", "rectified linear unit")),
    row(
        "Shifted ReLU", r"\max(-1, x)", lambda x: x.clamp(min=-1.0), "Clevert 2015",
        Properties((-1, INF), (-1, INF), 0, True, 1, 1, dead=(-INF, -1)),
    ),
    row("LeakyReLU", r"x \text{ if } x \ge 0 \text{ else } a x", leaky, "Maas 2013", LEAKY, {"a": fixed(0.01)}),
    row(
        "Very leaky ReLU", r"x \text{ if } x \ge 0 \text{ else } a x", leaky, "Graham 2014", LEAKY, {"a": fixed(1 / 3)},
        note="LeakyReLU with a slope of one third",
    ),
    row(
        "Optimised leaky ReLU", r"x \text{ if } x \ge 0 \text{ else } x e^{-(u + l)/(u - l)}", _optimised_leaky,
        "survey", LEAKY,
        {"l": fixed(3.0, 0), "u": fixed(8.0, 0)}, aliases=("OLReLU",), confidence="c",
        note="the exponent is read as minus the quotient of sum and difference of the bounds of RReLU's divisor",
    ),
    row(
        "RReLU", r"x \text{ if } x \ge 0 \text{ else } a x,\ a \sim U(l, u)",
        lambda x, l, u, training=False: leaky(x, _drawn(x, l, u, training)), "Xu 2015", LEAKY,  # noqa: E741
        {"l": fixed(LOW, 0), "u": fixed(HIGH, 0)}, kind="stochastic",
        note="l and u bound the slope; where the divisor is drawn from U(3, 8), they are 1/8 and 1/3",
    ),
    row(
        "Softsign RReLU", r"(1 + x)^{-2} + (x \text{ if } x \ge 0 \text{ else } a x),\ a \sim U(l, u)",
        _softsign_rrelu, "Elakkiya 2023",
        Properties((0.8898815748, 99.79375), (99.79375, 10.0082644628), 0, False, 1999.7708333, NAN, domain=(-0.9, 10)),
        {"l": fixed(LOW, 0), "u": fixed(HIGH, 0)}, kind="stochastic", aliases=("S-RReLU",), confidence="c",
        note="as printed, with its pole at -1; the derivative of the softsign, (1 + |x|)^-2, may have been meant",
    ),
    row(
        "Sloped ReLU", r"\max(0, a x)", lambda x, a: a * pos(x), "Seo 2017",
        Properties((0, INF), (0, INF), 0, True, 10, NAN, dead=(-INF, 0)), {"a": fixed(10.0, 0)}, confidence="b",
    ),
    row(
        "Noisy ReLU", r"\max(0, x + e),\ e \sim N(0, \sigma(x))", _noisy_relu, "Nair 2010", RAMP,
        kind="stochastic", aliases=("NReLU",), note="the variance of the noise is the logistic function of x",
    ),
    row(
        "ReLU6", r"\min(\max(0, x), n)", lambda x, n: pos(x).clamp(max=n), "Krizhevsky 2010",
        Properties((0, 6), (0, 6), 0, True, 1, NAN, dead=(-INF, 0)), {"n": fixed(6.0, 0)},
    ),
    row(
        "ReLU-N", r"\min(\max(0, x), n)", lambda x, n: pos(x).clamp(max=n), "Pishchik 2023",
        Properties((0, 1), (0, 1), 0, True, 1, NAN, dead=(-INF, 0)), {"n": trainable(1.0, 0)},
        note="ReLU6 whose bound is trained",
    ),
    row(
        "Bounded ReLU", r"\min(\max(0, x), a)", lambda x, a: pos(x).clamp(max=a), "Liew 2016",
        Properties((0, 1), (0, 1), 0, True, 1, NAN, dead=(-INF, 0)), {"a": fixed(1.0, 0)}, aliases=("BReLU",),
    ),
    row(
        "Bounded leaky ReLU",
        r"a x \text{ if } x \le 0 \text{ else } x \text{ if } x \le b \text{ else } a x + (1 - a) b",
        _bounded_leaky, "Liew 2016", LEAKY, {"a": fixed(0.1), "b": fixed(1.0, 0)}, aliases=("BLReLU",),
    ),
    row(
        "Hardshrink", r"x \text{ if } |x| > a \text{ else } 0", lambda x, a: torch.where(x.abs() <= a, 0.0, x), "torch",
        Properties((-INF, INF), (-INF, INF), -1, True, INF, 0, dead=(-0.5, 0.5)), {"a": fixed(0.5, 0)},
    ),
    row(
        "Softshrink", r"\operatorname{sign}(x) \max(0, |x| - a)", lambda x, a: pos(x - a) - pos(-x - a), "torch",
        Properties((-INF, INF), (-INF, INF), 0, True, 1, 0, dead=(-0.5, 0.5)), {"a": fixed(0.5, 0)},
    ),
    row(
        "Tanhshrink", r"x - \tanh x", lambda x: x - torch.tanh(x), "torch",
        Properties((-INF, INF), (-INF, INF), INF, True, 1, 0),
    ),
    row(
        "V-ReLU", "|x|", torch.abs, "survey", Properties((0, INF), (INF, INF), 0, False, 1, NAN),
        aliases=("abs", "modulus"),
    ),
    row(
        "Pan", r"\max(0, |x| - a)", lambda x, a: pos(x.abs() - a), "survey",
        Properties((0, INF), (INF, INF), 0, False, 1, 0, dead=(-1, 1)), {"a": fixed(1.0, 0)},
    ),
    row(
        "AbsLU", r"x \text{ if } x \ge 0 \text{ else } a |x|", lambda x, a: leaky(x, -a), "survey",
        Properties((0, INF), (INF, INF), 0, False, 1, NAN), {"a": fixed(0.5)}, confidence="b",
    ),
    row(
        "Mirrored ReLU", r"\min(\max(0, 1 - x), \max(0, 1 + x))", lambda x: tent(x, 1.0), "Zhao 2021",
        Properties((0, 1), (0, 0), 0, False, 1, NAN, dead=(-INF, -1)), confidence="b",
    ),
    row(
        "LSPTLU",
        r"0.2 x \text{ if } x < 0 \text{ else } x \text{ if } x \le a \text{ else } \max(0, 2a - x)",
        _peak, "survey", Properties((-INF, 1), (-INF, 0), 0, False, 1, NAN, dead=(2, INF)), {"a": fixed(1.0, 0)},
        confidence="c",
        note="a triangle on [0, 2a] that falls to 0, which it stays; the slope on the left is 0.2 whatever a is",
    ),
    row(
        "Soft modulus Q", r"x^2 (2 - |x|) \text{ if } |x| \le 1 \text{ else } |x|", _soft_modulus_q,
        "Vallés-Pérez 2023",
        Properties((0, INF), (INF, INF), 1, False, 4 / 3, 0),
    ),
    row(
        "Soft modulus T", r"x \tanh(x / a)", lambda x, a: x * torch.tanh(x / a), "Vallés-Pérez 2023",
        Properties((0, INF), (INF, INF), INF, False, 1.1996786402577, 0), {"a": fixed(0.01, LEAST)},
    ),
    row(
        "SignReLU", r"x \text{ if } x \ge 0 \text{ else } \frac{a x}{1 + |x|}",
        lambda x, a: split(x, x, a * softsign_left(x)), "Lin 2018",
        Properties((-1, INF), (-1, INF), 1, True, 1, 1), {"a": fixed(1.0)},
    ),
    row(
        "Li-ReLU", r"a x + \max(0, x)", lambda x, a: split(x, (1 + a) * x, a * x), "Yang 2019",
        Properties((-INF, INF), (-INF, INF), 0, True, 1.2, NAN), {"a": fixed(0.2)}, confidence="b",
    ),
    row(
        "Squared ReLU", r"\max(0, x)^2", _square, "So 2021",
        Properties((0, INF), (0, INF), 1, True, INF, 0, dead=(-INF, 0)), aliases=("ReLU2", "ReLU^2"),
    ),
    row(
        "StarReLU", r"s \max(0, x)^2 + b", lambda x, s, b: s * _square(x) + b, "Yu 2022",
        Properties((-0.4472, INF), (-0.4472, INF), 1, True, INF, 0, dead=(-INF, 0)),
        {"s": trainable(0.8944), "b": trainable(-0.4472)},
    ),
    row(
        "ReLU power", r"\max(0, x)^p", power, "-",
        Properties((0, INF), (0, INF), 1, True, INF, 0, dead=(-INF, 0)), {"p": fixed(2.0, LEAST)}, aliases=("RePU",),
    ),
    row(
        "SineReLU", r"x \text{ if } x \ge 0 \text{ else } a (\sin x - \cos x)",
        lambda x, a: split(x, x, a * (torch.sin(x) - torch.cos(x))), "Rodrigues 2018",
        Properties((-0.0025 * math.sqrt(2), INF), (NAN, INF), -1, False, INF, NAN), {"a": fixed(0.0025)},
        confidence="b",
        note="it jumps by a at 0",
    ),
    row(
        "Minsin", r"\min(x, \sin x)", lambda x: torch.where(x < 0, x, torch.sin(x)), "Ramachandran 2017",
        Properties((-INF, 1), (-INF, NAN), 2, False, 1, 1),
    ),
    row(
        "VLU", r"\max(0, x) + a \sin(b x)", relu_and_sine, "Gupta 2022",
        Properties((-1, INF), (NAN, INF), 0, False, 2, NAN), {"a": fixed(1.0), "b": fixed(1.0)}, confidence="b",
    ),
    row(
        "NLReLU", r"\ln(a \max(0, x) + 1)", lambda x, a: log1p_pos(a * x), "Liu 2019", RAMP, {"a": fixed(1.0, 0)},
    ),
    row(
        "SLU", r"a x \text{ if } x \ge 0 \text{ else } b \ln(1 + e^x) - c",
        lambda x, a, b, c: split(x, a * x, b * softplus(neg(x)) - c), "Zhao 2018",
        Properties((-2 * LN2, INF), (-2 * LN2, INF), 1, True, 1, 1),
        {"a": fixed(1.0), "b": fixed(2.0), "c": fixed(2 * LN2)}, aliases=("softplus linear unit",),
    ),
    row(
        "ReSP", r"a x + \ln 2 \text{ if } x \ge 0 \text{ else } \ln(1 + e^x)",
        lambda x, a: split(x, a * x + LN2, softplus(neg(x))), "Xu 2018",
        Properties((0, INF), (0, INF), 0, True, 1.7, NAN), {"a": fixed(1.7)},
    ),
    row(
        "PReNU", r"x - a \ln(x + 1) \text{ if } x \ge 0 \text{ else } 0",
        lambda x, a: pos(x) - a * log1p_pos(finite(x)), "Jaafari 2020", RAMP, {"a": trainable(0.25)},
    ),
    row(
        "RT-ReLU", r"\max(0, x + a),\ a \sim N(0, s^2)",
        lambda x, s, training=False: pos(x + _normal(x, s, training)), "Cao 2018", RAMP, {"s": fixed(0.75, 0)},
        kind="stochastic", confidence="b",
    ),
    row(
        "RT-PReLU", r"x \text{ if } x + b \ge 0 \text{ else } a x,\ b \sim N(0, s^2)", _translated, "Cao 2018", LEAKY,
        {"a": trainable(0.25), "s": fixed(0.75, 0)}, kind="stochastic", confidence="b",
    ),
    row(
        "Elastic ReLU", r"k \max(0, x),\ k \sim U(1 - a, 1 + a)",
        lambda x, a, training=False: _elastic(x, a, pos(x), training), "Jiang 2018", RAMP, {"a": fixed(0.1, 0, 1)},
        kind="stochastic", aliases=("EReLU",),
    ),
    row(
        "EPReLU", r"k x \text{ if } x \ge 0 \text{ else } b x,\ k \sim U(1 - a, 1 + a)",
        lambda x, a, b, training=False: _elastic(x, a, b * x, training), "Jiang 2018", LEAKY,
        {"a": fixed(0.1, 0, 1), "b": trainable(0.25)}, kind="stochastic",
    ),
    row(
        "ReLU-Prob", r"\max(0, x) + s e,\ e \sim N(0, 1)",
        lambda x, s, training=False: pos(x) + _normal(x, s, training), "Shridhar 2019", RAMP,
        {"s": trainable(0.1)}, kind="stochastic", aliases=("ProbAct",),
    ),
    row(
        "Displaced ReLU", r"\max(x, -a)", lambda x, a: x.clamp(min=-a), "Macêdo 2019",
        Properties((-1, INF), (-1, INF), 0, True, 1, 1, dead=(-INF, -1)), {"a": fixed(1.0)},
        note="DReLU of its authors, a name that others use for the gated dReLU and for Dual ReLU",
    ),
    row(
        "AOAF", r"\max(0, x - b m) + c m,\ m = \operatorname{mean}(x)", None, "Ye 2020", None,
        {"b": fixed(0.17), "c": fixed(0.17)}, module=AdaptiveOffset, arity="channels", confidence="b",
        note="m is the mean input of a unit: of the batch while training, a running mean else",
    ),
    row(
        "Margin ReLU", r"\max(x, m),\ m = \operatorname{E}[x \mid x < 0]", None, "Heo 2019", None, None,
        module=MarginReLU, arity="channels", kind="hyper", confidence="b",
        note="m is gathered while training unless it is given",
    ),
    row(
        "DLReLU", r"x \text{ if } x \ge 0 \text{ else } a q x,\ q = \mathrm{MSE}_{t-1}",
        lambda x, a, q: leaky(x, a * q), "Hu 2018", LEAKY, {"a": fixed(0.01), "q": fixed(1.0, 0)}, confidence="b",
        module=lambda a=0.01, q=1.0: ErrorSlope(False, a, q), note="q is set after each epoch with observe(mse)",
    ),
    row(
        "exp-DLReLU", r"x \text{ if } x \ge 0 \text{ else } a e^{-q} x,\ q = \mathrm{MSE}_{t-1}",
        lambda x, a, q: leaky(x, a * math.e ** -q), "Hu 2018", LEAKY, {"a": fixed(0.01), "q": fixed(1.0, 0)},
        confidence="b",
        module=lambda a=0.01, q=1.0: ErrorSlope(True, a, q), note="q is set after each epoch with observe(mse)",
    ),
    row(
        "Tent", r"\max(0, a - |x|)", tent, "Rozsa 2019",
        Properties((0, 1), (0, 0), 0, False, 1, NAN, dead=(-INF, -1)), {"a": trainable(1.0)},
    ),
    row(
        "Hat", r"x \text{ if } 0 \le x \le a/2 \text{ else } \max(0, a - x) \text{ if } x > 0 \text{ else } 0",
        lambda x, a: tent(x - a / 2, a / 2), "Wang 2022",
        Properties((0, 1), (0, 0), 0, False, 1, NAN, dead=(-INF, 0)), {"a": fixed(2.0, 0)},
    ),
    row(
        "LS-ReLU",
        r"\frac{x}{1 + |x|} \text{ if } x \le 0 \text{ else } x \text{ if } x \le b \text{ else } "
        r"\ln(a x + 1) + |\ln(a b + 1) - b|",
        _log_softsign, "Wang 2020", Properties((-1, INF), (-1, INF), 0, True, 1, 1),
        {"a": fixed(1.0, 0), "b": fixed(1.0, 0)}, confidence="b",
    ),
    row(
        "Piecewise linear unit", r"\max(a (x + c) - c, \min(a (x - c) + c, x))", _two_bends, "Nicolae 2018",
        Properties((-INF, INF), (-INF, INF), 0, True, 1, 1), {"a": fixed(0.1), "c": fixed(1.0, 0)}, aliases=("PLU",),
    ),
    row(
        "Bi-firing", r"|x| - a/2 \text{ if } |x| > a \text{ else } \frac{x^2}{2a}", _bifiring, "Li 2013",
        Properties((0, INF), (INF, INF), 1, False, 1, 0), {"a": fixed(1.0, LEAST)},
    ),
    row(
        "Bounded bi-firing", r"\min(b, |x| - a/2 \text{ if } |x| > a \text{ else } \frac{x^2}{2a})",
        lambda x, a, b: _bifiring(x, a).clamp(max=b), "Liew 2016",
        Properties((0, 5), (5, 5), 0, False, 1, 0, dead=(-INF, -5.5)), {"a": fixed(1.0, LEAST), "b": fixed(5.0, 0)},
    ),
    row(
        "JumpReLU", r"x \text{ if } x > t \text{ else } 0", _jump, "Rajamanoharan 2024",
        Properties((0, INF), (0, INF), -1, True, INF, 0, dead=(-INF, 0.001)),
        {"t": trainable(0.001, 0), "e": fixed(0.001, LEAST)},
        note="straight-through: t learns from inputs closer to it than e / 2",
    ),
    row(
        "REReLU", r"\max(0, x)", _relu_with_gelu_gradient, "ICLR submission", RAMP, confidence="b",
        aliases=("ReLU with STE-GELU gradient",), note="straight-through: the values of ReLU with the gradient of GELU",
    ),
)  # fmt: skip
