"""ELU and SELU, and what was made of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from actinium.functions.argument_bounds import LEAST, at_least
from actinium.functions.rectifiers import damped, elu, inverse_root_left, leaky, softsign_left, split
from actinium.functions.registry import INF, Properties, fixed, row, trainable
from actinium.functions.stable import finite, neg, pos, sig

__all__ = ["FAMILY", "ROWS"]

FAMILY = "ELU, SELU"

NAN = math.nan
SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772
LOWEST = -SCALE * ALPHA
SELU_RIGHT, SELU_LEFT = 1.0507, 1.67326


def _scaled(x: Tensor, right: Tensor | float, left: Tensor | float, rate: Tensor | float = 1.0) -> Tensor:
    """right x right of 0, left (e^(rate x) - 1) left of it."""
    return split(x, right * x, left * torch.expm1(rate * neg(x)))


def _pelu(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    a, b = at_least(a), at_least(b)
    return _scaled(x, a / b, a, 1 / b)


def _pdelu(x: Tensor, a: Tensor | float, t: Tensor | float) -> Tensor:
    rest = at_least(1 - t, 1e-4)
    shrunk = rest * finite(neg(x))
    dead = shrunk <= -1
    size = torch.log1p(torch.where(dead, 0.0, shrunk).clamp(min=-1 + torch.finfo(x.dtype).eps)) / rest
    # The derivative of expm1 is computed as 1 more than its value, which is 0 long before the power is.
    grown = torch.where(size > -1, torch.expm1(size), torch.exp(size) - 1)
    return split(x, x, a * torch.where(dead, -1.0, grown))


def _elastic(
    x: Tensor, a: Tensor | float, b: Tensor | float, e: Tensor | float, training: bool = False
) -> Tensor:  # fmt: skip
    if not training:
        return _scaled(x, 1.0, a, b)
    # A normal of mean 1 truncated to 0..2 is the quantile function at uniform numbers between the two tails.
    s = (e * torch.rand_like(x)).clamp(min=1e-3)
    inside = torch.special.erf(math.sqrt(0.5) / s)
    k = 1 + s * math.sqrt(2) * torch.special.erfinv((2 * torch.rand_like(x) - 1) * inside)
    return _scaled(x, k.clamp(0.0, 2.0), a, b)


def _edelu(x: Tensor, a: Tensor | float, c: Tensor | float, b: Tensor | float) -> Tensor:
    return torch.where(x >= c, x, torch.expm1(a * x.clamp(max=c)) / at_least(b))


def _gated_pair(x: Tensor, a: Tensor | float, p: Tensor | float, q: Tensor | float, r: Tensor | float) -> Tensor:
    q, r = at_least(q), at_least(r)
    gate, rest = sig(a * x), sig(-a * x)
    # Where a gate is 0 it wins over a linear function, also at infinity.
    right = gate * pos(x) - rest * damped(-x) * (q / r)
    return split(x, right, p * gate * damped(x) + rest * q * torch.expm1(neg(x) / r))


def _quotient(f: str, u: Tensor) -> Tensor:
    """(e^u - 1) / u or ln(1 + u) / u, by their series near 0, where both are 0 / 0."""
    small = u.abs() < 1e-2
    away = torch.where(small, 1.0, u)
    near = torch.where(small, u, 0.0)
    if f == "exp":
        series = 1 + near / 2 * (1 + near / 3 * (1 + near / 4 * (1 + near / 5 * (1 + near / 6))))
        top = math.log(torch.finfo(u.dtype).max) - 1
        away = away.clamp(max=top)
        return torch.where(small, series, torch.expm1(away) / away)
    series = 1 - near * (1 / 2 - near * (1 / 3 - near * (1 / 4 - near * (1 / 5 - near * (1 / 6 - near / 7)))))
    away = away.clamp(min=-1 + torch.finfo(u.dtype).eps)
    return torch.where(small, series, torch.log1p(away) / away)


def _soft_exponential(x: Tensor, a: Tensor | float) -> Tensor:
    a = torch.as_tensor(a, dtype=x.dtype, device=x.device)
    grows, falls = a.clamp(min=0.0), a.clamp(max=0.0)
    right = x * _quotient("exp", grows * finite(x)) + a
    left = (x + a) * _quotient("log", -falls * finite(x + a))
    return torch.where(a >= 0, right, left)


def _inverse_power(x: Tensor, a: Tensor | float) -> Tensor:
    size = torch.log(neg(x).abs().clamp(1e-30, torch.finfo(x.dtype).max))
    a = at_least(a)
    return split(x, x, -torch.exp(size - torch.logaddexp(a * size, torch.zeros_like(size))))


def _rsigelu(x: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    return torch.where(x > 1, x * (sig(x) * a + 1), elu(x, b))


def _hard(x: Tensor) -> Tensor:
    return ((x + 1) / 2).clamp(0.0, 1.0)


ELU = Properties((-1, INF), (-1, INF), 1, True, 1, 1)
SELU = Properties((LOWEST, INF), (LOWEST, INF), 0, True, -LOWEST, NAN)
LEANING = Properties((-INF, INF), (-INF, INF), 0, True, 1.768089, NAN)
LINE = Properties((-INF, INF), (-INF, INF), INF, True, 1, 1)
GAINS = {"a": fixed(SELU_RIGHT), "b": fixed(SELU_LEFT)}
TRAINED_GAINS = {"a": trainable(SELU_RIGHT), "b": trainable(SELU_LEFT)}

ROWS = (
    row("ELU", r"x \text{ if } x \ge 0 \text{ else } a (e^x - 1)", elu, "Clevert 2015", ELU, {"a": fixed(1.0)}),
    row(
        "SELU", r"l (x \text{ if } x \ge 0 \text{ else } a (e^x - 1))", lambda x, l, a: l * elu(x, a),  # noqa: E741
        "Klambauer 2017", SELU, {"l": fixed(SCALE), "a": fixed(ALPHA)},
    ),
    row(
        "CELU", r"x \text{ if } x \ge 0 \text{ else } a (e^{x / a} - 1)", lambda x, a: _scaled(x, 1.0, a, 1 / a),
        "Barron 2017", ELU, {"a": fixed(1.0, LEAST)},
    ),
    row(
        "PELU", r"\frac{a}{b} x \text{ if } x \ge 0 \text{ else } a (e^{x / b} - 1)", _pelu, "Trottier 2017", ELU,
        {"a": trainable(1.0, LEAST), "b": trainable(1.0, LEAST)},
    ),
    row(
        "MPELU", r"x \text{ if } x \ge 0 \text{ else } a (e^{b x} - 1)", lambda x, a, b: _scaled(x, 1.0, a, b),
        "Li 2018", ELU, {"a": trainable(1.0), "b": trainable(1.0, 0)},
        note="its authors start a at 1 or at 0.25",
    ),
    row(
        "PDELU", r"x \text{ if } x > 0 \text{ else } a (\max(0, 1 + (1 - t) x)^{1 / (1 - t)} - 1)", _pdelu,
        "Cheng 2020",
        Properties((-1, INF), (-1, INF), 1, True, 1, 1, dead=(-INF, -10)),
        {"a": trainable(1.0), "t": trainable(0.9, high=0.9999)},
    ),
    row(
        "FELU", r"x \text{ if } x > 0 \text{ else } a (2^{x / \ln 2} - 1)", elu, "Qiumei 2019", ELU,
        {"a": trainable(1.0)},
        note="the power of 2 is e^x; it was chosen for speed",
    ),
    row(
        "P+FELU", r"b + (x \text{ if } x > 0 \text{ else } a (2^{x / \ln 2} - 1))", lambda x, a, b: elu(x, a) + b,
        "Adem 2022", ELU, {"a": trainable(1.0), "b": trainable(0.0)}, confidence="b",
    ),
    row(
        "EELU",
        r"k x \text{ if } x \ge 0 \text{ else } a (e^{b x} - 1),\ k \sim N(1, s^2) \text{ in } 0..2,\ s \sim U(0, e)",
        _elastic, "Kim 2020", ELU, {"a": trainable(1.0), "b": trainable(1.0, 0), "e": fixed(0.5, 0)}, kind="stochastic",
    ),
    row(
        "EDELU", r"x \text{ if } x \ge c \text{ else } \frac{e^{a x} - 1}{b}", _edelu, "Catalbas 2017", ELU,
        {"a": trainable(1.0, 0), "c": trainable(0.0), "b": trainable(1.0, LEAST)}, confidence="b",
        note="continuous where b c = e^(a c) - 1",
    ),
    row(
        "Adaptive combination 1", r"a \mathrm{LeakyReLU}(x) + (1 - a) \mathrm{ELU}(x)",
        lambda x, a: a * leaky(x, 0.01) + (1 - a) * elu(x), "Qian 2018",
        Properties((-INF, INF), (-INF, INF), 0, True, 1, NAN), {"a": trainable(0.5, 0, 1)},
    ),
    row(
        "Adaptive combination 2", r"\sigma(a x) \mathrm{PReLU}_p(x) + (1 - \sigma(a x)) \mathrm{PELU}_{q, r}(x)",
        _gated_pair, "Qian 2018", Properties((-1.0000308, INF), (-1, INF), 0, False, 1, NAN),
        {"a": trainable(1.0), "p": trainable(0.25), "q": trainable(1.0, LEAST), "r": trainable(1.0, LEAST)},
    ),
    row(
        "P-E2-ReLU", r"a \max(0, x) + b \mathrm{ELU}(x) - (1 - a - b) \mathrm{ELU}(-x)",
        lambda x, a, b: a * pos(x) + b * elu(x) - (1 - a - b) * elu(-x), "Jie 2021",
        Properties((-INF, INF), (-INF, INF), 0, True, 1, NAN), {"a": trainable(0.4), "b": trainable(0.3)},
    ),
    row(
        "P-E2-Id", r"a x + (1 - a) (\mathrm{ELU}(x) - \mathrm{ELU}(-x))",
        lambda x, a: a * x + (1 - a) * (elu(x) - elu(-x)), "Jie 2021",
        Properties((-INF, INF), (-INF, INF), 1, True, 1.5, 1.5), {"a": trainable(0.5)},
    ),
    row(
        "Soft exponential",
        r"-\frac{\ln(1 - a (x + a))}{a} \text{ if } a < 0 \text{ else } x \text{ if } a = 0 "
        r"\text{ else } \frac{e^{a x} - 1}{a} + a",
        _soft_exponential, "Godfrey 2015", LINE, {"a": trainable(0.0, -1, 1)},
        note="where a is below 0 it is defined from 1 / a - a on, and held at its value near there below",
    ),
    row(
        "ShELU", r"\mathrm{ELU}(x + b)", lambda x, b: elu(x + b), "Grelsson 2018", ELU, {"b": trainable(0.0)},
        aliases=("shifted ELU, horizontal",),
    ),
    row(
        "SvELU", r"\mathrm{ELU}(x) + b", lambda x, b: elu(x) + b, "Grelsson 2018", ELU, {"b": trainable(0.0)},
        aliases=("shifted ELU, vertical",),
    ),
    row(
        "PShELU", r"\mathrm{PELU}_{a, b}(x + c)", lambda x, a, b, c: _pelu(x + c, a, b), "Grelsson 2018", ELU,
        {"a": trainable(1.0, LEAST), "b": trainable(1.0, LEAST), "c": trainable(0.0)},
    ),
    row(
        "PSvELU", r"\mathrm{PELU}_{a, b}(x) + c", lambda x, a, b, c: _pelu(x, a, b) + c, "survey", ELU,
        {"a": trainable(1.0, LEAST), "b": trainable(1.0, LEAST), "c": trainable(0.0)}, confidence="b",
    ),
    row(
        "PSELU", r"a x \text{ if } x \ge 0 \text{ else } a b (e^x - 1)", lambda x, a, b: _scaled(x, a, a * b),
        "Pratama 2020", SELU, TRAINED_GAINS,
    ),
    row(
        "LPSELU", r"a x \text{ if } x \ge 0 \text{ else } a b (e^x - 1) + c x",
        lambda x, a, b, c: _scaled(x, a, a * b) + c * neg(x), "survey", LEANING, TRAINED_GAINS | {"c": trainable(0.01)},
        confidence="b",
    ),
    row(
        "LPSELU-RP", r"m + (a x \text{ if } x \ge 0 \text{ else } a b (e^x - 1) + c x)",
        lambda x, a, b, c, m: _scaled(x, a, a * b) + c * neg(x) + m, "survey", LEANING,
        TRAINED_GAINS | {"c": trainable(0.01), "m": trainable(0.0)}, confidence="b",
    ),
    row(
        "Leaky SELU", r"a x \text{ if } x \ge 0 \text{ else } a b (e^x - 1) + a c x",
        lambda x, a, b, c: _scaled(x, a, a * b) + a * c * neg(x), "Chen 2020",
        Properties((-INF, INF), (-INF, INF), 0, True, 1.863164, NAN), GAINS | {"c": fixed(0.1)}, aliases=("LSELU",),
        confidence="b",
    ),
    row(
        "SERLU", r"l x \text{ if } x \ge 0 \text{ else } l a x e^x",
        lambda x, l, a: split(x, l * x, damped(x) * torch.exp(neg(x)) * (l * a)),  # noqa: E741
        "Zhang 2018",
        Properties((-1.1524205, INF), (0, INF), 0, False, 3.1326037, NAN), {"l": fixed(1.07862), "a": fixed(2.90427)},
    ),
    row(
        "Scaled SELU", r"a x \text{ if } x \ge 0 \text{ else } a b (e^{c x} - 1)",
        lambda x, a, b, c: _scaled(x, a, a * b, c), "survey", SELU, GAINS | {"c": fixed(1.0, 0)}, aliases=("sSELU",),
        confidence="b",
    ),
    row(
        "RSigELU", r"x + a x \sigma(x) \text{ if } x > 1 \text{ else } x \text{ if } x \ge 0 \text{ else } a (e^x - 1)",
        lambda x, a: _rsigelu(x, a, a), "Kiliçarslan 2021",
        Properties((-0.5, INF), (-0.5, INF), -1, True, INF, NAN), {"a": fixed(0.5)},
        note="it jumps by a sigmoid(1) at 1",
    ),
    row(
        "RSigELUD",
        r"x + a x \sigma(x) \text{ if } x > 1 \text{ else } x \text{ if } x \ge 0 \text{ else } b (e^x - 1)",
        _rsigelu, "Kiliçarslan 2021", Properties((-0.5, INF), (-0.5, INF), -1, True, INF, NAN),
        {"a": fixed(0.5), "b": fixed(0.5)}, note="it jumps by a sigmoid(1) at 1",
    ),
    row(
        "HardSReLUE",
        r"x + a x \min(\max(\frac{x + 1}{2}, 0), 1) \text{ if } x \ge 0 \text{ else } a (e^x - 1)",
        lambda x, a: split(x, x * (1 + a * _hard(x)), a * torch.expm1(neg(x))), "Kiliçarslan 2021",
        Properties((-0.5, INF), (-0.5, INF), 0, True, 1.75, NAN), {"a": fixed(0.5)}, confidence="b",
    ),
    row(
        "ELiSH", r"\sigma(x) (x \text{ if } x \ge 0 \text{ else } e^x - 1)", lambda x: sig(x) * elu(x), "Basirat 2018",
        Properties((2 * math.sqrt(2) - 3, INF), (0, INF), 1, False, 1.0998393, 0.5),
    ),
    row(
        "Hard ELiSH", r"\min(\max(\frac{x + 1}{2}, 0), 1) (x \text{ if } x \ge 0 \text{ else } e^x - 1)",
        lambda x: _hard(x) * elu(x), "Basirat 2018",
        Properties((-0.0996735, INF), (0, INF), 0, False, 1.5, 0.5, dead=(-INF, -1)),
    ),
    row(
        "Tanh linear unit", r"x \text{ if } x \ge 0 \text{ else } 2 \sigma(x) - 1",
        lambda x: split(x, x, torch.tanh(x / 2)), "survey", Properties((-1, INF), (-1, INF), 0, True, 1, NAN),
    ),
    row(
        "DiffELU", r"x \text{ if } x \ge 0 \text{ else } a (x e^x - b e^{b x})",
        lambda x, a, b: split(x, x, a * (damped(x) * torch.exp(neg(x)) - b * torch.exp(b * neg(x)))),
        "Hu 2022",
        Properties((-0.1375419, INF), (0, INF), -1, False, INF, NAN), {"a": fixed(0.3), "b": fixed(0.1, LEAST)},
        confidence="b",
        note="it jumps by a b at 0",
    ),
    row(
        "PolyLU", r"x \text{ if } x \ge 0 \text{ else } \frac{1}{1 - x} - 1", lambda x: split(x, x, softsign_left(x)),
        "Feng 2023", ELU,
    ),
    row(
        "IpLU", r"x \text{ if } x \ge 0 \text{ else } \frac{x}{1 + |x|^a}", _inverse_power, "Wu 2022", ELU,
        {"a": fixed(1.0, LEAST)}, confidence="c", note="the power in the denominator is read as that of |x| alone",
    ),
    row(
        "PoLU", r"x \text{ if } x \ge 0 \text{ else } (1 - x)^{-a} - 1",
        lambda x, a: split(x, x, torch.expm1(-a * torch.log1p(pos(-x)))), "Li 2018", ELU, {"a": fixed(1.0, LEAST)},
        aliases=("power linear unit",),
    ),
    row(
        "LELU", r"x \text{ if } x \ge 0 \text{ else } a (e^x - 1) + b x",
        lambda x, a, b: split(x, x, a * torch.expm1(neg(x)) + b * x), "2025",
        Properties((-INF, INF), (-INF, INF), 0, True, 1.01, NAN), {"a": trainable(1.0), "b": trainable(0.01)},
        confidence="b",
        aliases=("leaky exponential linear unit",),
    ),
    row(
        "ISRLU", r"x \text{ if } x \ge 0 \text{ else } \frac{x}{\sqrt{1 + a x^2}}",
        lambda x, a: split(x, x, inverse_root_left(x, a)), "Carlile 2017",
        Properties((-1, INF), (-1, INF), 2, True, 1, 1), {"a": fixed(1.0, LEAST)},
    ),
)  # fmt: skip
