"""Means of functions of one or two Gaussian numbers, by quadrature that is split where the functions have kinks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from actinium.core.elementwise_function import Elementwise, elementwise
from actinium.core.errors import InputError

__all__ = ["gaussian_mean", "gaussian_product"]

Function = Callable[[Tensor], Tensor] | Elementwise
REACHES = (9.0, 14.0, 22.0, 36.0)
"""Standard deviations that an integral covers; the least at whose ends the integrand has died out."""
DIED = 1e-12
MOST = 300_000
"""Values in one evaluation of a double integral."""
STEPS = (-6.0, -3.0, 0.0, 3.0, 6.0)
"""Splits around a smoothed kink, in widths of the smoothing."""
NODE, WEIGHT = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(16))
FEW_NODE, FEW_WEIGHT = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(12))
ROOT_2_PI = math.sqrt(2 * math.pi)


def gaussian_mean(fn: Function, q: Tensor | float, *, kinks: Sequence[float] = (), power: int = 1) -> Tensor:
    """E[fn(sqrt(q) Z) ** power] for standard normal Z.

    Args:
        fn: elementwise callable.
        q: variances, of any shape.
        kinks: places where `fn` or a derivative jumps, where they are known; others are found.
        power: 1 or 2.

    Returns:
        float64, of the shape of `q`. Error about 1e-12 relative for functions that are smooth between their kinks.

    Raises:
        InputError: `fn` is not elementwise, a variance is negative or not finite, or the mean does not exist.
    """
    f, flat = elementwise(fn, kinks), variances(q)
    z, w = normal_nodes(f, flat)
    found = (w * f(flat.sqrt()[:, None] * z) ** power).sum(1)
    return found.reshape(torch.as_tensor(q).shape)


def gaussian_product(
    f: Function, g: Function, q1: Tensor | float, q2: Tensor | float, c: Tensor | float, *, kinks: Sequence[float] = ()
) -> Tensor:
    """E[f(u) g(v)] for jointly normal, centred u and v of variances `q1` and `q2` and correlation `c`.

    Args:
        f, g: elementwise callables.
        q1, q2: variances.
        c: correlations, from -1 to 1. Shapes broadcast.
        kinks: as in `gaussian_mean`, of both.

    Returns:
        float64. Error below 1e-8 where both are smooth, below 1e-6 where they have kinks, relative to the root of
        E[f(u)^2] E[g(v)^2].

    Raises:
        InputError: as `gaussian_mean`, or a correlation is outside [-1, 1].
    """
    f = elementwise(f, kinks)
    g = f if g is f or g is f.original else elementwise(g, kinks)
    a, b, r = (torch.as_tensor(x, dtype=torch.float64) for x in (q1, q2, c))
    shape = (a + b + r).shape
    a, b, r = variances(a.expand(shape)), variances(b.expand(shape)), correlations(r.expand(shape))
    reach = max(reach_of(f, a), reach_of(g, b))
    outer, inner = _features(f, a, reach), _features(g, b, reach)
    corners = g.kinks(reach * float(b.max().sqrt()) + 1e-9)
    panels = len(outer) + len(STEPS) * len(corners) + reach, len(inner) + reach
    at_once = max(1, int(MOST / (panels[0] * panels[1] * len(FEW_NODE) ** 2)))
    parts = [
        _product(f, g, x, y, c, outer, inner, corners, reach)
        for x, y, c in zip(*(torch.split(t, at_once) for t in (a, b, r)), strict=True)
    ]
    return torch.cat(parts).reshape(shape)


def variances(q: Tensor | float) -> Tensor:
    """Variances as a flat float64 tensor, checked."""
    flat = torch.as_tensor(q, dtype=torch.float64).detach().cpu().reshape(-1)
    if not len(flat):
        raise InputError("no variance is given")
    if not bool(flat.isfinite().all()) or float(flat.min()) < 0:
        raise InputError("variances are finite and not negative")
    return flat


def correlations(c: Tensor) -> Tensor:
    """Correlations as a flat float64 tensor, checked; rounding beyond ±1 is cut."""
    flat = c.detach().cpu().double().reshape(-1)
    if not bool(flat.isfinite().all()) or float(flat.abs().max()) > 1 + 1e-9:
        raise InputError("correlations lie between -1 and 1")
    return flat.clamp(-1, 1)


def reach_of(f: Elementwise, q: Tensor) -> float:
    """How many standard deviations the integrals of `f` squared must cover.

    Raises:
        InputError: they never die out.
    """
    top = float(q.max().sqrt())
    inner = torch.linspace(-4, 4, 32, dtype=torch.float64)
    usual = float((f(top * inner) ** 2 * torch.exp(-(inner**2) / 2)).mean())
    for reach in REACHES:
        at = torch.tensor([-reach, reach], dtype=torch.float64)
        ends = float((f(top * at) ** 2).max()) * math.exp(-(reach**2) / 2)
        if ends <= DIED * usual or ends <= 1e-280:
            return reach
    raise InputError(f"{f.name} grows too fast: its second moment at variance {top**2:.4g} is not finite in float64")


def normal_nodes(f: Elementwise, q: Tensor, step: float = 1.5) -> tuple[Tensor, Tensor]:
    """Places z and weights, each (len(q), n), of a quadrature over the standard normal for f(sqrt(q) z)."""
    reach = reach_of(f, q)
    steps = torch.linspace(-reach, reach, 2 * math.ceil(reach / step) + 1, dtype=torch.float64)
    return _panels(_scaled(_features(f, q, reach), q.sqrt(), reach), steps, NODE, WEIGHT)


def _features(f: Elementwise, q: Tensor, reach: float) -> Tensor:
    """Where pieces of `f` end, as far out as the largest variance reaches and as near zero as the smallest sees."""
    far, near = reach * float(q.max().sqrt()), 1e-10 * float(q.min().sqrt())
    breaks = f.breaks(far + 1e-9)
    return breaks[(breaks.abs() < far) & ((breaks.abs() > near) | (breaks == 0))]


def _scaled(features: Tensor, scale: Tensor, reach: float) -> Tensor:
    """Features of a function (k,) in units of each scale (n,): (n, k), cut to the reach."""
    return (features[None, :] / scale.clamp(min=1e-150)[:, None]).clamp(-reach, reach)


def _panels(breaks: Tensor, steps: Tensor, node: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and normal weights, (..., n), on intervals that end at `steps` and at `breaks` (..., k)."""
    ends = torch.cat([breaks, steps.expand(*breaks.shape[:-1], -1)], -1).sort(-1).values
    half = 0.5 * ends.diff(dim=-1)
    z = ((ends[..., :-1] + half)[..., None] + half[..., None] * node).flatten(-2)
    w = (half[..., None] * weight).flatten(-2) * torch.exp(-0.5 * z * z) / ROOT_2_PI
    return z, w


def _product(
    f: Elementwise,
    g: Elementwise,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    outer: Tensor,
    inner: Tensor,
    corners: Tensor,
    reach: float,
) -> Tensor:
    """The double integral at (n,) variances and correlations; u = sqrt(a) z and v = sqrt(b) (c z + s z')."""
    s = ((1 - c) * (1 + c)).clamp(min=0).sqrt()
    steps = torch.linspace(-reach, reach, 2 * math.ceil(reach / 2) + 1, dtype=torch.float64)
    # The mean of g over z' bends, within s of where c z is at a kink of g.
    safe = torch.where(c.abs() < 1e-9, torch.full_like(c, 1e-9), c)[:, None]
    bends = corners[None, :] / b.sqrt().clamp(min=1e-150)[:, None]
    bends = torch.cat([(bends + step * s[:, None]) / safe for step in STEPS], 1).clamp(-reach, reach)
    z, w = _panels(torch.cat([_scaled(outer, a.sqrt(), reach), bends], 1), steps, FEW_NODE, FEW_WEIGHT)
    centre = c[:, None] * z
    ends = inner / b.sqrt().clamp(min=1e-150)[:, None]
    ends = ((ends[:, None, :] - centre[..., None]) / s.clamp(min=1e-12)[:, None, None]).clamp(-reach, reach)
    y, v = _panels(ends, steps, FEW_NODE, FEW_WEIGHT)
    given = (g(b.sqrt()[:, None, None] * (centre[..., None] + s[:, None, None] * y)) * v).sum(-1)
    return (w * f(a.sqrt()[:, None] * z) * given).sum(-1)
