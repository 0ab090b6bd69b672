"""E[phi(u) phi(v)] of many pairs of Gaussian numbers at once: in closed form, as a Hermite series, or interpolated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actinium.core.elementwise_function import Elementwise, ReLULike, elementwise
from actinium.core.errors import InputError
from actinium.core.gaussian_moments import correlations, gaussian_mean, gaussian_product, normal_nodes, variances

__all__ = ["ErfForm", "PiecewiseLinearForm", "closed_form", "dual_activation", "dual_at"]

Function = Callable[[Tensor], Tensor] | Elementwise
FEW = 64
"""Pairs for which each has its own double integral."""
TERMS = 256
"""Terms of a Hermite series; functions with kinks need more and are interpolated."""
MOST_NODES = (160, 60, 60)
VALUES = 2_000_000


@dataclass(frozen=True)
class PiecewiseLinearForm:
    """Moments of `positive * x` above zero and `negative * x` below.

    Source: Cho and Saul, 2009, equations 6 and 7 (orders 0 and 1), for the absolute value and the identity.
    """

    positive: float
    negative: float

    def product(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        """E[phi(u) phi(v)] at variances q1, q2 and correlation c."""
        even, odd = (self.positive - self.negative) / 2, (self.positive + self.negative) / 2
        both = ((1 - c) * (1 + c)).clamp(min=0).sqrt() + c * torch.asin(c)
        return (q1 * q2).sqrt() * (odd**2 * c + even**2 * 2 / math.pi * both)

    def slopes(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        """E[phi'(u) phi'(v)]."""
        even, odd = (self.positive - self.negative) / 2, (self.positive + self.negative) / 2
        return odd**2 + even**2 * 2 / math.pi * torch.asin(c) + 0 * q1 * q2

    def __call__(self, x: Tensor) -> Tensor:
        """The function itself."""
        return torch.where(x > 0, self.positive * x, self.negative * x)


@dataclass(frozen=True)
class ErfForm:
    """Moments of the error function.

    Source: Williams, 1997, Computing with infinite networks, equation 11.
    """

    def product(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        """E[phi(u) phi(v)] at variances q1, q2 and correlation c."""
        return 2 / math.pi * torch.asin(2 * c * (q1 * q2).sqrt() / ((1 + 2 * q1) * (1 + 2 * q2)).sqrt())

    def slopes(self, q1: Tensor, q2: Tensor, c: Tensor) -> Tensor:
        """E[phi'(u) phi'(v)]."""
        return 4 / math.pi / ((1 + 2 * q1) * (1 + 2 * q2) - 4 * c * c * q1 * q2).sqrt()

    def __call__(self, x: Tensor) -> Tensor:
        """The function itself."""
        return torch.erf(x)


RECOGNISED = {
    torch.relu: PiecewiseLinearForm(1.0, 0.0),
    F.relu: PiecewiseLinearForm(1.0, 0.0),
    F.leaky_relu: PiecewiseLinearForm(1.0, 0.01),
    torch.abs: PiecewiseLinearForm(1.0, -1.0),
    torch.erf: ErfForm(),
    torch.special.erf: ErfForm(),
}


def closed_form(phi: Function) -> PiecewiseLinearForm | ErfForm | None:
    """The closed form of a function that is known by its identity or its class; None for any other.

    Known are `torch.relu`, `torch.abs`, `torch.erf`, `torch.nn.functional.relu` and `leaky_relu`, and the modules
    `nn.ReLU`, `nn.LeakyReLU`, `nn.Identity` and `ReLULike`.
    """
    fn = phi.original if isinstance(phi, Elementwise) else phi
    if isinstance(fn, PiecewiseLinearForm | ErfForm):
        return fn
    kind = type(fn)
    if kind is ReLULike:
        return PiecewiseLinearForm(fn.positive, fn.negative)
    if kind is nn.ReLU:
        return PiecewiseLinearForm(1.0, 0.0)
    if kind is nn.LeakyReLU:
        return PiecewiseLinearForm(1.0, float(fn.negative_slope))
    if kind is nn.Identity:
        return PiecewiseLinearForm(1.0, 1.0)
    try:
        return RECOGNISED.get(fn)
    except TypeError:  # a callable object that cannot be hashed
        return None


def dual_activation(
    phi: Function, q1: Tensor | float, q2: Tensor | float, c: Tensor | float, *, tolerance: float = 1e-8
) -> Tensor:
    """E[phi(u) phi(v)] for jointly normal, centred u and v; for many pairs at once.

    Args:
        phi: elementwise callable.
        q1, q2: variances.
        c: correlations. Shapes broadcast.
        tolerance: error relative to the largest E[phi(u)^2]. A few pairs and functions with a closed form are more
            accurate; where a series does not reach it, the function is interpolated between correlations.

    Returns:
        float64.

    Raises:
        InputError: as `gaussian_product`.
    """
    a, b, r = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.float64) for x in (q1, q2, c)))
    shape = r.shape
    a, b, r = variances(a), variances(b), correlations(r)
    form = closed_form(phi)
    if form is not None:
        return form.product(a, b, r).reshape(shape)
    f = elementwise(phi)
    if len(r) <= FEW:
        return gaussian_product(f, f, a, b, r).reshape(shape)
    out, done = _series(f, a, b, r, tolerance)
    if not bool(done.all()):
        rest = ~done
        few = int(rest.sum()) <= FEW
        some = a[rest], b[rest], r[rest]
        out[rest] = gaussian_product(f, f, *some) if few else _interpolated(f, *some, tolerance)
    return out.reshape(shape)


def dual_at(phi: Function, q: float, *, tolerance: float = 1e-12) -> Callable[[Tensor], Tensor]:
    """E[phi(u) phi(v)] as a function of the correlation (n,), both variances being q; found once, for many calls.

    Raises:
        InputError: as `gaussian_product`, or the tolerance is not reached.
    """
    at = variances(q)
    form = closed_form(phi)
    if form is not None:
        return lambda c: form.product(at.expand_as(c), at.expand_as(c), c)
    f = elementwise(phi)
    total = gaussian_mean(f, at, power=2)
    if float(total) == 0:
        return torch.zeros_like
    if not len(f.kinks(9 * float(at.sqrt()) + 1e-9)):
        coefficients, left = _hermite(f, at, total, tolerance * float(total), 1.0)
        if left <= tolerance * float(total):
            return lambda c: _power_series(coefficients[0] ** 2, c)
    log_q, n = float(at.clamp(min=1e-300).log()), 24
    while n <= MOST_NODES[0]:
        values = _at_nodes(f, [0.0, log_q, 0.0], [math.pi, log_q, 0.0], [n, 1, 1])
        found = (_transform(n) @ values[:, 0, 0])[:, None, None]
        if float(found[-3:].abs().max()) <= max(tolerance, 1e-11) * float(total):
            low, high = [0.0, log_q, 0.0], [math.pi, log_q, 0.0]
            return lambda c: _evaluated(
                found, [torch.acos(c.clamp(-1, 1)), torch.full_like(c, log_q), torch.zeros_like(c)], low, high
            )
        n = math.ceil(1.5 * n)
    raise InputError(f"the double moments of {f.name} at variance {float(at):.4g} could not be interpolated")


def _power_series(coefficients: Tensor, c: Tensor) -> Tensor:
    out = torch.zeros_like(c)
    for one in coefficients.flip(0):
        out = out * c + one
    return out


def grouped(q: Tensor) -> tuple[Tensor, Tensor]:
    """The variances that differ by more than rounding, and for each entry which of them it is."""
    keys, index = torch.unique((q.clamp(min=1e-300).log() * 1e12).round(), return_inverse=True)
    out = torch.empty(len(keys), dtype=torch.float64)
    out[index] = q
    return out, index


def _series(f: Elementwise, a: Tensor, b: Tensor, c: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Sums of a_k(q1) a_k(q2) c^k over Hermite coefficients, and for which pairs they are accurate enough.

    After K terms what is left out is at most |c|^K times the part of E[phi^2] that the coefficients do not hold (Cauchy
    and Schwarz): of a function with kinks the series serves correlations that are not near one.
    """
    q, index = grouped(torch.cat([a, b]))
    out = torch.zeros_like(c)
    # With one variance, interpolation between correlations is faster than a long series.
    if len(q) == 1 and len(f.kinks(9 * float(q.max().sqrt()) + 1e-9)):
        return out, torch.zeros_like(c, dtype=torch.bool)
    total = gaussian_mean(f, q, power=2)
    least = tolerance * float(total.max())
    coefficients, left = _hermite(f, q, total, least, float(c.abs().max()))
    done = left * c.abs() ** coefficients.shape[1] <= least
    i, j = index[: len(a)], index[len(a) :]
    for one in coefficients.flip(1).T.contiguous():
        out = out * c + (one[0] ** 2 if len(q) == 1 else one[i] * one[j])
    return out, done


def _hermite(f: Elementwise, q: Tensor, total: Tensor, least: float, c: float) -> tuple[Tensor, float]:
    """E[f(sqrt(q) Z) h_k(Z)], (len(q), terms), for the normalised Hermite polynomials h_k, and what they leave.

    Terms are added until c^terms times what is left of `total` is at most `least`, or there are `TERMS`.
    """
    z, w = normal_nodes(f, q, 0.75)
    w = w * f(q.sqrt()[:, None] * z)
    before, now, left = torch.zeros_like(z), torch.ones_like(z), total.clone()
    found: list[Tensor] = []
    while len(found) < TERMS and float(left.max()) * c ** len(found) > least:
        k = len(found)
        found.append((w * now).sum(1))
        left -= found[-1] ** 2
        before, now = now, (z * now - math.sqrt(k) * before) / math.sqrt(k + 1)
    return torch.stack(found, 1) if found else torch.zeros(len(q), 0, dtype=torch.float64), float(left.max())


def _polar(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
    """Coordinates in which the double moment is smooth, also at kinks and correlations of ±1.

    The covariance matrix is [[Q (1 + sin t sin p), Q cos t], [Q cos t, Q (1 - sin t sin p)]]: returned are t, log Q, p.
    """
    mean, gap = 0.5 * (a + b), 0.5 * (a - b).abs()
    mean = mean.clamp(min=1e-300)
    cos = (c * (a * b).sqrt() / mean).clamp(-1, 1)
    sin = ((1 - cos) * (1 + cos)).sqrt()
    # Where both variances are equal up to rounding the angle between them says nothing.
    ratio = torch.where(gap > 1e-10 * mean, gap / mean / sin.clamp(min=1e-150), torch.zeros_like(gap))
    return [torch.acos(cos), mean.log(), torch.asin(ratio.clamp(0, 1))]


def _interpolated(f: Elementwise, a: Tensor, b: Tensor, c: Tensor, tolerance: float) -> Tensor:
    """Chebyshev interpolation in polar coordinates over the box that holds all pairs, refined until it converges."""
    at = _polar(a, b, c)
    low, high = [float(x.min()) for x in at], [float(x.max()) for x in at]
    wide = [h - lo > 1e-9 for lo, h in zip(low, high, strict=True)]
    counts = [n if w else 1 for n, w in zip((17, 6, 6), wide, strict=True)]
    while True:
        if math.prod(counts) >= len(c):
            return gaussian_product(f, f, a, b, c)
        values = _at_nodes(f, low, high, counts)
        for n in counts:  # the first axis goes to the end: after three of them the order is the old one
            values = torch.tensordot(values, _transform(n), dims=([0], [1]))
        top = float(values.abs().max())
        more = [w and float(values.movedim(i, 0)[-2:].abs().max()) > tolerance * top for i, w in enumerate(wide)]
        if not any(more):
            break
        counts = [math.ceil(1.5 * n) if m else n for n, m in zip(counts, more, strict=True)]
        if any(n > most for n, most in zip(counts, MOST_NODES, strict=True)):
            raise InputError(f"the double moments of {f.name} could not be interpolated to {tolerance:g}")
    return _evaluated(values, at, low, high)


def _at_nodes(f: Elementwise, low: list[float], high: list[float], counts: list[int]) -> Tensor:
    """Double moments at the Chebyshev points of the box, (t, log Q, p)."""
    axes = []
    for lo, h, n in zip(low, high, counts, strict=True):
        unit = torch.cos(math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
        axes.append(0.5 * (lo + h) + 0.5 * (h - lo) * unit)
    t, q, p = torch.meshgrid(*axes, indexing="ij")
    lean = (t.sin() * p.sin()).clamp(-1, 1)
    q1, q2 = q.exp() * (1 + lean), q.exp() * (1 - lean)
    c = (t.cos() / ((1 - lean) * (1 + lean)).clamp(min=1e-300).sqrt()).clamp(-1, 1)
    return gaussian_product(f, f, q1, q2, c)


def _transform(n: int) -> Tensor:
    """Matrix (n, n) from values at Chebyshev points to coefficients."""
    k = torch.arange(n, dtype=torch.float64)
    out = torch.cos(math.pi * k[:, None] * (k[None, :] + 0.5) / n) * (2 / n)
    out[0] /= 2
    return out


def _evaluated(coefficients: Tensor, at: list[Tensor], low: list[float], high: list[float]) -> Tensor:
    """The interpolant at each pair."""
    n0, n1, n2 = coefficients.shape
    parts = []
    for rows in torch.arange(len(at[0])).split(max(1, VALUES // (n0 + n1 * n2))):
        basis = []
        for x, lo, h, n in zip(at, low, high, (n0, n1, n2), strict=True):
            unit = ((2 * x[rows] - lo - h) / max(h - lo, 1e-300)).clamp(-1, 1)
            basis.append(torch.cos(torch.acos(unit)[:, None] * torch.arange(n, dtype=torch.float64)))
        first = (basis[0] @ coefficients.reshape(n0, -1)).reshape(-1, n1, n2)
        parts.append(((first * basis[2][:, None, :]).sum(2) * basis[1]).sum(1))
    return torch.cat(parts)
