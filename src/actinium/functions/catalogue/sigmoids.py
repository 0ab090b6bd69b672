"""Sigmoids and hyperbolic tangents without trained parameters, and a few that have them and belong here."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from actinium.functions.argument_bounds import LEAST, at_least, between, logarithm, tensor_like
from actinium.functions.gates import algebraic, apa, aranda_ordaz, capped_exp
from actinium.functions.registry import INF, Properties, fixed, row, trainable
from actinium.functions.stable import finite, floor_at_lowest, gumbel, hypot, neg, power, sig, softplus

__all__ = ["FAMILY", "ROWS"]

FAMILY = "sigmoid and tanh"


def _abs(x: Tensor) -> Tensor:
    # Unlike abs, its derivatives at 0 are those from the right, so that even functions of it have their own there.
    return torch.where(x >= 0, x, -x)


def _sech(x: Tensor) -> Tensor:
    z = torch.exp(-_abs(x))
    return 2 * z / (1 + z.square())


def _squashed(x: Tensor, b: Tensor | float = 1.0) -> Tensor:
    x = finite(x)
    return x / (b + _abs(x))


def _sigmoid_algebraic(x: Tensor, a: Tensor | float) -> Tensor:
    # Numerator and denominator divided by 1 + a|x|, so that neither grows like x squared.
    x = finite(x)
    return sig(x / (1 / (1 + a * _abs(x)) + _abs(x)))


def _improved_logistic(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    middle = between(x, -b, b)
    return sig(middle) + a * (x - middle)


def _penalised_tanh(x: Tensor, a: Tensor | float) -> Tensor:
    y = torch.tanh(x)
    return torch.where(x >= 0, y, y / a)


def _soft_root_sign(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    a, b, x = at_least(a), at_least(b), finite(x)
    right = x / (x.clamp(min=0.0) / a + torch.exp(-x.clamp(min=0.0) / b))
    left = neg(x) * torch.exp(neg(x) / b)  # both parts multiplied by e^(x/b)
    return torch.where(x >= 0, right, left / (left / a + 1))


def _soft_clipping(x: Tensor, a: Tensor | float) -> Tensor:
    # From the nearer end, so that no two large numbers are subtracted.
    low, high = x.clamp(max=0.5), x.clamp(min=0.5)
    left = (softplus(a * low) - softplus(a * (low - 1))) / a
    right = 1 + (softplus(-a * high) - softplus(a * (1 - high))) / a
    return torch.where(x > 0.5, right, left)


def _hexpo(x: Tensor, a: Tensor | float, b: Tensor | float, c: Tensor | float, d: Tensor | float) -> Tensor:
    return torch.where(x >= 0, -a * torch.expm1(-x.clamp(min=0.0) / b), c * torch.expm1(neg(x) / d))


def _smooth_step(x: Tensor, a: Tensor | float) -> Tensor:
    u = (x / a).clamp(-0.5, 0.5)
    return -2 * u**3 + 1.5 * u + 0.5


def _tanh_sum(y: Tensor) -> Tensor:
    return y / torch.sqrt(1 + y.square())


def _multistate(x: Tensor, a: Tensor | float, b: Tensor | float, n: int) -> Tensor:
    return a + sum(sig(x - b * k) for k in range(n))  # type: ignore[no-any-return]


def _rootsig(x: Tensor, a: Tensor | float) -> Tensor:
    u = finite(a * x)
    return u / (1 + hypot(u, torch.ones_like(u)))


def _isru(x: Tensor, a: Tensor | float) -> Tensor:
    root = torch.sqrt(tensor_like(a, x))
    return algebraic(root * x) / root


def _sqnl(x: Tensor) -> Tensor:
    u = x.clamp(-2.0, 2.0)
    return u - u * u.abs() / 4


def _saha_bora(x: Tensor, k: Tensor | float, a: Tensor | float) -> Tensor:
    u = x.clamp(0.0, 1.0)
    return 1 / (1 + k * power(u, a) * power(1 - u, 1 - a))


def _richards(
    x: Tensor, L: Tensor | float, U: Tensor | float, Q: Tensor | float, B: Tensor | float, v: Tensor | float
) -> Tensor:
    return L + (U - L) * torch.exp(-softplus(logarithm(Q) - B * x) / v)


P = Properties
ALL = (-INF, INF)
LOGISTIC = P((0, 1), (0, 1), INF, True, 0.25, 0.25)
TANH = P((-1, 1), (-1, 1), INF, True, 1, 1)
HARD_TANH = P((-1, 1), (-1, 1), 0, True, 1, 1, dead=(-INF, -1))
SQUARE = math.sqrt(2)
SHIFTED = "the same as Hard tanh at its default"

ROWS = (
    row("Sigmoid", r"\frac{1}{1 + e^{-x}}", lambda x: sig(x), "-", LOGISTIC, aliases=("logistic",)),
    row("Tanh", r"\tanh x", lambda x: torch.tanh(x), "-", TANH),
    row("Bipolar sigmoid", r"\frac{1 - e^{-x}}{1 + e^{-x}}", lambda x: torch.tanh(x / 2), "-",
        P((-1, 1), (-1, 1), INF, True, 0.5, 0.5)),
    row("Shifted scaled sigmoid", r"\sigma(a (x - b))", lambda x, a, b: sig(a * (x - b)), "survey", LOGISTIC,
        {"a": fixed(1.0), "b": fixed(0.0)}, aliases=("SSS",)),
    row("Variant sigmoid", r"\frac{a}{1 + e^{-b x}} - c", lambda x, a, b, c: a * sig(b * x) - c, "Han 1995", LOGISTIC,
        {"a": fixed(1.0), "b": fixed(1.0), "c": fixed(0.0)}, aliases=("VSF",)),
    row("Scaled tanh", r"a \tanh(b x)", lambda x, a, b: a * torch.tanh(b * x), "LeCun 1998",
        P((-1.7159, 1.7159), (-1.7159, 1.7159), INF, True, 1.14393, 1.14393), {"a": fixed(1.7159), "b": fixed(2 / 3)},
        aliases=("stanh",)),
    row("Arctan", r"\arctan x", lambda x: torch.atan(x), "-",
        P((-math.pi / 2, math.pi / 2), (-math.pi / 2, math.pi / 2), INF, True, 1, 1)),
    row("Arctan-GR", r"\frac{\arctan x}{1 + \sqrt 2}", lambda x: torch.atan(x) / (1 + SQUARE), "survey",
        P((-0.650645, 0.650645), (-0.650645, 0.650645), INF, True, SQUARE - 1, SQUARE - 1), confidence="c",
        note="the ratio is read as 1 + sqrt 2, the silver one, though the name speaks of the golden one"),
    row("Scaled arctan", r"\frac{2}{\pi} \arctan(\frac{\pi x}{2})",
        lambda x: torch.atan(math.pi / 2 * x) * (2 / math.pi), "-", TANH),
    row("Erf", r"\operatorname{erf} x", lambda x: torch.erf(x), "-",
        P((-1, 1), (-1, 1), INF, True, 2 / math.sqrt(math.pi), 2 / math.sqrt(math.pi))),
    row("Gudermannian", r"2 \arctan(\tanh(x / 2))", lambda x: 2 * torch.atan(torch.tanh(x / 2)), "-",
        P((-math.pi / 2, math.pi / 2), (-math.pi / 2, math.pi / 2), INF, True, 1, 1)),
    row("Algebraic sigmoid", r"\frac{x}{\sqrt{1 + x^2}}", algebraic, "-", TANH),
    row("Sigmoid-algebraic", r"\sigma(\frac{x (1 + a |x|)}{1 + |x| (1 + a |x|)})", _sigmoid_algebraic, "survey",
        P((0.268941, 0.731059), (0.268941, 0.731059), 3, True, 0.25, 0.25), {"a": fixed(1.0, 0.0)}, confidence="b"),
    row("Triple-state sigmoid", r"\sigma(x) + \sigma(x - a) + \sigma(x - b)",
        lambda x, a, b: sig(x) + sig(x - a) + sig(x - b), "survey", P((0, 3), (0, 3), INF, True, 0.25, 0.25),
        {"a": fixed(20.0), "b": fixed(40.0)}, aliases=("TSS",), confidence="b"),
    row("Improved logistic sigmoid", r"\sigma(x) \text{ if } |x| < b \text{ else } a (x \mp b) + \sigma(\pm b)",
        _improved_logistic, "Qin 2018", P(ALL, ALL, 0, True, 0.25, 0.25), {"a": fixed(0.2, 0.0), "b": fixed(2.0, 0.0)},
        confidence="b"),
    row("SigLin", r"\sigma(x) + a x", lambda x, a: sig(x) + a * x, "Roodschild 2020",
        P(ALL, ALL, INF, True, 0.35, 0.35), {"a": fixed(0.1)}, confidence="b"),
    row("Penalised tanh", r"\tanh x \text{ if } x \ge 0 \text{ else } \tanh(x) / a", _penalised_tanh, "Xu 2016",
        P((-0.25, 1), (-0.25, 1), 0, True, 1, math.nan), {"a": fixed(4.0, LEAST)}),
    row("Soft-root-sign", r"\frac{x}{x / a + e^{-x / b}}", _soft_root_sign, "Zhou 2020",
        P((-2.462853, 2), (0, 2), INF, False, 1.167979, 1), {"a": trainable(2.0, LEAST), "b": trainable(3.0, LEAST)},
        aliases=("SRS",), note="has no pole while b < e a"),
    row("Soft clipping", r"\frac 1 a \ln \frac{1 + e^{a x}}{1 + e^{a (x - 1)}}", _soft_clipping, "Klimek 2018",
        P((0, 1), (0, 1), INF, True, 1, 0.5), {"a": fixed(50.0, LEAST)}, aliases=("SC",)),
    row("Hexpo", r"-a (e^{-x / b} - 1) \text{ if } x \ge 0 \text{ else } c (e^{x / d} - 1)", _hexpo, "Kong 2017",
        P((-1, 1), (-1, 1), 1, True, 1, 1),
        {"a": fixed(1.0), "b": fixed(1.0, LEAST), "c": fixed(1.0), "d": fixed(1.0, LEAST)}),
    row("Softsign", r"\frac{x}{1 + |x|}", lambda x: _squashed(x), "Bergstra 2009", P((-1, 1), (-1, 1), 1, True, 1, 1)),
    row("Elliott", r"\frac{x}{2 (1 + |x|)} + \frac 1 2", lambda x: _squashed(x) / 2 + 0.5, "Elliott 1993",
        P((0, 1), (0, 1), 1, True, 0.5, 0.5)),
    row("Smooth step", r"-\frac{2 x^3}{a^3} + \frac{3 x}{2 a} + \frac 1 2 \text{ for } |x| \le a / 2", _smooth_step,
        "Hazimeh 2020", P((0, 1), (0, 1), 1, True, 1.5, 1.5, dead=(-INF, -0.5)), {"a": fixed(1.0, LEAST)}),
    row("Sinc-sigmoid", r"\operatorname{sinc}(\sigma(x)), \operatorname{sinc}(t) = \frac{\sin \pi t}{\pi t}",
        lambda x: torch.sinc(sig(x.clamp(min=-30.0))), "survey", P((0, 1), (1, 0), INF, True, 0.328192, -1 / math.pi),
        confidence="b"),
    row("Sigmoid-Gumbel", r"\sigma(x) e^{-e^{-x}}", lambda x: sig(x) * gumbel(x), "Kaytan 2022",
        P((0, 1), (0, 1), INF, True, 0.337198, 0.75 / math.e), confidence="c", note="read as the product of the two"),
    row("New sigmoid", r"\frac{e^x - e^{-x}}{\sqrt{2 (e^{2 x} + e^{-2 x})}}", lambda x: _tanh_sum(torch.tanh(x)),
        "survey", P((-1 / SQUARE, 1 / SQUARE), (-1 / SQUARE, 1 / SQUARE), INF, True, 1, 1), confidence="c",
        note="the sum of squares stands under the root, so that it saturates"),
    row("Root2sigmoid", r"\frac{r^x - r^{-x}}{2 \sqrt 2 \sqrt{2 (r^{2 x} + r^{-2 x})}}, r = \sqrt 2",
        lambda x: _tanh_sum(torch.tanh(x * (math.log(2) / 2))) / (2 * SQUARE), "survey",
        P((-0.25, 0.25), (-0.25, 0.25), INF, True, 0.122532, 0.122532), confidence="c",
        note="the powers of r stand under the root, so that it saturates"),
    row("LogLog", r"e^{-e^{-x}}", lambda x: gumbel(x), "Gomes 2011",
        P((0, 1), (0, 1), INF, True, 1 / math.e, 1 / math.e), aliases=("Gompertz",)),
    row("Complementary loglog", r"1 - e^{-e^x}", lambda x: -torch.expm1(-capped_exp(x)), "Gomes 2011",
        P((0, 1), (0, 1), INF, True, 1 / math.e, 1 / math.e), aliases=("cloglog",)),
    row("Modified cloglog", r"1 - 2 e^{-0.7 e^x}", lambda x: 1 - 2 * torch.exp(-0.7 * capped_exp(x)), "Gomes 2011",
        P((-1, 1), (-1, 1), INF, True, 2 / math.e, 0.695219), aliases=("cloglogm",)),
    row("SechSig", r"(x + \operatorname{sech} x) \sigma(x)", lambda x: (floor_at_lowest(x) + _sech(x)) * sig(x),
        "Kozyrskiy 2021", P((-0.209743, INF), (0, INF), INF, False, 1.017412, 0.75), confidence="b"),
    row("Parametric SechSig", r"(x + a \operatorname{sech}(x + a)) \sigma(x)",
        lambda x, a: (floor_at_lowest(x) + a * _sech(x + a)) * sig(x), "survey",
        P((-0.164376, INF), (0, INF), INF, False, 1.054955, 0.415236), {"a": fixed(1.0)}, confidence="b"),
    row("TanhSig", r"(x + \tanh x) \sigma(x)", lambda x: (floor_at_lowest(x) + torch.tanh(x)) * sig(x), "survey",
        P((-0.474916, INF), (0, INF), INF, False, 1.389842, 1), confidence="b"),
    row("Parametric TanhSig", r"(x + a \tanh(x + a)) \sigma(x)",
        lambda x, a: (floor_at_lowest(x) + a * torch.tanh(x + a)) * sig(x), "survey",
        P((-0.359135, INF), (0, INF), INF, False, 1.212290, 0.900386), {"a": fixed(1.0)}, confidence="b"),
    row("Multistate", r"a + \sum_{k=0}^{n-1} \sigma(x - k b)", _multistate, "Cai 2015",
        P((0, 2), (0, 2), INF, True, 0.256830, 0.256648),
        {"a": fixed(0.0), "b": fixed(5.0), "n": fixed(2, 1, whole=True)}, aliases=("MSAF",), confidence="b",
        note="the thresholds, free in the source, are 0, b, 2 b, ... here"),
    row("Symmetric MSAF", r"-1 + \sigma(x) + \sigma(x + a)", lambda x, a: sig(x) + sig(x + a) - 1, "survey",
        P((-1, 1), (-1, 1), INF, True, 0.470007, 0.446612), {"a": fixed(1.0)}, confidence="c",
        note="symmetric about -a/2, as the formula of the source has it"),
    row("Rootsig", r"\frac{a x}{1 + \sqrt{1 + a^2 x^2}}", _rootsig, "survey", P((-1, 1), (-1, 1), INF, True, 0.5, 0.5),
        {"a": fixed(1.0)}, confidence="b"),
    row("Scaled softsign", r"\frac{a x}{b + |x|}", lambda x, a, b: a * _squashed(x, at_least(b)), "Pishchik 2023",
        P((-1, 1), (-1, 1), 1, True, 1, 1), {"a": trainable(1.0), "b": trainable(1.0, LEAST)}),
    row("SoftTanh", r"\frac{a x}{\sqrt{1 + a^2 x^2}}", lambda x, a: algebraic(a * x), "survey",
        P((-1, 1), (-1, 1), INF, True, 2, 2), {"a": fixed(2.0)}, confidence="b"),
    row("Sigmoid-tanh combination", r"\sigma(x) \text{ if } x \ge 0 \text{ else } \tanh x",
        lambda x: torch.where(x >= 0, sig(x), torch.tanh(x)), "survey", P((-1, 1), (-1, 1), -1, True, INF, math.nan),
        confidence="b", note="jumps from 0 to 1/2 at 0"),
    row("ISRU", r"\frac{x}{\sqrt{1 + a x^2}}", _isru, "Carlile 2017", TANH, {"a": fixed(1.0, LEAST)}),
    row("SQNL", r"x \mp \frac{x^2}{4} \text{ for } |x| \le 2, \text{ else } \pm 1", _sqnl, "Wuraola 2018",
        P((-1, 1), (-1, 1), 1, True, 1, 1, dead=(-INF, -2))),
    row("Log-SQNL", r"\frac 1 2 + \frac x 2 \mp \frac{x^2}{8} \text{ for } |x| \le 2", lambda x: (_sqnl(x) + 1) / 2,
        "Wuraola 2021", P((0, 1), (0, 1), 1, True, 0.5, 0.5, dead=(-INF, -2))),
    row("Hard sigmoid v1", r"\min(\max(\frac{x + 1}{2}, 0), 1)", lambda x: ((x + 1) / 2).clamp(0.0, 1.0),
        "Courbariaux 2015", P((0, 1), (0, 1), 0, True, 0.5, 0.5, dead=(-INF, -1))),
    row("Hard sigmoid v2", r"\min(\max(0.2 x + 0.5, 0), 1)", lambda x: (0.2 * x + 0.5).clamp(0.0, 1.0), "Keras, Theano",
        P((0, 1), (0, 1), 0, True, 0.2, 0.2, dead=(-INF, -2.5))),
    row("Hard sigmoid v3", r"\min(\max(\frac{x + 3}{6}, 0), 1)", lambda x: ((x + 3) / 6).clamp(0.0, 1.0), "torch",
        P((0, 1), (0, 1), 0, True, 1 / 6, 1 / 6, dead=(-INF, -3)), aliases=("Hard sigmoid",)),
    row("Hard tanh", r"\min(\max(x, a), b)", lambda x, a, b: between(x, a, b), "Collobert 2004", HARD_TANH,
        {"a": fixed(-1.0), "b": fixed(1.0)}, note="a is less than b"),
    row("Shifted hard tanh, horizontal", r"\min(\max(x + a, -1), 1)", lambda x, a: (x + a).clamp(-1.0, 1.0), "Kim 2021",
        HARD_TANH, {"a": fixed(0.0)}, confidence="b", note=SHIFTED),
    row("Shifted hard tanh, vertical", r"\min(\max(x, -1), 1) + a", lambda x, a: x.clamp(-1.0, 1.0) + a, "Kim 2021",
        HARD_TANH, {"a": fixed(0.0)}, confidence="b", note=SHIFTED),
    row("Saha-Bora", r"\frac{1}{1 + k x^a (1 - x)^{1 - a}}", _saha_bora, "Saha 2018",
        P((0.671141, 0.911154), (0.911154, 0.911154), INF, False, 4.006716, math.nan, domain=(0.01, 0.99)),
        {"k": fixed(0.98, 0.0), "a": fixed(0.5, 0.0, 1.0)}, aliases=("SBAF",),
        note="defined on 0..1, where its slope grows without bound towards the ends; 1 outside"),
    row("Aranda-Ordaz", r"1 - (1 + a e^x)^{-1 / a}", aranda_ordaz, "Gomes 2011",
        P((0, 1), (0, 1), INF, True, 0.19245, 0.19245), {"a": fixed(2.0, LEAST)}),
    row("LogSigmoid", r"\ln \sigma(x)", lambda x: functional.logsigmoid(x), "torch",
        P((-INF, 0), (-INF, 0), INF, True, 1, 0.5)),
    row("Dynamic tanh", r"g \tanh(a x) + b", lambda x, a, g, b: g * torch.tanh(a * x) + b, "Zhu 2025",
        P((-1, 1), (-1, 1), INF, True, 0.5, 0.5), {"a": trainable(0.5), "g": trainable(1.0), "b": trainable(0.0)},
        aliases=("DyT",)),
    row("Generalised logistic", r"L + \frac{U - L}{(1 + Q e^{-B x})^{1 / v}}", _richards, "Richards 1959", LOGISTIC,
        {"L": fixed(0.0), "U": fixed(1.0), "Q": fixed(1.0, LEAST), "B": fixed(1.0), "v": fixed(1.0, LEAST)},
        aliases=("Richards",)),
    row("APA", r"(l e^{-k x} + 1)^{-1 / l}", apa, "Alexandridis 2024", P((0, 1), (0, 1), INF, True, 4 / 27, 4 / 27),
        {"l": trainable(0.5, 1e-4, drawn=(1e-4, 1.0)), "k": trainable(0.5, drawn=(0.0, 1.0))}),
)  # fmt: skip
