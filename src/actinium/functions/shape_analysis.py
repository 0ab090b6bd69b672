"""What an elementwise function looks like, measured: kinks, range, extrema, Lipschitz constants, dead zones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from actinium.core.elementwise_function import elementwise
from actinium.core.errors import InputError
from actinium.functions.registry import Properties

__all__ = ["derivatives", "find_breaks", "longest_dead_zone", "measure_properties"]

Function = Callable[[Tensor], Tensor]
FAR = np.concatenate([np.arange(10.05, 60.0, 0.05), 10.0 ** np.arange(2, 17)])
"""Beyond the grid; up to 60 closely, since some functions have a second step out there."""
HUGE = 1e300


def derivatives(f: Function, x: np.ndarray, order: int = 1) -> list[np.ndarray]:
    """Values and derivatives up to an order at x (n,), in float64, by automatic differentiation."""
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = [f(t)]
    with torch.enable_grad():
        for _ in range(order):
            if not found[-1].requires_grad:
                found.append(torch.zeros_like(t))
                continue
            (slope,) = torch.autograd.grad(found[-1].sum(), t, create_graph=True, allow_unused=True)
            found.append(torch.zeros_like(t) if slope is None else slope)
    return [v.detach().numpy() for v in found]


def find_breaks(
    f: Function, order: int, lo: float = -10.0, hi: float = 10.0, n: int = 4001, tol: float = 1e-3
) -> list[float]:
    """Where the derivative of an order jumps (order 0: the function itself).

    A jump between neighbours of a grid is halved until only a step of 1e-9 is left: what is steep and smooth shrinks
    with the step, a break does not.

    Args:
        f: elementwise function.
        order: 0, 1 or 2.
        lo, hi, n: the grid, which is shifted a little so that round numbers lie inside of its cells.
        tol: smallest jump.
    """
    grid = np.linspace(lo - 1.234e-5, hi + 1.234e-5, n)
    left, right = grid[:-1], grid[1:]

    def value(x: np.ndarray) -> np.ndarray:
        return derivatives(f, x, order)[order]

    low, high = value(left), value(right)
    some = np.abs(high - low) > tol
    left, right, low, high = (a[some] for a in (left, right, low, high))
    while len(left) and float((right - left).max()) > 1e-9:
        middle = (left + right) / 2
        at = value(middle)
        nearer = np.abs(high - at) > np.abs(at - low)
        left, low = np.where(nearer, middle, left), np.where(nearer, at, low)
        right, high = np.where(nearer, right, middle), np.where(nearer, high, at)
        some = np.abs(high - low) > tol
        left, right, low, high = (a[some] for a in (left, right, low, high))
    # What is so steep that it exceeds the tolerance even here is smaller on a smaller step, which a break is not.
    margin = 4 * (right - left)
    stays = np.abs(high - low) > np.abs(value(right + margin) - value(left - margin)) / 3
    return [float(x) for x in ((left + right) / 2)[stays]]


def longest_dead_zone(f: Function, lo: float = -10.0, hi: float = 10.0, n: int = 20001) -> tuple[float, float] | None:
    """The longest interval on which the derivative is 0, with infinite ends where it goes on; None if there is none."""
    x = np.linspace(lo, hi, n)
    flat = derivatives(f, x)[1] == 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [0]])))
    runs = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 20]
    if not runs:
        return None
    a, b = max(runs, key=lambda run: run[1] - run[0])
    return (-math.inf if a == 0 else float(x[a])), (math.inf if b == n else float(x[b - 1]))


def measure_properties(f: Function, domain: tuple[float, float] = (-math.inf, math.inf)) -> Properties:
    """The shape of an elementwise function, in float64.

    Args:
        f: the function.
        domain: where it is looked at; inside of -10..10 if finite.

    Raises:
        InputError: it is not elementwise, or not finite inside of the domain.
    """
    elementwise(f)  # refuses what is not
    lo, hi = max(domain[0], -10.0), min(domain[1], 10.0)
    near = np.linspace(lo, hi, 20001)
    whole = not any(map(math.isfinite, domain))
    x = np.concatenate([-FAR[::-1], near, FAR]) if whole else near
    y, slope = derivatives(f, x)
    bad = ~np.isfinite(y) & (np.abs(x) <= 10)
    if bad.any():
        raise InputError(f"the function is not finite at {x[bad][0]:g}")
    jumps = find_breaks(f, 0, lo, hi)
    kinks = [] if jumps else find_breaks(f, 1, lo, hi)
    bends = [] if jumps or kinks else find_breaks(f, 2, lo, hi)
    smooth = -1.0 if jumps else 0.0 if kinks else 1.0 if bends else 2.0
    limits = _values(f, np.array([-math.inf, math.inf])) if whole else _values(f, np.array([lo, hi]))
    change = np.diff(y[np.isfinite(y)])
    scale = 1e-9 * max(1.0, float(np.abs(y[np.abs(x) <= 10]).max()))
    return Properties(
        range=_range(f, x, y, limits, whole),
        limits=(float(limits[0]), float(limits[1])),
        smooth=smooth,
        monotone=not (bool((change > scale).any()) and bool((change < -scale).any())),
        lipschitz=math.inf if jumps else _steepest(f, x, slope, whole),
        slope=_slope_at_zero(f, lo, hi),
        # A zone that begins at the edge of the grid must not be missed.
        dead=longest_dead_zone(f, max(domain[0], -12.0), min(domain[1], 12.0), 24001),
        domain=domain,
    )


def _values(f: Function, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return f(torch.tensor(x, dtype=torch.float64)).numpy()


def _refined(g: Callable[[np.ndarray], np.ndarray], x: np.ndarray, i: int) -> float:
    """Largest value of g near x[i], on grids that are ten times finer each time."""
    best, centre = -math.inf, float(x[i])
    width = float(np.min(np.abs(np.diff(x[max(i - 1, 0) : i + 2]))))
    for _ in range(6):
        at = np.linspace(max(centre - width, float(x[0])), min(centre + width, float(x[-1])), 41)
        values = g(at)
        values = np.where(np.isfinite(values), values, -math.inf)
        j = int(values.argmax())
        best, centre, width = max(best, float(values[j])), float(at[j]), width / 15
    return best


def _range(f: Function, x: np.ndarray, y: np.ndarray, limits: np.ndarray, whole: bool) -> tuple[float, float]:
    ends = []
    for sign in (-1, 1):
        finite = np.where(np.isfinite(y), sign * y, -math.inf)
        i = int(finite.argmax())
        near = abs(x[i]) <= 10
        top = max(float(finite[i]), _refined(lambda at, s=sign: s * _values(f, at), x, i) if near else -math.inf)
        known = [float(sign * v) for v in limits if not math.isnan(v)]
        if whole and abs(x[i]) > 1e9 and top > 1e9:
            top = math.inf  # without a limit, such as x cos x
        ends.append(sign * max([top, *known]) if whole else sign * top)
    return ends[0], ends[1]


def _steepest(f: Function, x: np.ndarray, slope: np.ndarray, whole: bool) -> float:
    size = np.where(np.isfinite(slope), np.abs(slope), 0.0)
    i = int(size.argmax())
    if whole and ((abs(x[i]) > 100 and size[i] > 2 * size[np.abs(x) <= 100].max()) or not np.isfinite(slope).all()):
        return math.inf
    if abs(x[i]) > 10:
        return float(size[i])
    found = _refined(lambda at: np.abs(derivatives(f, at)[1]), x, i)
    # A root's slope grows on every finer grid.
    return math.inf if found > 30 * size[i] else max(float(size[i]), found)


def _slope_at_zero(f: Function, lo: float, hi: float) -> float:
    if not lo < 0 < hi:
        return math.nan
    h, tiny = 1e-8, 1e-12
    left, middle, right, less, more = _values(f, np.array([-h, 0.0, h, -tiny, tiny]))
    below, above = (middle - left) / h, (right - middle) / h
    nearest = np.array([(middle - less) / tiny, (more - middle) / tiny])
    if (np.abs(nearest) > 30 * np.maximum(1.0, np.abs([below, above]))).all() and nearest[0] * nearest[1] > 0:
        return math.copysign(math.inf, nearest[0])
    return float((right - left) / (2 * h)) if abs(above - below) < 1e-3 * max(1.0, abs(above)) else math.nan
