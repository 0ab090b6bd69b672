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

__all__ = ["derivatives", "find_breaks", "longest_dead_zone", "measure_properties", "whole_range"]

Function = Callable[[Tensor], Tensor]
FAR = np.concatenate([np.arange(10.05, 60.0, 0.05), 10.0 ** np.arange(2, 17)])
"""Beyond the grid; up to 60 closely, since some functions have a second step out there."""
STEP = 1e-4
"""Of the differences that stand for a derivative which PyTorch does not have."""
GROWS = 1e-3
"""A function that still grows by more than this share from 1e15 to 1e16 is taken to have no bound."""


def derivatives(f: Function, x: np.ndarray, order: int = 1) -> list[np.ndarray]:
    """Values and derivatives up to an order at x (n,), in float64.

    By automatic differentiation; from where PyTorch has no derivative of a function on, by differences.
    """
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = [f(t.clone())]  # a copy, for a function may work in place
    with torch.enable_grad():
        for _ in range(order):
            if not found[-1].requires_grad:
                found.append(torch.zeros_like(t))
                continue
            try:
                (slope,) = torch.autograd.grad(found[-1].sum(), t, create_graph=True, allow_unused=True)
            except RuntimeError:
                return _by_differences(f, x, found, order)
            found.append(torch.zeros_like(t) if slope is None else slope)
    return [v.detach().numpy(force=True) for v in found]


def _by_differences(f: Function, x: np.ndarray, known: list[Tensor], order: int) -> list[np.ndarray]:
    """The derivatives that are known, and those after them by central differences of the last one."""
    last, h = len(known) - 1, STEP
    found = [v.detach().numpy(force=True) for v in known]
    below, at, above = (derivatives(f, x + e, last)[last] for e in (-h, 0.0, h))
    return found + [(above - below) / (2 * h), (above - 2 * at + below) / h**2][: order - last]


def find_breaks(f: Function, order: int, lo: float = -10.0, hi: float = 10.0) -> list[float]:
    """Where the derivative of an order jumps, and none of a lower one (order 0: the function itself).

    Args:
        f: elementwise function.
        order: 0, 1 or 2.
        lo, hi: the interval.

    Raises:
        InputError: the order is none of these, the interval is empty, or f is not elementwise or not finite on it.
    """
    if order not in (0, 1, 2) or not lo < hi:
        raise InputError(f"an order is 0, 1 or 2, and an interval rises; got {order} and {lo:g}..{hi:g}")
    return [float(x) for x in elementwise(f).jumps(lo, hi)[order]]


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
        f: the function; a module is taken as it is in evaluation.
        domain: where it is looked at; inside of -10..10 if finite.

    Raises:
        InputError: it is not elementwise, or not finite inside of the domain.
    """
    known = elementwise(f)
    f = known.fn
    lo, hi = max(domain[0], -10.0), min(domain[1], 10.0)
    near = np.linspace(lo, hi, 20001)
    whole = not any(map(math.isfinite, domain))
    x = np.concatenate([-FAR[::-1], near, FAR]) if whole else near
    y, slope = derivatives(f, x)
    bad = ~np.isfinite(y) & (np.abs(x) <= 10)
    if bad.any():
        raise InputError(f"the function is not finite at {x[bad][0]:g}")
    jumps, kinks, bends = map(len, known.jumps(lo, hi))
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


def whole_range(f: Function) -> tuple[float, float]:
    """Bounds of a function on the whole line, -inf and inf where it has none."""
    x = np.concatenate([-FAR[::-1], np.linspace(-10.0, 10.0, 20001), FAR])
    limits = _values(f, np.array([-math.inf, math.inf]))
    return _range(f, x, derivatives(f, x, 0)[0], limits, True)


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
        if whole and i in (0, len(x) - 1) and math.isnan(limits[min(i, 1)]):
            before = float(finite[1 if i == 0 else i - 1])
            top = math.inf if top > before + GROWS * abs(before) else top
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
