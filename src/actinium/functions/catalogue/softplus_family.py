"""Softplus and other smooth versions of the rectifier."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from actinium.functions.registry import INF, Parameter, Properties, fixed, row, trainable
from actinium.functions.stable import finite, floor_at_lowest, hypot, pos, softplus

__all__ = ["FAMILY", "ROWS"]

FAMILY = "softplus and smooth ReLU"


def _root(t: Tensor, e: Tensor | float) -> Tensor:
    """sqrt(t^2 + e) without overflow; e is positive."""
    return hypot(t, torch.sqrt(torch.as_tensor(e, dtype=t.dtype, device=t.device)))


def _squareplus(x: Tensor, b: Tensor | float) -> Tensor:
    """(x + sqrt(x^2 + b)) / 2, for x < 0 as b / 4 over half the sum of sizes: nothing cancels, and b = 0 gives ReLU."""
    # Where b is 0 hypot has no gradient at 0: a number below every precision takes its place.
    half = _half_sum(x, b)
    return torch.where(x > 0, half, b / (4 * half))


def _half_sum(x: Tensor, b: Tensor | float) -> Tensor:
    """(|x| + sqrt(x^2 + b)) / 2; b = 0 counts as 1e-60 (1e-30 in float32), which keeps 0 out of denominators."""
    least = 1e-60 if x.dtype == torch.float64 else 1e-30
    b = b.clamp(min=least) if isinstance(b, Tensor) else max(b, least)
    return torch.where(x > 0, x, -x) / 2 + _root(x, b) / 2


def _stepplus(x: Tensor, e: Tensor | float) -> Tensor:
    """(1 + x / sqrt(x^2 + e)) / 2, the slope of squareplus."""
    x = finite(x)
    return _squareplus(x, e) / _root(x, e)


def _bipolarplus(x: Tensor, e: Tensor | float) -> Tensor:
    x = finite(x)
    return x / _root(x, e)


def _root_difference(x: Tensor, p: Tensor | float, q: Tensor | float, e: Tensor | float) -> Tensor:
    """sqrt((x - p)^2 + e) - sqrt((x - q)^2 + e) as a quotient, so that large numbers do not cancel."""
    x = finite(x)
    mean = (x - p) / 2 + (x - q) / 2
    return (q - p) * (mean / (_root(x - p, e) / 2 + _root(x - q, e) / 2))


def _eluplus(x: Tensor, a: Tensor | float, e: Tensor | float) -> Tensor:
    # Beyond e^40 the second part is smaller than e / 4 e^-40.
    return _squareplus(x, e) - _squareplus(-a * torch.expm1(x.clamp(max=40.0)), e)


def _mishplus(x: Tensor, e: Tensor | float) -> Tensor:
    low, x = floor_at_lowest(x), finite(x)
    half, plus = _half_sum(x, e), _squareplus(x, e)
    size = _root(plus, e)
    return torch.where(x > 0, low * (half / torch.where(x > 0, size, 1.0)), e / 4 * (x / half) / size)


def _smooth_relu(x: Tensor, a: Tensor | float) -> Tensor:
    inside = torch.minimum(pos(x), torch.as_tensor(a, dtype=x.dtype, device=x.device))
    return torch.where(x <= a, inside.square() / (2 * a), x - a / 2)


def _smelu(x: Tensor, b: Tensor | float) -> Tensor:
    inside = torch.minimum(pos(x + b), torch.as_tensor(2 * b, dtype=x.dtype, device=x.device))
    return torch.where(x < b, inside.square() / (4 * b), x)


def _rand_softplus(x: Tensor, a: Tensor | float, training: bool = False) -> Tensor:
    share = torch.as_tensor(a, dtype=x.dtype, device=x.device)
    if training:
        share = share + torch.minimum(share, 1 - share) * (2 * torch.rand_like(x) - 1)
    return (1 - share) * pos(x) + share * softplus(x)


def _log_base(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    a, b = (softplus(torch.as_tensor(v, dtype=x.dtype, device=x.device)) for v in (a, b))
    rate = b * torch.log1p(a)
    return _softplus(x, rate)


def _softplus(x: Tensor, b: Tensor | float) -> Tensor:
    """ln(1 + e^(b x)) / b; where e^(-b x) is below every precision it is x, so that b x need not be finite."""
    return torch.where(b * x > 50, x, softplus((b * x).clamp(max=50.0)) / b)


def _uaf(x: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, E: Tensor) -> Tensor:
    second = D * (x - B)
    second = torch.where(x.isinf(), second, finite(second))  # the first may be infinite
    return softplus(finite(x) * (A + C * finite(x)) + A * B) - softplus(second) + E


E6 = {"e": fixed(1e-6, 1e-12)}
ROOT = math.sqrt(1e-6)
GATE = 0.5 / ROOT
"""Steepest slope of the smoothed step."""


def _pan(
    lipschitz: float, slope: float, low: float, high: float, limits: tuple[float, float], monotone: bool
) -> Properties:
    return Properties((low, high), limits, INF, monotone, lipschitz, slope)


def _with(**others: Parameter) -> dict[str, Parameter]:
    return others | E6


RELU_LIKE = Properties((0, INF), (0, INF), INF, True, 1, 0.5)
HUBER = Properties((0, INF), (0, INF), 1, True, 1, 0, dead=(-INF, 0))

ROWS = (
    row(
        "Softplus", r"\frac1b \ln(1 + e^{bx})", _softplus, "Dugas 2000", RELU_LIKE, {"b": fixed(1.0, 1e-6)},
        aliases=("smooth rectifier",),
    ),
    row(
        "Parametric softplus", r"a(\ln(1+e^x) - b)", lambda x, a, b: a * (softplus(x) - b), "Vargas 2021",
        Properties((-1.5 * math.log(2), INF), (-1.5 * math.log(2), INF), INF, True, 1.5, 0.75),
        {"a": fixed(1.5), "b": fixed(math.log(2))},
    ),
    row(
        "Soft++", r"\ln(1+e^{ax}) + \frac{x}{b} - \ln 2",
        lambda x, a, b: softplus(a * x) + (x / b - math.log(2)), "Ciuparu 2020",
        Properties((-INF, INF), (-INF, INF), INF, True, 1.5, 1), {"a": fixed(1.0), "b": fixed(2.0, 1e-6)},
    ),
    row(
        "Rand softplus", r"(1-a)\max(0,x) + a\ln(1+e^x)", _rand_softplus, "Chen 2019",
        Properties((0, INF), (0, INF), 0, True, 1, math.nan), {"a": fixed(0.5, 0.0, 1.0)}, kind="stochastic",
        confidence="b",
        note="Its authors take a from the noise of the input; while training it is drawn here, for each value, from "
        "the widest interval of [0, 1] whose middle is a.",
    ),
    row(
        "SquarePlus", r"\tfrac12(x + \sqrt{x^2+b})", _squareplus, "Barron 2021", RELU_LIKE, {"b": fixed(4.0, 0.0)},
    ),
    row(
        "StepPlus", r"\tfrac12\left(1 + \frac{x}{\sqrt{x^2+e}}\right)", _stepplus, "Pan 2023",
        _pan(GATE, GATE, 0, 1, (0, 1), True), E6, confidence="b",
    ),
    row(
        "BipolarPlus", r"\frac{x}{\sqrt{x^2+e}}", _bipolarplus, "Pan 2023",
        _pan(2 * GATE, 2 * GATE, -1, 1, (-1, 1), True), E6, confidence="b",
    ),
    row(
        "vReLUPlus", r"\sqrt{x^2+e}", _root, "Pan 2023", _pan(1, 0, ROOT, INF, (INF, INF), False), E6, confidence="b",
    ),
    row(
        "LReLUPlus", r"\tfrac12\left((1+a)x + m((1-a)x)\right),\ m(t)=\sqrt{t^2+e}",
        lambda x, a, e: a * x + _squareplus(finite((1 - a) * x), e), "Pan 2023",
        _pan(1, 0.505, -INF, INF, (-INF, INF), True), _with(a=fixed(0.01)), confidence="b",
    ),
    row(
        "SoftshrinkPlus", r"x + \tfrac12\left(m(x-a) - m(x+a)\right),\ m(t)=\sqrt{t^2+e}",
        lambda x, a, e: x + _root_difference(x, a, -a, e) / 2, "Pan 2023",
        _pan(1, 1 - 0.5 / math.hypot(0.5, ROOT), -INF, INF, (-INF, INF), True), _with(a=fixed(0.5, 0.0)),
        confidence="b",
    ),
    row(
        "PanPlus", r"-a + \tfrac12\left(m(x-a) + m(x+a)\right),\ m(t)=\sqrt{t^2+e}",
        lambda x, a, e: _root(x - a, e) / 2 + _root(x + a, e) / 2 - a, "Pan 2023",
        _pan(1, 0, math.hypot(0.5, ROOT) - 0.5, INF, (INF, INF), False), _with(a=fixed(0.5, 0.0)), confidence="b",
    ),
    row(
        "BReLUPlus", r"\tfrac12(1 + m(x) - m(x-1)),\ m(t)=\sqrt{t^2+e}",
        lambda x, e: 0.5 + _root_difference(x, 0.0, 1.0, e) / 2, "Pan 2023",
        _pan(1, 0.5 / math.hypot(1, ROOT), 0, 1, (0, 1), True), E6, confidence="b",
    ),
    row(
        "HardTanhPlus", r"\tfrac12(m(x+1) - m(x-1)),\ m(t)=\sqrt{t^2+e}",
        lambda x, e: _root_difference(x, -1.0, 1.0, e) / 2, "Pan 2023",
        _pan(1, 1 / math.hypot(1, ROOT), -1, 1, (-1, 1), True), E6, confidence="b",
    ),
    row(
        "SReLUPlus", r"a x + \tfrac12(a-1)\left(m(x-t) - m(x+t)\right),\ m(s)=\sqrt{s^2+e}",
        lambda x, a, t, e: a * x + (a - 1) / 2 * _root_difference(x, t, -t, e), "Pan 2023",
        _pan(1, 0.5 + 0.5 / math.hypot(1, ROOT), -INF, INF, (-INF, INF), True),
        _with(a=fixed(0.5), t=fixed(1.0, 0.0)), confidence="b",
    ),
    row(
        "HardshrinkPlus", r"x\left(1 + \tfrac12\left(\frac{x-a}{m(x-a)} - \frac{x+a}{m(x+a)}\right)\right),"
        r"\ m(t)=\sqrt{t^2+e}",
        lambda x, a, e: x * (1 + (_bipolarplus(x - a, e) - _bipolarplus(x + a, e)) / 2), "Pan 2023",
        _pan(250.5, 0, -INF, INF, (-INF, INF), True), _with(a=fixed(0.5, 0.0)), confidence="b",
    ),
    row(
        "TSAFPlus", r"\tfrac14\left(m(x-a+c) + m(x-a) + m(x+b-c) - m(x+b)\right),\ m(t)=\sqrt{t^2+e}",
        lambda x, a, b, c, e: (_root(x - a + c, e) + _root(x - a, e) + _root_difference(x, c - b, -b, e)) / 4,
        "Pan 2023",
        _pan(0.5, -0.5, ROOT / 2, INF, (INF, INF), False), _with(a=fixed(0.5), b=fixed(0.5), c=fixed(1.0)),
        confidence="c",
        note="Read as a secondary source prints it; with a = b = c/2 it is half of a smoothed |x - a|, no trapezoid.",
    ),
    row(
        "ELUPlus", r"\tfrac12(x + m(x)) + \tfrac12(g - m(g)),\ g=a(e^x-1),\ m(t)=\sqrt{t^2+e}", _eluplus, "Pan 2023",
        _pan(1, 1, -1, INF, (-1, INF), True), _with(a=fixed(1.0)), confidence="c",
        note="Read as smooth max(0, x) + smooth min(0, a(e^x - 1)); a secondary source adds and divides by a.",
    ),
    row(
        "SwishPlus", r"\tfrac{x}{2}\left(1 + \frac{x}{\sqrt{x^2+e}}\right)",
        lambda x, e: floor_at_lowest(x) * _stepplus(x, e), "Pan 2023",
        _pan(1.044331, 0.5, -0.150142 * ROOT, INF, (0, INF), False), E6, confidence="b",
    ),
    row(
        "MishPlus", r"x\,\frac{p}{\sqrt{p^2+e}},\ p=\tfrac12(x+\sqrt{x^2+e})", _mishplus, "Pan 2023",
        _pan(1.052278, 0.2**0.5, -ROOT / 4, INF, (-ROOT / 4, INF), True), E6, confidence="c",
        note="Read as x BipolarPlus(SquarePlus(x)), after x tanh(softplus(x)); elsewhere BipolarPlus stands twice.",
    ),
    row(
        "LogishPlus", r"x \ln\left(1 + \tfrac12\left(1 + \frac{x}{\sqrt{x^2+e}}\right)\right)",
        lambda x, e: floor_at_lowest(x) * torch.log1p(_stepplus(x, e)), "Pan 2023",
        _pan(0.717644, math.log(1.5), -0.137946 * ROOT, INF, (0, INF), False), E6, confidence="b",
    ),
    row(
        "SoftsignPlus", r"\frac{x}{1+\sqrt{x^2+e}}", lambda x, e: finite(x) / (1 + _root(finite(x), e)), "Pan 2023",
        _pan(1, 1 / (1 + ROOT), -1, 1, (-1, 1), True), E6, confidence="b",
    ),
    row(
        "SignReLUPlus", r"\tfrac12(x+m(x)) + \frac{x-m(x)}{2m(1-x)},\ m(t)=\sqrt{t^2+e}",
        lambda x, e: _squareplus(x, e) - _squareplus(-finite(x), e) / _root(1 - finite(x), e), "Pan 2023",
        _pan(1 + 1 / (6 * 3**0.5), 1, -1, INF, (-1, INF), True), E6, confidence="b",
    ),
    row(
        "SmoothReLU", r"\begin{cases}0 & x\le 0\\ x^2/(2a) & x\le a\\ x-a/2 & x>a\end{cases}", _smooth_relu,
        "Shamir 2020",
        HUBER, {"a": fixed(1.0, 1e-6)}, aliases=("Huber ReLU",),
    ),
    row(
        "SmeLU", r"\begin{cases}0 & x\le -b\\ (x+b)^2/(4b) & |x|<b\\ x & x\ge b\end{cases}", _smelu, "Shamir 2022",
        Properties((0, INF), (0, INF), 1, True, 1, 0.5, dead=(-INF, -1)), {"b": fixed(1.0, 1e-6)},
    ),
    row(
        "GReLU softplus log-base",
        r"\frac{\ln(1+\hat a^{\hat b x})}{\hat b\ln \hat a},\ \hat a=1+\ln(1+e^a),\ \hat b=\ln(1+e^b)",
        _log_base, "survey", RELU_LIKE,
        {"a": trainable(math.log(math.expm1(math.e - 1))), "b": trainable(math.log(math.expm1(1)))}, confidence="b",
        note="Starts as softplus: base e, rate 1.",
    ),
    row(
        "UAF", r"\ln(1+e^{A(x+B)+Cx^2}) - \ln(1+e^{D(x-B)}) + E", _uaf, "Yuen 2021",
        Properties((-INF, 51005.01), (-INF, 0.01), INF, False, 1.01, 1.01),
        {k: trainable(v) for k, v in {"A": 1.01, "B": 5e-4, "C": -5e-6, "D": -1.01, "E": 0.01}.items()}, confidence="b",
        note="At its initial values close to the identity on [-1000, 1000].",
    ),
)  # fmt: skip
