"""Square, power, polynomial, exponential, logarithmic and other functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from actinium.functions.registry import INF, Properties, fixed, row, trainable
from actinium.functions.stable import finite, hypot, pos, power, sig

__all__ = ["FAMILY", "ROWS"]

FAMILY = "square, power, polynomial, exponential, logarithmic"


def _signed_root(x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """sign(x) sqrt(scale |x|); its infinite slope at 0 is given as 0."""
    size = torch.where(x == 0, 1.0, x.abs())
    return torch.sign(x) * torch.sqrt(torch.as_tensor(scale, dtype=x.dtype, device=x.device)) * torch.sqrt(size)


def _sqlu(x: Tensor) -> Tensor:
    inside = x.clamp(-2.0, 0.0)
    return torch.where(x > 0, x, inside + inside.square() / 4)


def _squish(x: Tensor) -> Tensor:
    inside = x.clamp(-2.0, 0.0)
    return torch.where(x > 0, x + x * x / 32, inside + inside.square() / 2)


def _sqreu(x: Tensor) -> Tensor:
    inside = x.clamp(-2.0, 0.0)
    return torch.where(x > 0, x, inside + inside.square() / 2)


def _square_softplus(x: Tensor) -> Tensor:
    return torch.where(x > 0.5, x, pos(x.clamp(max=0.5) + 0.5).square() / 2)


def _linq(x: Tensor, a: float) -> Tensor:
    end = 2 - 2 * a
    inside = x.clamp(-end, end)
    return torch.where(x.abs() < end, inside * (1 - inside.abs() / 4), a * x + torch.sign(x) * (1 - 2 * a + a * a))


def _symlog(x: Tensor) -> Tensor:
    return torch.where(x >= 0, torch.log1p(x.clamp(min=0.0)), -torch.log1p((-x).clamp(min=0.0)))


def _symexp(x: Tensor) -> Tensor:
    return torch.where(x >= 0, torch.expm1(x.clamp(min=0.0)), -torch.expm1((-x).clamp(min=0.0)))


def _mishra(x: Tensor) -> Tensor:
    s = finite(x) / (1 + finite(x).abs())
    return (s.square() + s) / 2


def _spread_gaussian(x: Tensor, rate: Tensor | float) -> tuple[Tensor, Tensor]:
    """y and g with g^2 = e^(-rate x^2) and y = x g, which is 0 where g is."""
    x = _within(x, 2)
    g = torch.exp(-(rate * x / 2) * x)
    return x * g, g


def _gaussian(x: Tensor, a: Tensor | float, share: float = 0.5) -> Tensor:
    t = finite(x / a)
    return torch.exp(-share * (t * t))


def _polyexp(x: Tensor, a: Tensor | float, b: Tensor | float, c: Tensor | float, d: Tensor | float) -> Tensor:
    y, g = _spread_gaussian(x, d)
    return a * y.square() + b * y * g + c * g.square()


def _wave(x: Tensor, a: Tensor | float) -> Tensor:
    y, g = _spread_gaussian(x, a)
    return g.square() - y.square()


def _pmaf(x: Tensor, a: float) -> Tensor:
    return 2 / (math.sqrt(3) * math.pi**0.25) * _wave(torch.where(x < 0, x + a, x - a), 0.5)


def _prbf(x: Tensor, a: float, b: float) -> Tensor:
    t = torch.where(x >= a, x - 2 * a, torch.where(x <= -a, x + 2 * a, x))
    return _gaussian(t, b, 1.0)


def _within(x: Tensor, degree: int) -> Tensor:
    """x, if its power of a degree is finite, and else the largest such number: slopes of polynomials are finite too."""
    largest = torch.finfo(x.dtype).max ** (0.98 / degree)
    return x.clamp(-largest, largest)


def _cube(x: Tensor) -> Tensor:
    t = _within(x, 3)
    return t * t * t + (x - t)


def _spocu(x: Tensor, a: Tensor | float, b: Tensor | float, g: Tensor | float, c: Tensor | float) -> Tensor:
    top = torch.as_tensor(c, dtype=x.dtype, device=x.device)

    def h(t: Tensor) -> Tensor:
        held = torch.minimum(t.clamp(min=0.0), top)
        t = _within(held, 8)
        cube = t * t * t
        return cube * (cube * t * (t - 2) + 2) + (held - t)

    return a * h(x / g + b) - a * h(torch.as_tensor(b, dtype=x.dtype, device=x.device))


def _puaf(x: Tensor, a: int, b: float, c: float) -> Tensor:
    inside = x.clamp(-c, c)
    up, down = power(c + inside, b), power(c - inside, b)
    share = torch.where(x > c, 1.0, up / torch.where(up + down == 0, 1.0, up + down))
    return torch.where(x < -c, 0.0, x.clamp(min=-c).pow(a) * share)


def _kdac(x: Tensor, a: Tensor | float, b: Tensor | float, c: float) -> Tensor:
    p, s = a * finite(x), torch.tanh(x)
    line = b * finite(x)
    q = (0.5 + (line - s) / (2 * c)).clamp(0, 1)
    r = torch.where(x > 0, p, line * (1 - q) + s * q - c * q * (1 - q))
    h = (0.5 - (p - r) / (2 * c)).clamp(0, 1)
    return p * (1 - h) + r * h + c * h * (1 - h) + (x - finite(x))


def _sgt(x: Tensor, a: Tensor | float, p: Tensor | float, b: Tensor | float, q: Tensor | float) -> Tensor:
    return torch.where(x < 0, -a * power(-x, p), b * power(x, q))


def _tanh_relu(x: Tensor, a: float) -> Tensor:
    # The tanh of x^2 by exponentials of -x^2, whose slope does not become 0 where tanh rounds to 1.
    gone = -2 * (x * x)
    return a * (-torch.expm1(gone) / (1 + torch.exp(gone))) + pos(x)


def _tanh_log_relu(x: Tensor) -> Tensor:
    # tanh(ln |x|) is 1 - 2 / (1 + x^2), which is below x for every x > 0.
    return torch.where(x > 0, x, pos(1 - 2 / (1 + x * x)))


def _logistic_map(x: Tensor, r: float, n: int) -> Tensor:
    c = r * sig(x) * sig(-x)
    for _ in range(n):
        c = r * c * (1 - c)
    return c


def _fusion_map(x: Tensor, r: float, a: float, b: float, n: int) -> Tensor:
    z = sig(x)
    for _ in range(n):
        z = r * z * (1 - z) + z + a - b / (2 * math.pi) * torch.sin(2 * math.pi * z)
    return z


def _cascade_map(x: Tensor, a: float, b: float, n: int) -> Tensor:
    z = torch.tanh(x)
    for _ in range(n):
        z = a * torch.sin(math.pi * b * torch.sin(math.pi * z))
    return z


def _cauchy(x: Tensor, l1: Tensor | float, l2: Tensor | float, d: Tensor | float) -> Tensor:
    # Far out numerator and denominator are divided by x, so that neither overflows.
    far = torch.where(x.abs() > 1, x, 1.0)
    near = x.clamp(-1.0, 1.0)
    outer = (l1 + l2 / far) / (far + d * d / far)
    return torch.where(x.abs() > 1, outer, (l1 * near + l2) / (near * near + d * d))


def _line(lipschitz: float, slope: float, smooth: float, low: float = -INF, high: float = INF) -> Properties:
    """Increasing from one infinity, or bound, to the other."""
    return Properties((low, high), (low, high), smooth, True, lipschitz, slope)


def _bump(low: float, high: float, lipschitz: float, slope: float, smooth: float = INF) -> Properties:
    """With limits 0 on both sides."""
    return Properties((low, high), (0, 0), smooth, False, lipschitz, slope)


E10, E_10 = math.exp(10), math.exp(-10)
NARROW = (-10.0, 10.0)
HCAF = 3.980814
"""Largest slope 4 |sin(16 t)| sin t of sin^2(8 t), where cos t = tanh(x / 2)."""
PMAF = 2 / (math.sqrt(3) * math.pi**0.25)
"""Factor that gives the Mexican hat unit energy."""
HALF_ROOT = (1 + math.sqrt(2)) / 2

ROWS = (
    row(
        "Square", "x^2", lambda x: x * x, "-", Properties((0, INF), (INF, INF), INF, False, INF, 0),
        aliases=("quadratic",),
    ),
    row(
        "SQLU", r"\begin{cases}x & x>0\\ x+x^2/4 & -2\le x\le 0\\ -1 & x<-2\end{cases}", _sqlu, "Wuraola 2021",
        Properties((-1, INF), (-1, INF), 1, True, 1, 1, dead=(-INF, -2)),
    ),
    row(
        "Squish", r"\begin{cases}x+x^2/32 & x>0\\ x+x^2/2 & -2\le x\le 0\\ 0 & x<-2\end{cases}", _squish,
        "Wuraola 2021", Properties((-0.5, INF), (0, INF), 0, False, INF, 1, dead=(-INF, -2)),
    ),
    row(
        "SqREU", r"\begin{cases}x & x>0\\ x+x^2/2 & -2\le x\le 0\\ 0 & x<-2\end{cases}", _sqreu, "Wuraola 2021",
        Properties((-0.5, INF), (0, INF), 0, False, 1, 1, dead=(-INF, -2)),
    ),
    row(
        "Square softplus", r"\begin{cases}x & x>1/2\\ (x+1/2)^2/2 & |x|\le 1/2\\ 0 & x<-1/2\end{cases}",
        _square_softplus, "Wuraola 2021",
        Properties((0, INF), (0, INF), 1, True, 1, 0.5, dead=(-INF, -0.5)),
    ),
    row(
        "LinQ", r"\begin{cases}x(1-|x|/4) & |x|<2-2a\\ ax+\mathrm{sign}(x)(1-2a+a^2) & |x|\ge 2-2a\end{cases}", _linq,
        "Morala 2021", _line(1, 1, 1), {"a": fixed(0.1, 0.0, 1.0)},
    ),
    row(
        "Sqrt", r"\mathrm{sign}(x)\sqrt{|x|}", _signed_root, "Yang 2018", _line(INF, INF, 0),
        aliases=("signed square root",),
    ),
    row(
        "SSAF", r"\mathrm{sign}(x)\sqrt{2a|x|}", lambda x, a: _signed_root(x, 2 * a), "Nicolae", _line(INF, INF, 0),
        {"a": fixed(1.0, 0.0)},
    ),
    row("NCU", "x-x^3", lambda x: _within(x, 3) - _cube(x), "Noel 2021",
        Properties((-INF, INF), (INF, -INF), INF, False, INF, 1)),
    row("Triple", "a x^3", lambda x, a: a * _cube(x), "survey", _line(INF, 0, INF), {"a": fixed(1.0)}, confidence="b"),
    row("SQU", "x^2+x", lambda x: x * (x + 1), "Noel 2021", Properties((-0.25, INF), (INF, INF), INF, False, INF, 1)),
    row(
        "Bent identity", r"\tfrac12(\sqrt{x^2+1}-1)+x",
        lambda x: (hypot(finite(x), torch.ones_like(x)) - 1) / 2 + x, "-", _line(1.5, 1, INF),
    ),
    row(
        "Mishra", r"\tfrac12(s^2+s),\ s=\frac{x}{1+|x|}", _mishra, "Mishra 2017",
        Properties((-0.125, 1), (0, 1), 1, False, 0.5, 0.5), confidence="c",
        note="Read with an even square, (s^2 + s)/2; a secondary source prints the sum of two equal terms.",
    ),
    row("Symlog", r"\mathrm{sign}(x)\ln(1+|x|)", _symlog, "Hafner 2023", _line(1, 1, 1), aliases=("log modulus",)),
    row(
        "Symexp", r"\mathrm{sign}(x)(e^{|x|}-1)", _symexp, "Hafner 2023",
        Properties((1 - E10, E10 - 1), (1 - E10, E10 - 1), 1, True, E10, 1, domain=NARROW),
    ),
    row(
        "Exponential", "e^{-x}", lambda x: torch.exp(-x), "-",
        Properties((E_10, E10), (E10, E_10), INF, True, E10, -1, domain=NARROW),
        note="Falling, as the survey has it; the rising one is called growing exponential.",
    ),
    row(
        "Growing exponential", "e^x", torch.exp, "-",
        Properties((E_10, E10), (E_10, E10), INF, True, E10, 1, domain=NARROW),
    ),
    row(
        "Gaussian", r"e^{-x^2/(2a^2)}", _gaussian, "-",
        _bump(0, 1, math.exp(-0.5), 0), {"a": fixed(1.0, 1e-6)},
    ),
    row(
        "Polyexp", "(a x^2+b x+c)e^{-d x^2}", _polyexp, "survey", _bump(0, 1.369289, 1.266093, 1),
        {k: fixed(1.0) for k in "abc"} | {"d": fixed(1.0, 0.0)}, confidence="b",
    ),
    row(
        "Wave", "(1-x^2)e^{-a x^2}", _wave, "survey", _bump(-2 * math.exp(-1.5), 1, 1.380119, 0),
        {"a": fixed(0.5, 0.0)}, aliases=("Mexican hat", "Ricker wavelet"),
        confidence="b",
    ),
    row(
        "PMAF", r"k(1-t^2)e^{-t^2/2},\ t=x-\mathrm{sign}(x)a,\ k=\frac{2}{\sqrt3\pi^{1/4}}", _pmaf, "survey",
        _bump(-2 * math.exp(-1.5) * PMAF, PMAF, 1.380119 * PMAF, math.nan, 0), {"a": fixed(4.0)}, confidence="b",
    ),
    row(
        "PRBF", r"e^{-t^2/b^2},\ t=\begin{cases}x-2a & x\ge a\\ x & |x|<a\\ x+2a & x\le -a\end{cases}", _prbf, "survey",
        _bump(0, 1, math.sqrt(2) * math.exp(-0.5), 0, 0), {"a": fixed(3.0, 1e-6), "b": fixed(1.0, 1e-6)},
        confidence="b",
    ),
    row(
        "SPOCU", r"a\,h(x/g+b)-a\,h(b),\ h(t)=r(\min(\max(t,0),c)),\ r(t)=t^3(t^5-2t^4+2)", _spocu, "Kisel'ák 2021",
        Properties((3.0937 * (-2.669381 - 0.511953), INF), (-3.0937 * 0.511953, INF), 2, False, INF,
                   3.0937 * 1.903248 / 4.437, dead=(-INF, -0.6653 * 4.437)),
        {"a": fixed(3.0937), "b": fixed(0.6653), "g": fixed(4.437, 1e-6), "c": fixed(INF, 0.0)},
    ),
    row(
        "PUAF", r"\begin{cases}x^a & x>c\\ \frac{x^a(c+x)^b}{(c+x)^b+(c-x)^b} & |x|\le c\\ 0 & x<-c\end{cases}", _puaf,
        "Hwang 2022", Properties((-0.27697, INF), (0, INF), 4, False, 1.106996, 0.5, dead=(-INF, -10)),
        {"a": fixed(1.0, 0.0, whole=True), "b": fixed(5.0, 0.0), "c": fixed(10.0, 0.0)}, confidence="b",
        note="The power a is whole, since x is negative in the middle part.",
    ),
    row(
        "KDAC", r"M(ax, r),\ r=ax\text{ if }x>0\text{ else }m(bx,\tanh x)", _kdac, "Wang 2020",
        Properties((-INF, INF), (-INF, INF), -1, True, INF, math.nan),
        {"a": trainable(0.1), "b": trainable(0.1), "c": fixed(0.01, 1e-6)}, confidence="c",
        note="M and m are the quadratic smooth maximum and minimum of width c. Read as printed in a secondary source, "
        "but for the signs of the smooth minimum; there is a jump of 0.11 c at 0.",
    ),
    row(
        "SGT", r"\begin{cases}-a|x|^p & x<0\\ b x^q & x\ge 0\end{cases}", _sgt, "survey", _line(1.1, math.nan, 0),
        {"a": trainable(0.1), "p": trainable(1.0, 0.0), "b": trainable(1.1), "q": trainable(1.0, 0.0)}, confidence="c",
        note="Read with the sign of x on the left, where a secondary source has a x^p with p any number.",
    ),
    row(
        "E-Tanh", r"a e^x\tanh x", lambda x, a: a * torch.exp(x) * torch.tanh(x), "survey",
        Properties((-0.300283, E10), (-E_10, E10), INF, False, E10, 1, domain=NARROW), {"a": fixed(1.0)},
        confidence="b",
    ),
    row(
        "Evolved tanh-ReLU", r"a\tanh(x^2)+\max(0,x)", _tanh_relu, "survey",
        Properties((0, INF), (1, INF), 0, False, 2.113116, math.nan), {"a": fixed(1.0)}, confidence="b",
    ),
    row(
        "Evolved tanh-log-ReLU", r"\max(\tanh\ln|x|,\max(0,x))", _tanh_log_relu, "survey",
        Properties((0, INF), (1, INF), 0, False, 1, math.nan, dead=(-1, 0)), confidence="c",
        note="Read with the logarithm of |x|, so that it is defined for negative x too.",
    ),
    row(
        "max(x, sig x)", r"\max(x,\sigma(x))", lambda x: torch.maximum(x, sig(x)), "Ramachandran 2017",
        Properties((0, INF), (0, INF), 0, True, 1, 0.25), aliases=("max sigmoid",),
    ),
    row(
        "max(x, tanh x)", r"\max(x,\tanh x)", lambda x: torch.maximum(x, torch.tanh(x)), "Ramachandran 2017",
        _line(1, 1, 2, -1, INF), aliases=("max tanh",),
    ),
    row(
        "Logistic-map chaotic", r"c_0=r s(1-s),\ c_{i+1}=r c_i(1-c_i),\ s=\sigma(x)", _logistic_map, "survey",
        _bump(0, 1, HCAF, 0), {"r": fixed(4.0, 0.0, 4.0), "n": fixed(3, 0, whole=True)}, aliases=("HCAF",),
        confidence="b",
    ),
    row(
        "Fusion chaotic", r"z_0=\sigma(x),\ z\leftarrow r z(1-z)+z+a-\frac{b}{2\pi}\sin 2\pi z\ (n\text{ times})",
        _fusion_map, "survey",
        Properties((0, 1.624796), (0, 1), INF, False, 0.578559, 0.375),
        {"r": fixed(4.0), "a": fixed(0.0), "b": fixed(0.5), "n": fixed(1, 0, whole=True)}, aliases=("FCAF",),
        confidence="c",
        note="Read as the map of the hidden units, applied to a sigmoid; a secondary source applies it to x itself.",
    ),
    row(
        "Cascade chaotic", r"z_0=\tanh x,\ z\leftarrow a\sin(\pi b\sin \pi z)\ (n\text{ times})", _cascade_map,
        "survey", _bump(-0.5, 0.5, math.pi**2 / 4, math.pi**2 / 4),
        {"a": fixed(0.5, 0.0, 1.0), "b": fixed(0.5, 0.0, 1.0), "n": fixed(1, 0, whole=True)}, aliases=("CCAF",),
        confidence="c", note="Read as the map applied to tanh x; a secondary source applies it to x itself.",
    ),
    row(
        "Cauchy", r"\frac{l_1x+l_2}{x^2+d^2}", _cauchy, "Li 2024", _bump(1 - HALF_ROOT, HALF_ROOT, 1.274519, 1),
        {k: trainable(1.0) for k in ("l1", "l2", "d")},
    ),
)  # fmt: skip
