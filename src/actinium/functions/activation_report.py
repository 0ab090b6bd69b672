"""What an activation function is like: kinks, bounds, extrema, Lipschitz constants, Gaussian statistics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from actinium.core.elementwise_function import Elementwise
from actinium.core.errors import InputError
from actinium.core.gaussian_moments import gaussian_mean
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.functions.registry import spec
from actinium.functions.shape_analysis import derivatives, whole_range

__all__ = ["ActivationReport", "StationaryPoint", "analyze_activation"]

Function = Callable[[Tensor], Tensor]
KIND = {-1: "jumps", 0: "C^0", 1: "C^1", 2: "C^2 or smoother"}


@dataclass(frozen=True)
class StationaryPoint:
    """A place where the derivative changes its sign or touches 0.

    Args:
        x, value: where, and the function there.
        kind: "minimum", "maximum" or "saddle".
    """

    x: float
    value: float
    kind: str


@dataclass(frozen=True)
class ActivationReport:
    """What `analyze_activation` found, in float64.

    Args:
        name: of the function.
        lo, hi: the interval.
        smoothness: -1 for jumps, 0 for kinks, 1 for a continuous derivative, 2 for a continuous second one or more.
        breaks: where the lowest derivative that jumps does so.
        lower, upper: least and largest value on the interval.
        left_asymptote, right_asymptote: (slope, intercept) of lines fitted to the outer tenths of the interval.
        bounded_below, bounded_above: on the whole line, judged by values up to 1e16 and at both infinities.
        stationary: minima, maxima and saddles, by position.
        lipschitz: largest |f'|.
        gradient_lipschitz: largest |f''|; inf where the derivative jumps.
        at_zero, slope_at_zero: f(0) and f'(0) (NaN at a kink, and where 0 is not in the interval).
        monotone, odd, even: on the interval.
        mean, second_moment, slope_second_moment: E f(z), E f(z)^2 and E f'(z)^2 for standard normal z.
        gain: 1 / sqrt(second_moment); inf for a function that is 0.
        chi: slope_second_moment / second_moment: how gradients grow with weights of that gain.
        zero_share: share of standard normal z with f(z) = 0.
        dead_share: share of standard normal z with |f'(z)| < 1e-3.
    """

    name: str
    lo: float
    hi: float
    smoothness: int
    breaks: tuple[float, ...]
    lower: float
    upper: float
    left_asymptote: tuple[float, float]
    right_asymptote: tuple[float, float]
    bounded_below: bool
    bounded_above: bool
    stationary: tuple[StationaryPoint, ...]
    lipschitz: float
    gradient_lipschitz: float
    at_zero: float
    slope_at_zero: float
    monotone: bool
    odd: bool
    even: bool
    mean: float
    second_moment: float
    slope_second_moment: float
    gain: float
    chi: float
    zero_share: float
    dead_share: float
    curves: Result = dataclasses.field(compare=False, repr=False, kw_only=True)

    @property
    def variance(self) -> float:
        """Variance of f(z) for standard normal z."""
        return self.second_moment - self.mean**2

    def to_dict(self) -> dict[str, object]:
        """Every number by its name; stationary points as (x, value, kind)."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "curves"}
        return found | {
            "smoothness": KIND[self.smoothness],
            "variance": self.variance,
            "stationary": [dataclasses.astuple(p) for p in self.stationary],
        }

    def table(self) -> pd.DataFrame:
        """The numbers as two columns, "property" and "value"."""
        return pd.DataFrame(list(self.to_dict().items()), columns=["property", "value"])

    def plot(self, ax: object = None) -> object:
        """The function and its first two derivatives."""
        return self.curves.plot(ax)


def analyze_activation(
    fn: str | Function, lo: float = -10.0, hi: float = 10.0, n: int = 20001, name: str | None = None
) -> ActivationReport:
    """Measure the properties of an elementwise function.

    Args:
        fn: name in the catalogue, or elementwise callable or module (its parameters are kept as they are).
        lo, hi, n: grid.
        name: what the report calls it.

    Raises:
        InputError: the interval is empty or the grid has fewer than 3 points; the function is not elementwise, or not
            finite on the interval or where standard normal numbers lie (the place is said).
        UnknownNameError: there is no function of that name.

    Source: the properties of Lee, 2023, arXiv 2305.12073, for any function.
    """
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi) or n < 3:
        raise InputError(f"an interval needs a lower end below the upper one and 3 points, not {lo:g}..{hi:g} with {n}")
    if isinstance(fn, str):
        found = spec(fn)
        name, fn = name or found.name, found
    f = Elementwise(fn, name=name or "")
    x = np.linspace(lo, hi, n)
    with torch.no_grad():
        f(torch.from_numpy(x))  # refuses what is not finite, and says where
    y, slope, bend = derivatives(f.fn, x, 2)
    jumps, corners, curves = (places.tolist() for places in f.jumps(lo, hi))
    kinks = jumps or corners
    bends = kinks or curves
    smoothness = -1 if jumps else 0 if kinks else 1 if bends else 2
    left, right = _asymptote(x, y, False), _asymptote(x, y, True)
    moments = _moments(f)
    mirrored = _is_mirrored(f, max(-lo, hi))
    stationary = _stationary(f.fn, x, slope)
    scale = 1e-12 * max(1.0, float(np.abs(y).max()))
    turns = np.searchsorted(x, [p.x for p in stationary])
    steps = np.diff(np.insert(y, turns, [p.value for p in stationary]))
    bounds = whole_range(f.fn)
    return ActivationReport(
        name=f.name,
        lo=lo,
        hi=hi,
        smoothness=smoothness,
        breaks=tuple(bends),
        lower=0.0 - _largest(lambda t: -_value(f, t), x, -y),
        upper=_largest(lambda t: _value(f, t), x, y),
        left_asymptote=left,
        right_asymptote=right,
        bounded_below=math.isfinite(bounds[0]),
        bounded_above=math.isfinite(bounds[1]),
        stationary=tuple(stationary),
        lipschitz=math.inf if jumps else _largest(lambda t: np.abs(derivatives(f.fn, t)[1]), x, np.abs(slope)),
        gradient_lipschitz=math.inf
        if kinks
        else _largest(lambda t: np.abs(derivatives(f.fn, t, 2)[2]), x, np.abs(bend)),
        at_zero=float(_value(f, np.zeros(1))[0]) if lo <= 0 <= hi else math.nan,
        slope_at_zero=float(derivatives(f.fn, np.zeros(1))[1][0])
        if lo <= 0 <= hi and not any(abs(k) < 1e-6 for k in kinks)
        else math.nan,
        monotone=not (bool((steps > scale).any()) and bool((steps < -scale).any())),
        odd=mirrored == -1,
        even=mirrored == 1,
        zero_share=_share(x, y == 0),
        dead_share=_share(x, np.abs(slope) < 1e-3),
        curves=_curves(f.name, x, y, slope, bend, (lo, hi, n)),
        **moments,
    )


def _value(f: Elementwise, x: np.ndarray) -> np.ndarray:
    return f(torch.tensor(x, dtype=torch.float64)).numpy()


def _moments(f: Elementwise) -> dict[str, float]:
    mean, second = (float(gaussian_mean(f, 1.0, power=p)) for p in (1, 2))
    slope = float(gaussian_mean(f.derivative(), 1.0, power=2))
    return {
        "mean": mean,
        "second_moment": second,
        "slope_second_moment": slope,
        "gain": second**-0.5 if second > 0 else math.inf,
        "chi": slope / second if second > 0 else math.nan,
    }


def _asymptote(x: np.ndarray, y: np.ndarray, right: bool) -> tuple[float, float]:
    """Slope and intercept of the line through the outer tenth of the interval."""
    part = max(2, len(x) // 10)
    some = slice(-part, None) if right else slice(None, part)
    slope, intercept = np.polyfit(x[some], y[some], 1)
    return float(slope), float(intercept)


def _largest(g: Callable[[np.ndarray], np.ndarray], x: np.ndarray, values: np.ndarray) -> float:
    """Largest value on the grid, made finer around its place."""
    i = int(values.argmax())
    best, centre, width = float(values[i]), float(x[i]), float(x[1] - x[0])
    for _ in range(5):
        at = np.linspace(max(x[0], centre - width), min(x[-1], centre + width), 41)
        found = g(at)
        j = int(found.argmax())
        if found[j] > best:
            best, centre = float(found[j]), float(at[j])
        width /= 15
    return best


def _stationary(f: Function, x: np.ndarray, slope: np.ndarray) -> list[StationaryPoint]:
    """Where the slope changes its sign, by bisection to 1e-10; intervals on which it is 0 do not count."""
    found = []
    for i in np.flatnonzero(np.sign(slope[:-1]) * np.sign(slope[1:]) < 0):
        low, high, below = float(x[i]), float(x[i + 1]), float(slope[i])
        while high - low > 1e-10:
            middle = (low + high) / 2
            at = float(derivatives(f, np.array([middle]))[1][0])
            low, high = (middle, high) if at * below > 0 else (low, middle)
        found.append(((low + high) / 2, "minimum" if below < 0 else "maximum"))
    # Hits of the grid itself, between slopes of the same or of another sign.
    for i in np.flatnonzero((slope[1:-1] == 0) & (slope[:-2] != 0) & (slope[2:] != 0)) + 1:
        turn = np.sign(slope[i - 1]) - np.sign(slope[i + 1])
        found.append((float(x[i]), "saddle" if turn == 0 else "maximum" if turn > 0 else "minimum"))
    return [StationaryPoint(p, float(derivatives(f, np.array([p]), 0)[0][0]), kind) for p, kind in sorted(found)]


def _is_mirrored(f: Elementwise, reach: float) -> int:
    """1 for an even function, -1 for an odd one, else 0; a function that is 0 is even."""
    x = np.linspace(0.0, reach, 2001)[1:]
    right, left = _value(f, x), _value(f, -x)
    scale = 1e-9 * max(1.0, float(np.abs(right).max()))
    return 1 if np.abs(right - left).max() < scale else -1 if np.abs(right + left).max() < scale else 0


def _share(x: np.ndarray, where: np.ndarray) -> float:
    """Share of a standard normal in the cells of the grid at whose both ends something holds, and beyond its ends."""
    edges = torch.special.ndtr(torch.from_numpy(x)).numpy()
    inside = float(np.diff(edges)[where[:-1] & where[1:]].sum())
    return inside + float(edges[0]) * bool(where[0]) + float(1 - edges[-1]) * bool(where[-1])


def _curves(
    name: str, x: np.ndarray, y: np.ndarray, slope: np.ndarray, bend: np.ndarray, grid: tuple[float, float, int]
) -> Result:
    shown = slice(None, None, max(1, len(x) // 1000))
    data = xr.Dataset(
        {"f": ("x", y[shown]), "f'": ("x", slope[shown]), "f''": ("x", bend[shown])},
        {"x": x[shown]},
        {"plot": {"kind": "line", "variables": ["f", "f'", "f''"], "ylabel": name}},
    )
    return Result(data, "analyze_activation", "gelu-analysis", provenance(function=name, grid=list(grid)))
