"""How variance and correlation of signals travel through a deep random network, and where neither dies nor explodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from actinium.core.elementwise_function import Elementwise, elementwise
from actinium.core.errors import InputError
from actinium.core.gaussian_moments import gaussian_mean, gaussian_product, variances
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.signal.duals import PiecewiseLinearForm, closed_form, dual_at
from actinium.signal.nngp import check_scales

__all__ = ["EdgeOfChaos", "EdgePoint", "Rate", "correlation_map", "edge_of_chaos_curve", "variance_map"]

PAPER = "edge-of-chaos"
Q_MAX = 1e4
"""Largest variance at which fixed points are looked for."""
GRID = np.geomspace(1e-8, Q_MAX, 241)
SAME = 1e-9
"""Relative difference below which two variances, or a multiplier and 1, are the same."""
Floats = NDArray[np.float64]
Function = Callable[[Tensor], Tensor] | Elementwise


@dataclass(frozen=True)
class EdgePoint:
    """One point of the edge of chaos.

    Attributes:
        sb, sw: standard deviations of biases, and of weights times the root of the number of inputs.
        q: variance of the pre-activations at the fixed point; 1 where every variance is fixed, 0 in the limit sb -> 0.
        beta_q: 1 - c_l ~ beta_q / l for the correlation of two inputs after l layers; 0 where the slope of the function
            jumps and the decay is 1 / l^2; infinite for a linear function and in the limit sb -> 0.
        growth: factor by which a small deviation from q grows per layer, the slope of the variance map there. Above 1
            (GELU, SiLU and Mish at small sb) the point is on the edge and finite networks drift away from it.
    """

    sb: float
    sw: float
    q: float
    beta_q: float
    growth: float = 1.0

    @property
    def stable(self) -> bool:
        """Whether variances near q stay there."""
        return self.growth <= 1 + 1e-6


@dataclass(frozen=True)
class Rate:
    """How the correlation of two inputs tends to 1 on the edge: 1 - c_l ~ coefficient / l^power ("1/l", "1/l^2")."""

    law: str
    power: int
    coefficient: float


class EdgeOfChaos:
    """Mean-field theory of networks y^l = W^l phi(y^(l-1)) + b^l for one activation function.

    Args:
        phi: elementwise activation function.
        dphi, d2phi: its derivatives; by autograd if not given.

    Raises:
        InputError: a function is not elementwise.

    Source: Hayou, Doucet and Rousseau, 2019, sections 2 and 3; Schoenholz et al., 2017 (depth scales).
    """

    def __init__(self, phi: Function, dphi: Function | None = None, d2phi: Function | None = None) -> None:
        self.phi, self.dphi, self.d2phi = phi, dphi, d2phi
        self._f = elementwise(phi)
        self._slope = self._f.derivative() if dphi is None else elementwise(dphi)
        self._second = d2phi
        self._table: tuple[Floats, Floats, Floats] | None = None

    def __repr__(self) -> str:
        return f"EdgeOfChaos({self._f.name})"

    def q_map(self, q: Tensor | float, sb: float, sw: float) -> Tensor:
        """Variance after one more layer: sb^2 + sw^2 E[phi(sqrt(q) Z)^2], of the shape of `q`."""
        check_scales(sw, sb)
        return sb**2 + sw**2 * self._energy(q)

    def fixed_point(self, sb: float, sw: float) -> float:
        """The variance that deep layers tend to: the smallest stable fixed point of `q_map`.

        Returns:
            the variance; 0 where signals die; 1 where every variance is fixed (ReLU at sb = 0, sw = sqrt(2)).

        Raises:
            InputError: there is none below 1e4: the signal explodes.
        """
        check_scales(sw, sb)
        q, energy, _ = self._moments()
        gap = sb**2 + sw**2 * energy - q
        if np.all(np.abs(gap) <= SAME * q):
            return 1.0
        if sb == 0 and gap[0] <= 0 and float(self._energy(0.0)) <= 1e-15:
            return 0.0
        found = _roots(q, gap, lambda x: sb**2 + sw**2 * float(self._energy(x)) - x, sb**2)
        stable = [x for x in found if self._growth(x, sw) <= 1]
        if stable:
            return stable[0]
        raise InputError(
            f"{self._f.name} has no stable variance below {Q_MAX:g} at sb={sb:g}, sw={sw:g}: the signal explodes"
        )

    def chi1(self, sb: float, sw: float, q: float | None = None) -> float:
        """Factor by which the second moment of gradients grows per layer: sw^2 E[phi'(sqrt(q) Z)^2].

        Below 1 correlations tend to 1 and gradients vanish (ordered), above 1 the reverse (chaotic), at 1 is the edge.
        `q`, here and below, is the variance of the pre-activations, that of `fixed_point` if not given.
        """
        return sw**2 * self._steepness(self.fixed_point(sb, sw) if q is None else float(variances(q)))

    def correlation(self, c: Tensor | float, sb: float, sw: float, q: float | None = None) -> Tensor:
        """Correlation of two inputs after one more layer, both of variance `q`."""
        q = self._alive(sb, sw, q)
        at = torch.as_tensor(c, dtype=torch.float64)
        return ((sb**2 + sw**2 * self._pair(self._f, q, at)) / q).clamp(-1, 1)

    def correlation_slope(self, c: Tensor | float, sb: float, sw: float, q: float | None = None) -> Tensor:
        """Derivative of `correlation`: sw^2 E[phi'(u) phi'(v)]; `chi1` at c = 1."""
        q = self._alive(sb, sw, q)
        at = torch.as_tensor(c, dtype=torch.float64)
        form = closed_form(self._f)
        if form is not None:
            return sw**2 * form.slopes(torch.full_like(at, q), torch.full_like(at, q), at)
        return sw**2 * self._pair(self._slope, q, at)

    def correlations(self, c: Tensor | float, depth: int, sb: float, sw: float, q: float | None = None) -> Tensor:
        """Correlations of inputs after 0, 1, ..., depth layers, from the initial `c` (any shape): (depth + 1, ...)."""
        if depth < 0:
            raise InputError(f"depth is 0 or more, got {depth}")
        q = self._alive(sb, sw, q)
        double = dual_at(self._f, q)
        out = [torch.as_tensor(c, dtype=torch.float64)]
        for _ in range(depth):
            now = double(out[-1].reshape(-1)).reshape(out[-1].shape)
            out.append(((sb**2 + sw**2 * now) / q).clamp(-1, 1))
        return torch.stack(out)

    def variances(self, q: Tensor | float, depth: int, sb: float, sw: float) -> Tensor:
        """Variances after 0, 1, ..., depth layers, from the initial `q` (any shape): (depth + 1, ...)."""
        out = [torch.as_tensor(q, dtype=torch.float64)]
        for _ in range(depth):
            out.append(self.q_map(out[-1], sb, sw))
        return torch.stack(out)

    def limit_correlation(self, sb: float, sw: float, q: float | None = None) -> float:
        """The correlation c* that inputs tend to: 1, or below 1 in the chaotic phase."""
        if self.chi1(sb, sw, q) <= 1 + SAME:
            return 1.0
        q = self._alive(sb, sw, q)
        double = dual_at(self._f, q)

        def gap(c: float) -> float:
            at = torch.tensor([c], dtype=torch.float64)
            return float((sb**2 + sw**2 * double(at)) / q) - c

        return float(brentq(gap, -1e-9, 1 - 1e-6, xtol=1e-12))

    def depth_scale(self, sb: float, sw: float, q: float | None = None) -> float:
        """Layers over which the distance of the correlation from its limit falls by e: -1 / log f'(c*).

        Returns:
            infinite on the edge.
        """
        q = self.fixed_point(sb, sw) if q is None else q
        slope = self.chi1(sb, sw, q)
        if slope > 1 + SAME:
            slope = float(self.correlation_slope(self.limit_correlation(sb, sw, q), sb, sw, q))
        if abs(slope - 1) <= SAME:
            return math.inf
        return -1 / math.log(slope) if slope > 0 else 0.0

    def point(self, sb: float) -> EdgePoint:
        """The weights that put biases of standard deviation `sb` on the edge of chaos.

        Where there are several, the one of the smallest variance that is stable; where none is, of the smallest.

        Raises:
            InputError: there are none, or the function jumps so that its gradients have no second moment.
        """
        check_scales(1.0, sb)
        q, energy, steep = self._moments()
        gap = sb**2 + energy / np.maximum(steep, 1e-300) - q
        if not (steep > 0).any():
            raise InputError(f"no EOC for {self._f.name}: its derivative is zero")
        if sb == 0 and np.all(np.abs(gap) <= SAME * q):
            return self._point(sb, 1.0)
        if sb == 0 and float(self._energy(0.0)) <= 1e-15 and self._smooth_at_zero():
            return EdgePoint(0.0, 1 / math.sqrt(self._steepness(0.0)), 0.0, math.inf)
        roots = _roots(q, gap, lambda x: sb**2 + float(self._energy(x)) / self._steepness(x) - x, sb**2)
        points = [self._point(sb, root) for root in roots]
        if points:
            return next((p for p in points if p.stable), points[0])
        raise InputError(
            f"no EOC for {self._f.name} in that range: at sb={sb:g} no variance below {q[-1]:.3g} is a fixed point with"
            " chi1 = 1"
        )

    def curve(self, sb_values: Sequence[float]) -> Result:
        """The edge of chaos: by `sb`, the variables `sw`, `q`, `beta_q`, `growth` and `stable` of `EdgePoint`.

        Raises:
            InputError: no values, or one has no point on the edge.
        """
        if not len(sb_values):
            raise InputError("no bias scales are given")
        points = [self.point(float(sb)) for sb in sb_values]
        data = {name: ("sb", [getattr(p, name) for p in points]) for name in ("sw", "q", "beta_q", "growth", "stable")}
        hints = {"plot": {"variables": ["sw"], "ylabel": "sw on the edge of chaos"}}
        record = provenance(inputs=[float(s) for s in sb_values], phi=self._f.name)
        return Result(xr.Dataset(data, {"sb": [p.sb for p in points]}, hints), "edge_of_chaos_curve", PAPER, record)

    def rates(self, sb: float) -> Rate:
        """How fast two inputs become one on the edge at `sb`.

        Source: Hayou et al., 2019, propositions 2 and 3; for slopes J_k that jump at k the expansion of f at 1 has the
        term (2/3) sw^2 sqrt(q / pi) sum J_k^2 p(k) (1 - c)^(3/2) with p the density of N(0, q), from which the
        coefficient 4 over its square follows (9 pi^2 / 2 for ReLU).
        """
        p = self.point(sb)
        if p.beta_q > 0:
            return Rate("1/l", 1, p.beta_q)
        at = self._f.corners(12 * math.sqrt(p.q))
        step = 1e-7 * (1 + at.abs())
        jumps = self._slope(at + step) - self._slope(at - step)
        density = torch.exp(-(at**2) / (2 * p.q)) / math.sqrt(2 * math.pi * p.q)
        bend = 2 / 3 * p.sw**2 * math.sqrt(p.q / math.pi) * float((jumps**2 * density).sum())
        return Rate("1/l^2", 2, 4 / bend**2)

    def _energy(self, q: Tensor | float) -> Tensor:
        at = torch.as_tensor(q, dtype=torch.float64)
        form = closed_form(self._f)
        if form is not None:
            return form.product(at, at, torch.ones_like(at))
        return gaussian_mean(self._f, at, power=2)

    def _steepness(self, q: float) -> float:
        at = torch.tensor(q, dtype=torch.float64)
        form = closed_form(self._f)
        if form is not None:
            return float(form.slopes(at, at, torch.ones_like(at)))
        return float(gaussian_mean(self._slope, at, power=2))

    def _pair(self, f: Elementwise, q: float, c: Tensor) -> Tensor:
        form = closed_form(f)
        if form is not None:
            return form.product(torch.full_like(c, q), torch.full_like(c, q), c)
        return gaussian_product(f, f, q, q, c)

    def _growth(self, q: float, sw: float) -> float:
        """Slope of the variance map."""
        near = self._energy(torch.tensor([q * (1 - 1e-4), q * (1 + 1e-4)], dtype=torch.float64))
        return sw**2 * float(near[1] - near[0]) / (2e-4 * q)

    def _alive(self, sb: float, sw: float, q: float | None) -> float:
        check_scales(sw, sb)
        q = self.fixed_point(sb, sw) if q is None else float(variances(q))
        if q <= 0:
            raise InputError(f"at sb={sb:g}, sw={sw:g} signals die: at variance 0 there is no correlation")
        return q

    def _moments(self) -> tuple[Floats, Floats, Floats]:
        """Variances, and E[phi^2] and E[phi'^2] at each, up to where both are finite."""
        if self._table is None:
            self._refuse_jumps()
            try:
                self._table = self._over(GRID)
            except InputError:
                # At large variances a function that grows fast has no finite moments: as far as they are finite.
                rows = []
                for q in GRID:
                    try:
                        rows.append(self._over(np.array([q])))
                    except InputError:
                        if not rows:
                            raise
                        break
                self._table = tuple(np.concatenate(c) for c in zip(*rows, strict=True))  # type: ignore[assignment]
        return self._table  # type: ignore[return-value]

    def _over(self, q: Floats) -> tuple[Floats, Floats, Floats]:
        at = torch.from_numpy(q)
        form = closed_form(self._f)
        ones = torch.ones_like(at)
        steep = gaussian_mean(self._slope, at, power=2) if form is None else form.slopes(at, at, ones)
        return q, self._energy(at).numpy(), steep.numpy()

    def _refuse_jumps(self) -> None:
        at = self._f.corners(16.0)
        step = 1e-8 * (1 + at.abs())
        gap = (self._f(at + step) - self._f(at - step)).abs()
        if len(at) and float(gap.max()) > 1e-5:
            raise InputError(
                f"no EOC for {self._f.name}: it jumps at {float(at[gap.argmax()]):.4g}, so gradients have no second"
                " moment"
            )

    def _smooth_at_zero(self) -> bool:
        corners = self._f.corners(1.0)
        return not bool((corners.abs() < 1e-9).any()) and self._steepness(0.0) > 0

    def _point(self, sb: float, q: float) -> EdgePoint:
        steep = self._steepness(q)
        form = closed_form(self._f)
        if len(self._f.corners(12 * math.sqrt(q))):
            beta = 0.0
        elif isinstance(form, PiecewiseLinearForm):
            beta = math.inf
        else:
            second = self._slope.derivative() if self._second is None else elementwise(self._second)
            bend = float(gaussian_mean(second, q, power=2))
            beta = 2 * steep / (q * bend) if bend > 0 else math.inf
        growth = 1.0 if isinstance(form, PiecewiseLinearForm) else self._growth(q, 1 / math.sqrt(steep))
        return EdgePoint(sb, 1 / math.sqrt(steep), q, beta, growth)


def _roots(q: Floats, gap: Floats, exact: Callable[[float], float], least: float) -> list[float]:
    """Variances from `least` on at which `gap` changes its sign, in order."""
    if least > 0:
        inside = q > least
        q, gap = np.concatenate([[least], q[inside]]), np.concatenate([[exact(least)], gap[inside]])
    signs = np.where(np.abs(gap) <= 1e-12 * q, 0, np.sign(gap))
    crossings = np.flatnonzero(signs[:-1] * signs[1:] < 0)
    found = [float(brentq(exact, q[i], q[i + 1], xtol=1e-14, rtol=1e-12)) for i in crossings]
    return sorted(found + [float(q[i]) for i in np.flatnonzero(signs == 0) if i == 0 or signs[i - 1] != 0])


def variance_map(phi: Function, q: Tensor | float, sb: float, sw: float) -> Tensor:
    """Variance of the pre-activations after one more layer; see `EdgeOfChaos.q_map`."""
    return EdgeOfChaos(phi).q_map(q, sb, sw)


def correlation_map(phi: Function, c: Tensor | float, sb: float, sw: float) -> Tensor:
    """Correlation of two inputs after one more layer at the fixed variance; see `EdgeOfChaos.correlation`."""
    return EdgeOfChaos(phi).correlation(c, sb, sw)


def edge_of_chaos_curve(phi: Function, sb_values: Sequence[float]) -> Result:
    """Weight scales on the edge of chaos by bias scale; see `EdgeOfChaos.curve`."""
    return EdgeOfChaos(phi).curve(sb_values)
