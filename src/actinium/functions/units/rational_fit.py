"""Ratios of two polynomials: their denominators, and the coefficients that are nearest to a function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, unknown
from actinium.functions.units.array_units import Function, member

__all__ = ["RationalFit", "fit_rational"]

VERSIONS = {"A": "A", "abs-terms": "A", "B": "B", "safe": "B", "C": "C", "D": "D", "N": "N", "plain": "N"}
FLOOR = 0.1
"""What is added below in version C."""


class RationalFit(NamedTuple):
    """Coefficients that are nearest to a function, and how near.

    Args:
        a: of the numerator, from the constant on.
        b: of the denominator, from x on (in version C from the constant on).
        max_err: largest error on the grid.
        rmse: root mean square of the errors.
    """

    a: tuple[float, ...]
    b: tuple[float, ...]
    max_err: float
    rmse: float


def _size(t: Tensor) -> Tensor:
    """|t| whose derivative at 0 is 1, so that a coefficient that starts at 0 is learnt."""
    return torch.where(t >= 0, t, -t)


def horner(x: Tensor, coefficients: Sequence[Tensor] | Tensor) -> Tensor:
    """sum_k c_k x^k."""
    y = torch.zeros_like(x)
    for c in reversed(list(coefficients)):
        y = y * x + c
    return y


def denominator(x: Tensor, b: Sequence[Tensor] | Tensor, version: str) -> Tensor:
    """Q(x) of a version."""
    if version == "A":
        size = x.abs()
        return 1 + size * horner(size, [_size(c) for c in b])
    if version == "B":
        return 1 + _size(x * horner(x, b))
    if version == "C":
        return FLOOR + _size(horner(x, b))
    return 1 + x * horner(x, b)


def fit_rational(
    fn: str | Function, lo: float = -3.0, hi: float = 3.0, m: int = 5, n: int = 4, version: str = "A"
) -> RationalFit:
    """Coefficients of a rational function that are nearest to a function in mean square on an interval.

    For a given denominator the numerator is a linear problem; Levenberg and Marquardt's method looks for the
    denominator, from 0 and from several others.

    Args:
        fn: function, module, or name of the catalogue.
        lo, hi: the interval, of which 6001 points are taken.
        m, n: degrees above and below.
        version: of the denominator, see `PAU`.

    Raises:
        UnknownNameError: there is no function of that name.
        InputError: the interval is empty, a degree is below 1, the function is not finite there, or the best fit of
            version N has a pole there.
    """
    kind = known_version(version)
    check_degrees(m, n)
    fine = grid(lo, hi, 6001)
    y = sampled(member(fn), fine)
    if not y.isfinite().all():
        raise InputError(f"the function to fit is not finite on [{lo:g}, {hi:g}]")
    return _nearest(y.numpy().tobytes(), float(lo), float(hi), m, n, "B" if kind == "D" else kind)


# Layers of one network mostly have the same function.
@lru_cache(maxsize=32)
def _nearest(values: bytes, lo: float, hi: float, m: int, n: int, kind: str) -> RationalFit:
    """The fit to values at evenly spaced points."""
    y = np.frombuffer(values, dtype=np.float64)
    x = np.linspace(lo, hi, len(y))
    problem = _Projection(x[::20], y[::20], m, n, kind)
    best = min((problem.solve(start) for start in problem.starts(max(abs(lo), abs(hi)))), key=problem.cost)
    whole = _Projection(x, y, m, n, kind)
    b = whole.solve(best, 40)
    if kind == "N":
        check_poles(b, lo, hi)
    off = whole.residual(b)
    return RationalFit(
        tuple(whole.above(b).tolist()), tuple(b.tolist()), float(np.abs(off).max()), float(np.sqrt(np.mean(off**2)))
    )


class _Projection:
    """The fit as a problem of the denominator alone: its numerator is the best one."""

    def __init__(self, x: np.ndarray, y: np.ndarray, m: int, n: int, version: str) -> None:
        self.x, self.y, self.version, self.n = torch.from_numpy(x.copy()), y, version, n
        self.powers = x[:, None] ** np.arange(m + 1)

    def starts(self, reach: float) -> list[np.ndarray]:
        """Denominators to start from: none, and a term of each degree that is 1 or more at the ends."""
        first = [0.9] if self.version == "C" else []
        degrees = np.arange(1, self.n + 1)
        even = (degrees % 2 == 0) if self.n > 1 else np.ones(1, dtype=bool)
        tails = [np.zeros(self.n), *(even * size / reach**degrees for size in (1.0, 10.0, 60.0))]
        return [np.array([*first, *tail]) for tail in tails]

    def _terms(self, b: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            terms = self.powers / denominator(self.x, torch.from_numpy(b), self.version).numpy()[:, None]
        # A pole that has come onto a point leaves it without an approximation, so that its error speaks against the
        # pole.
        return np.nan_to_num(terms, nan=0.0, posinf=0.0, neginf=0.0)

    def above(self, b: np.ndarray) -> np.ndarray:
        """The best numerator."""
        terms = self._terms(b)
        scale = np.maximum(np.linalg.norm(terms, axis=0), 1e-300)
        return np.linalg.lstsq(terms / scale, self.y, rcond=None)[0] / scale

    def residual(self, b: np.ndarray) -> np.ndarray:
        """Errors at the points."""
        return self._terms(b) @ self.above(b) - self.y

    def cost(self, b: np.ndarray) -> float:
        """Mean square error; what is rounding counts as none, so that the first of several exact fits is taken."""
        mean = float(np.mean(self.residual(b) ** 2))
        return mean if mean > 1e-24 * max(1.0, float(np.mean(self.y**2))) else 0.0

    def solve(self, start: np.ndarray, evaluations: int = 100) -> np.ndarray:
        """The denominator that Levenberg and Marquardt's method finds from a start."""
        from scipy.optimize import least_squares

        if self.cost(start) == 0:
            return start
        found = least_squares(self.residual, start, method="lm", x_scale="jac", max_nfev=evaluations)
        return found.x if self.cost(found.x) <= self.cost(start) else start


def known_version(version: str) -> str:
    """The letter of a version. Raises InputError for an unknown one."""
    if version not in VERSIONS:
        raise InputError(unknown("version of the denominator", version, list(VERSIONS)))
    return VERSIONS[version]


def check_degrees(m: int, n: int) -> None:
    """Raises InputError for degrees below 1."""
    if m < 1 or n < 1:
        raise InputError(f"both polynomials have degree 1 or more, not {m} and {n}")


def check_poles(b: np.ndarray, lo: float, hi: float) -> None:
    """Raises InputError where the denominator of version N is 0 on an interval."""
    roots = np.roots([*np.asarray(b)[::-1], 1.0])
    poles = sorted(float(r.real) for r in roots if abs(r.imag) < 1e-9 and lo <= r.real <= hi)
    if poles:
        raise InputError(
            f"the denominator is 0 at {poles[0]:.4g}, inside of [{lo:g}, {hi:g}]; versions A, B and C have no poles"
        )


def grid(lo: float, hi: float, points: int) -> Tensor:
    """Evenly spaced points in float64. Raises InputError for an empty interval."""
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise InputError(f"an interval has finite ends, the lower one first, not {lo} and {hi}")
    return torch.linspace(lo, hi, points, dtype=torch.float64)


@torch.no_grad()
def sampled(fn: Function, x: Tensor) -> Tensor:
    """Values (n,) in float64; of a module with a function for each channel, those of the first."""
    like = next(fn.parameters(), x) if isinstance(fn, nn.Module) else x
    rows = x[:, None].expand(-1, getattr(fn, "num_parameters", 1)).to(like.device, like.dtype)
    return fn(rows)[:, 0].double().cpu()
