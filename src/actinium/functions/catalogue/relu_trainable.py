"""Rectifiers with trained parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from actinium.functions.argument_bounds import LEAST, at_least
from actinium.functions.rectifiers import (
    damped,
    leaky,
    relu_and_sine,
    size_of,
    softsign_left,
    split,
    tent,
)
from actinium.functions.registry import INF, Properties, fixed, row, trainable
from actinium.functions.stable import cdf, finite, hypot, neg, pos, sig, softplus
from actinium.functions.units.piecewise_linear_units import AdaptivePiecewiseLinear, PiecewiseLinearUnit
from actinium.functions.units.wavelet_units import GaussianReLU, MexicanReLU

__all__ = ["FAMILY", "ROWS"]

FAMILY = "ReLU, trainable"

NAN = math.nan
MISH_MIN = -0.30884341


def _preu(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    left = damped(x)
    return a * split(x, x, left * torch.exp(at_least(b, 0.0) * left))


def _smu(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    return x * (((1 + a) + (1 - a) * torch.erf(b * (1 - a) * x)) / 2)


def _smu1(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    within = finite(x)
    width = torch.as_tensor(at_least(b), dtype=x.dtype, device=x.device)
    y = within * ((1 + a) / 2) + hypot(within * ((1 - a) / 2), width / 2)
    return torch.where(x.isinf(), leaky(x, a), y)


def _sau(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    b = at_least(b)
    bump = torch.exp(-(b * x).clamp(-40.0, 40.0).square() / 2) * ((1 - a) / (b * math.sqrt(2 * math.pi)))
    # The mean slope left of 0 and right of it, written so that nothing cancels far out.
    return bump + x * (a + (1 - a) * cdf(b * x))


def _arelu(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    gain = 1 + (sig(b) if isinstance(b, Tensor) else 1 / (1 + math.exp(-b)))
    low = a.clamp(0.01, 0.99) if isinstance(a, Tensor) else min(max(a, 0.01), 0.99)
    return split(x, gain * x, low * x)


def _srelu(x: Tensor, r: Tensor | float, p: Tensor | float, l: Tensor | float, q: Tensor | float) -> Tensor:  # noqa: E741
    return torch.where(x >= r, r + p * (x - r), torch.where(x <= l, l + q * (x - l), x))


def _n_activation(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    middle, half = (a + b) / 2, size_of(a - b) / 2
    low, high = middle - half, middle + half
    return torch.where(x < low, x - 2 * low, torch.where(x > high, x - 2 * high, -x))


def _lisa(x: Tensor, p: Tensor | float, q: Tensor | float) -> Tensor:
    return torch.where(x >= 1, p * x - p + 1, leaky(x, q))


def _reltanh(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    inner = x.clamp(min=a).clamp(max=b)
    height = torch.tanh(inner)
    return height + (1 - height.square()) * (x - inner)


def _blu(x: Tensor, a: Tensor | float) -> Tensor:
    return x + a * (hypot(finite(x), torch.ones((), dtype=x.dtype, device=x.device)) - 1)


def _repsu(
    x: Tensor, a: Tensor | float, b: Tensor | float, c: Tensor | float, d: Tensor | float, e: Tensor | float
) -> Tensor:  # fmt: skip
    e = at_least(e)
    width = e.log() if isinstance(e, Tensor) else math.log(e)
    right = x.clamp(min=b)
    shift = right - c
    # |shift|^d / e by logarithms: beyond e^6 the logistic function is 0 or 1.
    size = torch.exp((at_least(d) * torch.log(shift.abs().clamp(min=1e-30)) - width).clamp(max=6.0))
    gate = sig(torch.sign(shift) * size)
    y = right * ((2 - 2 * a) + (2 * a - 1) * gate) - (2 * a - 1) * b * gate
    return torch.where(x < b, 0.0, y)


def _polynomial(
    x: Tensor, a0: Tensor | float, a1: Tensor | float, a2: Tensor | float, a3: Tensor | float
) -> Tensor:  # fmt: skip
    r = pos(x)
    # Where the cube overflows it has no gradient that could be used.
    beyond = r > torch.finfo(x.dtype).max ** (1 / 3)
    near = torch.where(beyond, 0.0, r)
    y, far = (a0 + t * (a1 + t * (a2 + t * a3)) for t in (near, r))
    return torch.where(beyond, far.detach(), y)


def _xielu(x: Tensor, p: Tensor | float, n: Tensor | float, b: Tensor | float) -> Tensor:
    gains = [softplus(torch.as_tensor(v, dtype=x.dtype, device=x.device)) for v in (p, n)]
    left = neg(x)
    return split(x, x * (gains[0] * pos(x) + b), (b + gains[1]) * torch.expm1(left) - gains[1] * left)


RAMP = Properties((0, INF), (0, INF), 0, True, 1, NAN, dead=(-INF, 0))
LEAKY = Properties((-INF, INF), (-INF, INF), 0, True, 1, NAN)
LINE = Properties((-INF, INF), (-INF, INF), INF, True, 1, 1)

ROWS = (
    row("PReLU", r"x \text{ if } x \ge 0 \text{ else } a x", leaky, "He 2015", LEAKY, {"a": trainable(0.25)}),
    row(
        "PReLU+", r"a \max(0, x)", lambda x, a: a * pos(x), "survey", RAMP, {"a": trainable(1.0)}, confidence="b",
        aliases=("positive PReLU",),
    ),
    row(
        "Flexible ReLU", r"\max(0, x) + b", lambda x, b: pos(x) + b, "Qiu 2018",
        Properties((-0.398, INF), (-0.398, INF), 0, True, 1, NAN, dead=(-INF, 0)), {"b": trainable(-0.398)},
    ),
    row(
        "ShiLU", r"a \max(0, x) + b", lambda x, a, b: a * pos(x) + b, "Pishchik 2023", RAMP,
        {"a": trainable(1.0), "b": trainable(0.0)},
    ),
    row(
        "RPReLU", r"b + (x - a \text{ if } x > a \text{ else } c (x - a))", lambda x, a, b, c: leaky(x - a, c) + b,
        "Liu 2020",
        LEAKY, {"a": trainable(0.0), "b": trainable(0.0), "c": trainable(0.25)},
    ),
    row(
        "LeLeLU", r"a x \text{ if } x \ge 0 \text{ else } 0.01 a x", lambda x, a: a * leaky(x, 0.01),
        "Maniatopoulos 2021",
        LEAKY, {"a": trainable(1.0)},
    ),
    row(
        "PREU", r"a x \text{ if } x \ge 0 \text{ else } a x e^{b x}", _preu, "Ying 2019",
        Properties((-math.exp(-1), INF), (0, INF), 1, False, 1, 1), {"a": trainable(1.0), "b": trainable(1.0, 0)},
    ),
    row(
        "SMU", r"\frac{1}{2} ((1 + a) x + (1 - a) x \operatorname{erf}(b (1 - a) x))", _smu, "Biswas 2021",
        Properties((-INF, INF), (-INF, INF), INF, True, 1.0966779, 0.625), {"a": trainable(0.25), "b": trainable(25.0)},
        note="a smooth maximum of x and a x; its authors start b at 25, others at 10^6",
    ),
    row(
        "SMU-1", r"\frac{1}{2} ((1 + a) x + \sqrt{(1 - a)^2 x^2 + b^2})", _smu1, "Biswas 2021",
        Properties((-INF, INF), (-INF, INF), INF, True, 1, 0.625),
        {"a": trainable(0.25), "b": trainable(4.35e-5, LEAST)},
    ),
    row(
        "SAU",
        r"\frac{1 - a}{b \sqrt{2 \pi}} e^{-b^2 x^2 / 2} "
        r"+ \frac{x}{2} ((1 + a) + (1 - a) \operatorname{erf}(b x / \sqrt 2))",
        _sau, "Biswas 2021", Properties((-INF, INF), (-INF, INF), INF, True, 1, 0.575),
        {"a": trainable(0.15), "b": trainable(20000.0, LEAST)}, confidence="b",
        note="LeakyReLU convolved with a normal density of standard deviation 1 / b",
    ),
    row(
        "AReLU", r"(1 + \sigma(b)) x \text{ if } x \ge 0 \text{ else } \min(\max(a, 0.01), 0.99) x", _arelu,
        "Chen 2020",
        Properties((-INF, INF), (-INF, INF), 0, True, 1.8807970780, NAN), {"a": trainable(0.9), "b": trainable(2.0)},
    ),
    row(
        "DPReLU", r"a x \text{ if } x \ge 0 \text{ else } b x", lambda x, a, b: split(x, a * x, b * x), "Balaji 2019",
        LEAKY,
        {"a": trainable(1.0), "b": trainable(0.01)},
    ),
    row(
        "Dual line", r"m + (a x \text{ if } x \ge 0 \text{ else } b x)", lambda x, a, b, m: split(x, a * x, b * x) + m,
        "Balaji 2019", LEAKY, {"a": trainable(1.0), "b": trainable(0.01), "m": trainable(-0.22)},
    ),
    row(
        "PiLU", r"a x + c (1 - a) \text{ if } x \ge c \text{ else } b x + c (1 - b)",
        lambda x, a, b, c: torch.where(x >= c, a * x + c * (1 - a), b * x + c * (1 - b)), "Inturrisi 2021", LEAKY,
        {"a": trainable(1.0), "b": trainable(0.01), "c": trainable(0.0)},
    ),
    row(
        "DPAF", r"m + (a \tanh x \text{ if } x \ge 0 \text{ else } \tanh x)",
        lambda x, a, m: split(x, a * torch.tanh(x), torch.tanh(x)) + m, "survey",
        Properties((-1, 1), (-1, 1), INF, True, 1, 1), {"a": trainable(1.0), "m": trainable(0.0)}, confidence="b",
        note="defined for any function; here for tanh. It is smooth while a is 1",
    ),
    row(
        "FPAF", r"a x \text{ if } x \ge 0 \text{ else } b \tanh x",
        lambda x, a, b: split(x, a * x, b * torch.tanh(x)), "survey",
        Properties((-1, INF), (-1, INF), 2, True, 1, 1), {"a": trainable(1.0), "b": trainable(1.0)}, confidence="b",
        note="defined for any two functions; here for the identity and tanh",
    ),
    row(
        "Adaptive hard tanh", r"\min(\max(a (x - b), -1), 1)", lambda x, a, b: (a * (x - b)).clamp(-1.0, 1.0), "survey",
        Properties((-1, 1), (-1, 1), 0, True, 1, 1, dead=(-INF, -1)), {"a": fixed(1.0, LEAST), "b": trainable(0.0)},
        confidence="b", note="a is to grow while training: set settings['a'] of the module",
    ),
    row(
        "SReLU",
        r"r + p (x - r) \text{ if } x \ge r \text{ else } l + q (x - l) \text{ if } x \le l \text{ else } x", _srelu,
        "Jin 2016",
        LEAKY, {"r": trainable(1.0), "p": trainable(1.0), "l": trainable(0.0), "q": trainable(0.1)},
        aliases=("S-shaped ReLU",),
    ),
    row(
        "N-activation",
        r"x - 2l \text{ if } x < l \text{ else } x - 2u \text{ if } x > u \text{ else } -x,\ "
        r"l, u = \min(a, b), \max(a, b)",
        _n_activation, "Prach 2023", Properties((-INF, INF), (-INF, INF), 0, False, 1, -1),
        {"a": trainable(-0.5), "b": trainable(0.5)}, confidence="b",
    ),
    row(
        "ALiSA", r"p x - p + 1 \text{ if } x \ge 1 \text{ else } x \text{ if } x \ge 0 \text{ else } q x", _lisa,
        "Bawa 2019",
        LEAKY, {"p": trainable(1.0), "q": trainable(0.1)}, aliases=("LiSA",), confidence="b",
        note="LiSA where its parameters are not trained",
    ),
    row(
        "APL", r"\max(0, x) + \sum_{s=1}^{S} a_s \max(0, b_s - x)", None, "Agostinelli 2014", None, None,
        module=AdaptivePiecewiseLinear, arity="channels", kind="trainable", aliases=("adaptive piecewise linear",),
    ),
    row(
        "PWLU", r"\text{linear between } N + 1 \text{ knots on } [L, R]", None, "Zhou 2021", None, None,
        module=PiecewiseLinearUnit, arity="channels", kind="trainable",
        note="align() puts the interval around the inputs that were seen while training",
    ),
    row(
        "PTELU", r"x \text{ if } x \ge 0 \text{ else } a \tanh(b x)",
        lambda x, a, b: split(x, x, a * torch.tanh(b * x)), "Duggal 2017",
        Properties((-1, INF), (-1, INF), 2, True, 1, 1), {"a": trainable(1.0), "b": trainable(1.0)},
    ),
    row(
        "TReLU (b)", r"x \text{ if } x \ge 0 \text{ else } \tanh(b x)", lambda x, b: split(x, x, torch.tanh(b * x)),
        "Lin 2019",
        Properties((-1, INF), (-1, INF), 2, True, 1, 1), {"b": trainable(1.0)}, aliases=("TReLU-b",),
    ),
    row(
        "TReLU2 (a)", r"x \text{ if } x \ge 0 \text{ else } a \tanh x", lambda x, a: split(x, x, a * torch.tanh(x)),
        "survey",
        Properties((-1, INF), (-1, INF), 2, True, 1, 1), {"a": trainable(1.0)}, aliases=("TReLU2",), confidence="b",
    ),
    row(
        "TaLU", r"x \text{ if } x \ge 0 \text{ else } \tanh(\max(x, a))",
        lambda x, a: split(x, x, torch.tanh(x.clamp(min=a))), "Hasan 2020",
        Properties((math.tanh(-1), INF), (math.tanh(-1), INF), 0, True, 1, 1, dead=(-INF, -1)),
        {"a": trainable(-1.0, high=0)}, confidence="b",
    ),
    row(
        "PTaLU", r"x \text{ if } x \ge b \text{ else } \tanh(\max(x, a))",
        lambda x, a, b: torch.where(x >= b, x, torch.tanh(x.clamp(min=a))), "Mercioni",
        Properties((math.tanh(-0.75), INF), (math.tanh(-0.75), INF), -1, True, INF, 1, dead=(-INF, -0.75)),
        {"a": trainable(-0.75), "b": trainable(1.0)}, confidence="b",
        note="it jumps by b - tanh b at b, which gets no gradient",
    ),
    row(
        "TanhLU", r"a \tanh(b x) + c x", lambda x, a, b, c: a * torch.tanh(b * x) + c * x, "Shen 2022",
        Properties((-INF, INF), (-INF, INF), INF, True, 2, 2),
        {"a": trainable(1.0), "b": trainable(1.0), "c": trainable(1.0)},
    ),
    row(
        "ReLTanh", r"\tanh t + (1 - \tanh^2 t) (x - t),\ t = \min(\max(x, a), b)", _reltanh, "Wang 2019",
        Properties((-INF, INF), (-INF, INF), 1, True, 1, 1), {"a": trainable(-1.5), "b": trainable(0.0)},
    ),
    row(
        "Bendable linear unit", r"a (\sqrt{x^2 + 1} - 1) + x", _blu, "Godfrey 2019", LINE, {"a": trainable(0.0, -1, 1)},
        aliases=("BLU",),
    ),
    row(
        "ReBLU", r"a (\sqrt{x^2 + 1} - 1) + x \text{ if } x > 0 \text{ else } 0", lambda x, a: _blu(pos(x), a),
        "survey", RAMP,
        {"a": trainable(0.0, -1, 1)}, confidence="b",
    ),
    row(
        "DELU (Pishchik)", r"(n + \frac{1}{2}) x + |e^{-x} - 1| \text{ if } x > 0 \text{ else } x \sigma(x)",
        lambda x, n: split(x, (n + 0.5) * x - torch.expm1(-pos(x)), damped(x) * sig(x)), "Pishchik 2023",
        Properties((-0.2784645428, INF), (0, INF), 0, False, 2.5, NAN), {"n": trainable(1.0)},
    ),
    row(
        "ErfReLU", r"x \text{ if } x \ge 0 \text{ else } a \operatorname{erf} x",
        lambda x, a: split(x, x, a * torch.erf(x)), "Rajanand 2023",
        Properties((-1, INF), (-1, INF), 0, True, 2 / math.sqrt(math.pi), NAN), {"a": trainable(1.0)},
    ),
    row(
        "FPLUS", r"a x \text{ if } x \ge 0 \text{ else } \frac{a x}{1 - b x}",
        lambda x, a, b: a * split(x, x, softsign_left(x, b)), "Duan 2021",
        Properties((-1, INF), (-1, INF), 1, True, 1, 1), {"a": fixed(1.0), "b": fixed(1.0, LEAST)},
    ),
    row(
        "PFPLUS", r"a x \text{ if } x \ge 0 \text{ else } \frac{a x}{1 - b x}",
        lambda x, a, b: a * split(x, x, softsign_left(x, at_least(b))), "Duan 2021",
        Properties((-10, INF), (-10, INF), 1, True, 1, 1), {"a": trainable(1.0), "b": trainable(0.1, LEAST)},
    ),
    row(
        "PVLU", r"\max(0, x) + a \sin(b x)", relu_and_sine, "Gupta 2022",
        Properties((-0.5, INF), (NAN, INF), 0, False, 1.5, NAN), {"a": trainable(0.5), "b": trainable(1.0)},
        confidence="b",
    ),
    row(
        "EAPCU", r"b x \text{ if } x \ge 0 \text{ else } a x \tanh(\ln(1 + e^{a x}))",
        lambda x, a, b: split(x, b * x, a * damped(x) * torch.tanh(softplus(a * damped(x)))), "survey",
        Properties((MISH_MIN, INF), (0, INF), 0, False, 1, NAN), {"a": trainable(1.0), "b": trainable(1.0)},
        confidence="b",
    ),
    row(
        "RePSU",
        r"a K + (1 - a) (2x - K) \text{ if } x \ge b \text{ else } 0,\ "
        r"K = (x - b) \sigma(\operatorname{sign}(x - c) |x - c|^d / e)",
        _repsu, "survey", RAMP,
        {"a": trainable(0.5), "b": trainable(0.0), "c": trainable(0.0),
         "d": trainable(1.0, LEAST), "e": trainable(1.0, LEAST)},
        confidence="b", note="it jumps at b unless b is 0 or a is 1",
    ),
    row(
        "MeLU", r"\mathrm{PReLU}(x) + \sum_{j=1}^{k-1} a_j \max(0, c_j - |x - b_j|)", None, "Maguolo 2021", None, None,
        module=MexicanReLU, arity="channels", kind="trainable", aliases=("Mexican ReLU",),
    ),
    row(
        "MMeLU", r"a \max(0, b - |x - c|) + (1 - a) \max(0, x)",
        lambda x, a, b, c: a * tent(x - c, b) + (1 - a) * pos(x), "survey",
        Properties((0, INF), (0, INF), 0, True, 0.5, NAN, dead=(-INF, -1)),
        {"a": trainable(0.5), "b": trainable(1.0), "c": trainable(0.0)}, confidence="b",
    ),
    row(
        "GaLU",
        r"\mathrm{PReLU}(x) + \sum_{j=1}^{k-1} a_j (\max(0, c_j - |x - b_j|) + \min(0, |x - b_j - 2 c_j| - c_j))",
        None, "Nanni 2020", None, None, module=GaussianReLU, arity="channels", kind="trainable", confidence="b",
        aliases=("Gaussian ReLU",),
    ),
    row(
        "PolyReLU", r"a_0 + \sum_{i=1}^{3} a_i \max(0, x)^i", _polynomial, "Zhuo 2025",
        Properties((0, INF), (0, INF), 0, True, INF, NAN, dead=(-INF, 0)),
        {"a0": trainable(0.0), "a1": trainable(1 / 3), "a2": trainable(1 / 3), "a3": trainable(1 / 3)},
    ),
    row(
        "xIELU",
        r"\alpha x^2 + b x \text{ if } x > 0 \text{ else } \beta (e^x - 1) - \beta x + b x,\ "
        r"\alpha = \ln(1 + e^p), \beta = b + \ln(1 + e^n)",
        _xielu, "Huang 2024", Properties((-0.2057512, INF), (INF, INF), 1, False, INF, 0.5),
        {"p": trainable(math.log(math.expm1(0.8))), "n": trainable(math.log(math.expm1(0.3))), "b": fixed(0.5)},
        confidence="b",
        note="p and n are trained before the softplus that keeps the gains above 0; both gains start at 0.8",
    ),
    row(
        "Tailored ReLU", r"\sqrt{\frac{2}{1 + a^2}} (x \text{ if } x \ge 0 \text{ else } a x)",
        lambda x, a: leaky(x, a) * (2 / (1 + a * a)) ** 0.5, "Zhang 2022",
        Properties((-INF, INF), (-INF, INF), 0, True, math.sqrt(2 / 1.0625), NAN), {"a": fixed(0.25)}, aliases=("TAT",),
        note="its authors solve for a, given the depth of a network; 0.25 is an example",
    ),
)  # fmt: skip
